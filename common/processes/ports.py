"""Ports on this machine: free ones, claimed ones, ones that answer."""

import contextlib
import socket
import sys


def free_ports(count: int) -> list[int]:
    """Different ports of loopback that nothing listens on now."""
    with contextlib.ExitStack() as probes:
        bound = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in bound:
            probe.bind(("127.0.0.1", 0))
        return [int(probe.getsockname()[1]) for probe in bound]


def port_is_taken(port: int) -> bool:
    """True if something listens on this port of loopback or the port cannot be bound."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return True
    return False


def claim_port(port: int) -> socket.socket | None:
    """Claim `port` among the launchers of this machine; None if another one has claimed it.

    A SuperLink takes seconds to listen, so of two launchers that start together both would find
    the port free. The claim is an abstract socket (unix(7)): no file, gone with its process.
    """
    claim = socket.socket(socket.AF_UNIX)
    try:
        if sys.platform == "linux":
            claim.bind(f"\0consilium-port-{port}")
    except OSError:
        claim.close()
        return None
    return claim


def accepts_connections(port: int) -> bool:
    """True if something listens on this port of loopback."""
    with socket.socket() as probe:
        probe.settimeout(1.0)
        return probe.connect_ex(("127.0.0.1", port)) == 0
