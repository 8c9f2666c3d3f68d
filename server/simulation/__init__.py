"""A federation on one machine, and grids of them."""
