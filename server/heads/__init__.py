"""Federated classical heads, fitted from sums that sites send."""
