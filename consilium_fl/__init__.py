"""The Python interface of Consilium."""
