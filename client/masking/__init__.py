"""A site's part in secure aggregation: what it keeps for a round, and what it refuses."""
