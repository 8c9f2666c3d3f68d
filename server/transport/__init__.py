"""Transport within the server: presence of gateways, files of weights, and the ServerApp's way to the SuperLink."""
