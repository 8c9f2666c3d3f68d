"""Ports of this machine: free ones, claimed ones, ones that answer, and why one is not available."""

import contextlib
import errno
import socket
import sys

LOOPBACK = "127.0.0.1"

_REACHED_AT = {"0.0.0.0": LOOPBACK, "::": "::1", "": LOOPBACK}
"""Who listens on every address is reached at loopback's; any other address is reached at itself."""


def free_ports(count: int) -> list[int]:
    """Different ports of loopback that nothing listens on now."""
    with contextlib.ExitStack() as probes:
        bound = [probes.enter_context(socket.socket()) for _ in range(count)]
        for probe in bound:
            probe.bind((LOOPBACK, 0))
        return [int(probe.getsockname()[1]) for probe in bound]


def obstacle(port: int, host: str = LOOPBACK) -> str | None:
    """Why nothing can begin to listen on this port of the address `host` of this machine; None if it can."""
    if not 1 <= port <= 65535:
        return f"{port} is not a port; expected a number from 1 to 65535"
    try:
        with socket.socket(_family(host)) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen()  # of two sockets that are bound, one may listen
    except OSError as error:
        return _reason(error, host, port)
    return None


def taken(port: int) -> str:
    """The obstacle that another process listens there, which may end."""
    return f"port {port} is taken by another process"


def _reason(error: OSError, host: str, port: int) -> str:
    match error.errno:
        case errno.EADDRINUSE:
            return taken(port)
        case errno.EADDRNOTAVAIL:
            return f"{host} is not an address of this machine (`ip address` lists them)"
        case errno.EAFNOSUPPORT:
            return f"{host} is an IPv6 address, and this machine has no IPv6"
        case errno.EACCES | errno.EPERM:
            return f"port {port} may not be listened on by this user; ports below 1024 are often the system's"
        case _:
            return f"port {port} of {host} cannot be listened on: {error.strerror or error}"


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


def accepts_connections(port: int, host: str = LOOPBACK) -> bool:
    """True if something listens on this port of this machine's address `host`, which may be every one."""
    with socket.socket(_family(host)) as probe:
        probe.settimeout(1.0)
        return probe.connect_ex((_REACHED_AT.get(host, host), port)) == 0


def _family(host: str) -> socket.AddressFamily:
    return socket.AF_INET6 if ":" in host else socket.AF_INET
