"""Addresses: host names, listening addresses, proxies, Unix sockets. What a person wrote is checked here."""
