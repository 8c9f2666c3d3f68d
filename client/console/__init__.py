"""The site's console: pages in a browser at the hospital, read from the audit log and the approvals.

Nothing here reads an image, and nothing it imports does.
"""
