"""Further devices of a site: each computes a part of every batch in a process of its own."""
