"""A run's files: checkpoints, history, status and requests."""
