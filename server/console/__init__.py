"""The operator's console: pages in a browser, read from the same files as the commands."""
