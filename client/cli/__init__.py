"""The command line of a hospital: `consilium-site`."""
