"""Answers to plans that were allowed: one module per kind of plan."""
