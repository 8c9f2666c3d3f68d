"""Classical heads at the site, on features of its images."""
