"""Processes of a federation on one machine: started, watched, restarted, ended."""
