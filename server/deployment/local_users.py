"""Users of this machine at the other end of a connection on loopback.

TLS and a public CA tell a caller whom it speaks to, and nothing tells the server who calls. Flower's Control and
Runtime APIs listen on loopback, where every user of the machine can call them, and a run that somebody starts there
is a program that runs as the server's user. So a connection is closed before it is read, unless the kernel says
that it belongs to the server's own user (proc_pid_net(5), /proc/net/tcp).
"""

import os
import socket
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

_TABLE = Path("/proc/net/tcp")
_ESTABLISHED, _NO_SOCKET = "01", "0"

Endpoint = tuple[str, int]


def user_of(peer: Endpoint, own: Endpoint, table: Path = _TABLE) -> int | None:
    """Number of the user whose IPv4 socket `peer` is connected to ours, `own`; None if it is not known.

    A socket that its program has closed has no owner any more, and the kernel then prints user 0: it is not
    known either.
    """
    wanted = (_hexadecimal(peer), _hexadecimal(own), _ESTABLISHED)
    with table.open(encoding="ascii") as lines:
        for line in lines:
            fields = line.split()
            if len(fields) > 9 and tuple(fields[1:4]) == wanted and fields[9] != _NO_SOCKET:
                return int(fields[7])
    return None


def _hexadecimal(endpoint: Endpoint) -> str:
    (number,) = struct.unpack("=I", socket.inet_aton(endpoint[0]))
    return f"{number:08X}:{endpoint[1]:04X}"


def only_mine(base: type[Any], note: Callable[[int | None], None]) -> type[Any]:
    """An asyncio protocol like `base` that closes the connections of other users, after `note` of the user.

    Only Linux says whose a connection is; elsewhere every user of the machine may connect.
    """

    class Mine(base):  # type: ignore[misc]
        _admitted = False

        def connection_made(self, transport: Any) -> None:
            user = _caller(transport)
            if sys.platform == "linux" and user != os.geteuid():
                note(user)
                transport.abort()
                return
            self._admitted = True
            super().connection_made(transport)

        def data_received(self, data: bytes) -> None:
            if self._admitted:
                super().data_received(data)

        def eof_received(self) -> None:
            if self._admitted:
                super().eof_received()

        def connection_lost(self, exc: Exception | None) -> None:
            if self._admitted:
                super().connection_lost(exc)

    return Mine


def _caller(transport: Any) -> int | None:
    try:
        peer, own = transport.get_extra_info("peername"), transport.get_extra_info("sockname")
        return user_of(peer[:2], own[:2])
    except (OSError, TypeError, ValueError):  # closed already, or no IPv4
        return None
