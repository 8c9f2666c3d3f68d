"""Link between gateway and trainer: it carries the bytes of a plan there and of an answer back.

In a hospital the two share nothing but a Unix socket, so the trainer needs no network at
all. Tests and simulations hand the same bytes straight to a trainer in the same process, so
there is one code path for messages. No code is generated: gRPC carries opaque chunks.
"""

import os
import socket as sockets
import stat
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol, TypeVar
from urllib.parse import quote

import grpc

from common.errors import SiteFailure, StorageError
from common.network import unix_sockets
from common.polling import wait_until
from common.wire import TRAINER_METHOD, TRAINER_SERVICE
from common.wire.codec import chunks, gathered
from common.wire.signed_heads import HEAD, TRAILER

CONNECT_S = 60.0
"""Enough for a trainer to restart and import torch, and shorter than a round's deadline."""
TRIES = 3
"""Times that a plan is sent to a trainer that crashes while it works on it. The machine may have been the
cause, so it is sent again; the plan itself may be the cause, so the tries are limited."""

_OPTIONS = [
    ("grpc.max_receive_message_length", 16 * 2**20),
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.enable_http_proxy", 0),  # a socket is on this machine: no proxy of the environment is asked
]
_METHOD = f"/{TRAINER_SERVICE}/{TRAINER_METHOD}"

T = TypeVar("T")


class _ConnectionLost(Exception):
    """The trainer exited before its answer was complete."""


class Link(Protocol):
    """Carries one plan to a trainer and brings its answer back."""

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """The answer's bytes. Raises SiteFailure if the trainer does not answer in time."""


class SocketLink:
    """A trainer behind a Unix socket. Not thread-safe: a trainer works on one plan at a time."""

    def __init__(self, socket: Path, connect_s: float = CONNECT_S) -> None:
        self._socket, self._connect_s = socket, connect_s
        self._channel: grpc.Channel | None = None
        self.audit_head = ""
        """Head of the trainer's audit log, as it came with the last answer; empty if none came."""

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """Send `request`, wait at most `timeout_s` for the whole answer. Raises SiteFailure."""
        return self.pass_on(lambda: chunks(request), gathered, timeout_s)

    def pass_on(
        self,
        request: Callable[[], Iterator[bytes]],
        receive: Callable[[Iterator[bytes]], T],
        timeout_s: float,
    ) -> T:
        """Send the pieces of `request`; returns what `receive` makes of the answer's pieces.

        A trainer that exits meanwhile gets the plan again after its restart, so both may be called again. It
        answers a plan by its id, so nothing is trained twice. Raises SiteFailure, and whatever `request` and `receive`
        raise.
        """
        until = time.monotonic() + timeout_s
        for attempt in range(1, TRIES + 1):
            try:
                return self._pass_on_once(request, receive, until - time.monotonic())
            except _ConnectionLost as lost:
                if attempt == TRIES:
                    raise SiteFailure(
                        f"the trainer exited {TRIES} times while it worked on a plan; read its log"
                    ) from lost
        raise AssertionError("the last attempt returns or raises")

    def _pass_on_once(
        self,
        request: Callable[[], Iterator[bytes]],
        receive: Callable[[Iterator[bytes]], T],
        timeout_s: float,
    ) -> T:
        self._wait_for_trainer(min(self._connect_s, timeout_s))
        sent = _Noted(request())
        call = self._open().stream_stream(_METHOD)(iter(sent), timeout=timeout_s)
        got, self.audit_head = _Noted(call), ""
        try:
            received = receive(iter(got))
            self.audit_head = _head(call.trailing_metadata())
        except Exception as error:
            self.close()
            # gRPC reads pieces in a thread of its own, and has its own error for one that fails there.
            if sent.error is not None:
                raise sent.error from error
            if not isinstance(got.error, grpc.RpcError):
                raise
            if got.error.code() == grpc.StatusCode.UNAVAILABLE:
                raise _ConnectionLost from error
            raise SiteFailure(
                f"the trainer did not answer on its socket within {timeout_s:.0f} s "
                f"({got.error.code().name}); start it, or read its log"
            ) from error
        return received

    def close(self) -> None:
        """End every call to the trainer; the next one opens a new channel."""
        if self._channel is not None:
            self._channel.close()
            self._channel = None

    def _open(self) -> grpc.Channel:
        """One channel for good: gRPC needs 0.2 s to open and close one."""
        if self._channel is None:
            self._channel = grpc.insecure_channel(_address(self._socket), options=_OPTIONS)
        return self._channel

    def _wait_for_trainer(self, seconds: float) -> None:
        _address(self._socket)
        if not wait_until(self._listens, seconds):
            raise SiteFailure(_silence(self._socket, seconds))

    def _listens(self) -> bool:
        try:
            return _is_served(self._socket)
        except OSError:  # somebody may correct it while it is waited for
            return False


