"""A site's images: read, checked, split and kept decoded."""
