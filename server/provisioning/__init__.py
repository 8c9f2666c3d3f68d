"""Start-up kits for sites, and a federation in containers."""
