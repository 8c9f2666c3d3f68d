"""Simulated sites: discovered, partitioned or synthetic data."""
