"""The site's connection to the server: no torch, no images."""
