"""Checks before a study: data, machine, connection."""
