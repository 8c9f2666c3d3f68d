"""The way from the gateway to the trainer: bytes there, bytes back.

In a hospital the two share nothing but a Unix socket, so the trainer needs no network at
all. For tests and simulation the same bytes go straight to a trainer in this process, which
keeps one code path for what is said. No code is generated: gRPC carries opaque chunks.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Protocol

import grpc

from common.errors import SiteFailure
from common.wire import TRAINER_METHOD, TRAINER_SERVICE, chunks

_OPTIONS = [("grpc.max_receive_message_length", 16 * 2**20)]
# sun_path of struct sockaddr_un holds 108 bytes with its closing zero (unix(7)).
_LONGEST_SOCKET_PATH = 107


class Link(Protocol):
    """Carries one plan to a trainer and brings its answer back."""

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """The answer's bytes. Raises SiteFailure if the trainer does not answer in time."""


class SocketLink:
    """A trainer behind a Unix socket."""

    def __init__(self, socket: Path) -> None:
        self._socket = socket

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """Send `request`, wait at most `timeout_s` for the whole answer."""
        with grpc.insecure_channel(_address(self._socket), options=_OPTIONS) as channel:
            call = channel.stream_stream(f"/{TRAINER_SERVICE}/{TRAINER_METHOD}")
            try:
                return b"".join(call(chunks(request), timeout=timeout_s, wait_for_ready=True))
            except grpc.RpcError as error:
                raise SiteFailure(
                    f"the trainer did not answer on its socket within {timeout_s:.0f} s "
                    f"({error.code().name}); start it, or read its log"
                ) from error


def serve(answer: Callable[[bytes], bytes], socket: Path) -> grpc.Server:
    """Listen on `socket` and answer one plan at a time; the caller stops the server."""

    def handle(request: Iterator[bytes], _context: grpc.ServicerContext) -> Iterator[bytes]:
        yield from chunks(answer(b"".join(request)))

    # Bound with the owner's rights only: whoever can open the socket can hand in plans.
    socket.parent.mkdir(parents=True, exist_ok=True)
    socket.unlink(missing_ok=True)
    server = grpc.server(ThreadPoolExecutor(max_workers=1), options=_OPTIONS)
    handlers = {TRAINER_METHOD: grpc.stream_stream_rpc_method_handler(handle)}
    server.add_registered_method_handlers(TRAINER_SERVICE, handlers)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(TRAINER_SERVICE, handlers),))
    server.add_insecure_port(_address(socket))
    server.start()
    socket.chmod(0o600)
    return server


def _address(socket: Path) -> str:
    path = str(socket.absolute())
    if len(path.encode()) > _LONGEST_SOCKET_PATH:
        raise SiteFailure(
            f"the socket's path has {len(path.encode())} bytes, a Unix socket allows "
            f"{_LONGEST_SOCKET_PATH}; give a shorter one"
        )
    return f"unix:{path}"
