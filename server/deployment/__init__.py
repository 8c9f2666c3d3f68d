"""A server that runs for months: SuperLink, queue of studies, site keys, overview."""
