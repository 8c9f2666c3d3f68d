"""The command line of the study operator and of research: `consilium-server`."""
