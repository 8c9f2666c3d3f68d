"""What the server and the hospitals must agree on. Nothing here imports torch."""
