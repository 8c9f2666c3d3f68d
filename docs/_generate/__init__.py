"""Pages and JSON Schemas that are generated from the settings models."""
