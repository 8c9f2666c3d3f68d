"""JSON and YAML, read strictly: a key that stands twice is an error, and an unclear value is named with its line."""
