"""Splits into train and test that keep patients together."""
