"""Decoders: from a file's bytes to pixels."""
