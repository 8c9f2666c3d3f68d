"""A site's images: found, checked, split and kept decoded."""
