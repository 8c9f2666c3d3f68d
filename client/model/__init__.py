"""Encoders, and which of their tensors travel."""
