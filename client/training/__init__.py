"""Local training and evaluation of one plan."""
