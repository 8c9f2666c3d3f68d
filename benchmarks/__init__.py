"""Measurements, run by hand: `make bench`, or one alone: `python -m benchmarks rounds`."""
