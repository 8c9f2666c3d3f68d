"""Readers: from a hospital's files to a list of images with labels and groups."""
