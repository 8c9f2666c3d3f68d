"""A Unix socket for named users: the kernel says who connects, and strangers are turned away.

Where gateway and trainer are two users, the socket between them is open to a group. The group may gain members that
were never meant to send plans. So each connection is let through to the socket behind only if its user is one of
those named (SO_PEERCRED, unix(7)).
"""

import contextlib
import os
import socket as sockets
import struct
import threading
from collections.abc import Callable, Collection
from pathlib import Path

from common.errors import StorageError

MODE = 0o660
"""Of the socket: its owner and its group may connect."""

_CHUNK, _CREDENTIALS = 2**20, "3i"


class PeerDoor:
    """Listens on `outer` and joins the connections of `users` to the socket `inner`."""

    def __init__(
        self, outer: Path, inner: Path, users: Collection[int], refused: Callable[[int], None]
    ) -> None:
        self._outer, self._inner, self._users, self._refused = outer, inner, frozenset(users), refused
        self._listening = sockets.socket(sockets.AF_UNIX)

    def open(self) -> None:
        """Listen, and let users in until `close`. A socket that is there is replaced. Raises StorageError."""
        former = os.umask(0o777 & ~MODE)
        try:
            self._outer.unlink(missing_ok=True)
            self._listening.bind(str(self._outer))
            self._listening.listen(8)
        except OSError as error:
            raise StorageError(
                f"{self._outer} cannot be made: {error.strerror}; give a folder that the trainer may write to"
            ) from error
        finally:
            os.umask(former)
        threading.Thread(target=self._accept, daemon=True).start()

    def close(self) -> None:
        """Let no one in any more. Connections that are open go on."""
        with contextlib.suppress(OSError):
            self._listening.shutdown(sockets.SHUT_RDWR)
        self._listening.close()
        self._outer.unlink(missing_ok=True)

    def _accept(self) -> None:
        while True:
            try:
                caller, _ = self._listening.accept()
            except OSError:  # closed
                return
            user = user_of(caller)
            if user not in self._users:
                caller.close()
                self._refused(user)
                continue
            behind = sockets.socket(sockets.AF_UNIX)
            try:
                behind.connect(str(self._inner))
            except OSError:
                caller.close()
                behind.close()
                continue
            threading.Thread(target=_join, args=(caller, behind), daemon=True).start()


def user_of(caller: sockets.socket) -> int:
    """Number of the user at the other end of a connected Unix socket."""
    size = struct.calcsize(_CREDENTIALS)
    _, user, _ = struct.unpack(_CREDENTIALS, caller.getsockopt(sockets.SOL_SOCKET, sockets.SO_PEERCRED, size))
    return int(user)


def _join(caller: sockets.socket, behind: sockets.socket) -> None:
    """Bytes both ways until both have ended."""
    with caller, behind:
        back = threading.Thread(target=_pass_on, args=(behind, caller), daemon=True)
        back.start()
        _pass_on(caller, behind)
        back.join()


def _pass_on(source: sockets.socket, target: sockets.socket) -> None:
    """Bytes from `source` to `target` until one ends; the other learns of it."""
    with contextlib.suppress(OSError):
        while data := source.recv(_CHUNK):
            target.sendall(data)
    for end, how in ((target, sockets.SHUT_WR), (source, sockets.SHUT_RD)):
        with contextlib.suppress(OSError):
            end.shutdown(how)