class _Noted:
    """Pieces, and the error that ended them."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces = pieces
        self.error: Exception | None = None

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._pieces
        except Exception as error:
            self.error = error
            raise


def _head(trailers: Sequence[tuple[str, str | bytes]]) -> str:
    found = [value for name, value in trailers if name == TRAILER and isinstance(value, str)]
    return found[0] if len(found) == 1 and HEAD.fullmatch(found[0]) else ""


def serve(
    answer: Callable[[bytes], bytes], socket: Path, audit_head: Callable[[], str] = lambda: ""
) -> grpc.Server:
    """Listen on `socket` and answer one plan at a time; the caller stops the server.

    `audit_head` is asked after each answer, and goes with it.

    Raises StorageError if the socket cannot be made, SiteFailure if another trainer has it.
    """

    def handle(request: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        reply = answer(gathered(request))
        context.set_trailing_metadata(((TRAILER, audit_head()),))
        yield from chunks(reply)

    address = _address(socket)
    _remove_stale_socket(socket)
    server = grpc.server(ThreadPoolExecutor(max_workers=1), options=_OPTIONS)
    handlers = {TRAINER_METHOD: grpc.stream_stream_rpc_method_handler(handle)}
    server.add_registered_method_handlers(TRAINER_SERVICE, handlers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TRAINER_SERVICE, handlers),))
    # Bound with the owner's rights only: every process that can open the socket can send plans.
    former = os.umask(0o177)
    try:
        server.add_insecure_port(address)
    except RuntimeError as error:
        raise StorageError(
            f"{socket} cannot be made; give a folder that the trainer may write to, on a disk that allows sockets"
        ) from error
    finally:
        os.umask(former)
    server.start()
    return server


def _remove_stale_socket(socket: Path) -> None:
    """Remove the socket of a trainer that has exited; nothing else is ever removed."""
    try:
        socket.parent.mkdir(parents=True, exist_ok=True)
        if not os.path.lexists(socket):
            return
        if not stat.S_ISSOCK(socket.lstat().st_mode):
            raise StorageError(f"{socket} exists and is not a socket; give another path, or remove it")
        if _is_served(socket):
            raise SiteFailure(f"another trainer listens on {socket}; stop it, or give another path")
        socket.unlink()
    except OSError as error:
        raise StorageError(
            f"{socket} cannot be made: {error.strerror}; give a folder that the trainer may write to"
        ) from error


def _is_served(socket: Path) -> bool:
    """True if a process listens on it, False if none does. Raises OSError if that cannot be known."""
    with sockets.socket(sockets.AF_UNIX) as probe:
        probe.settimeout(1.0)
        try:
            probe.connect(str(socket.absolute()))
        except (ConnectionRefusedError, FileNotFoundError):
            return False
        except (BlockingIOError, TimeoutError):
            return True  # it listens, and has no room for one more
    return True


def _silence(socket: Path, waited_s: float) -> str:
    """Why no connection came about, as a sentence."""
    try:
        if _is_served(socket):
            return f"the trainer's socket took no connection for {waited_s:.0f} s; read the trainer's log"
    except OSError as error:
        return (
            f"the trainer's socket cannot be opened ({error.strerror or error}); run gateway and trainer as the same "
            "user, in folders that it may enter"
        )
    return f"nothing listens on the trainer's socket after {waited_s:.0f} s; start the trainer"


def _address(socket: Path) -> str:
    if (why := unix_sockets.too_long(socket)) is not None:
        raise SiteFailure(why)
    # gRPC reads it as a URI, in which ?, # and % have meanings.
    return f"unix:{quote(os.fsencode(socket.absolute()))}"
