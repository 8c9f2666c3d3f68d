"""Shipped studies and settings, as examples and for the commands that name them."""
