"""The ServerApp's way to the SuperLink: the same requests to the same handlers, over a Unix socket.

Flower's Runtime API answers over HTTP through several layers, each request for ten times what its handler costs.
The token of the ServerApp's task is Flower's, and Flower's own state checks it, as it does over HTTP. The socket's
folder is the server's user's alone. `Answered` is a
stream of the messages that have been answered, so the ServerApp never polls.
"""

import os
import queue
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import quote

import grpc
from flwr.proto import message_pb2, runtime_pb2
from flwr.serverapp import Grid

from server.transport.presence import Presence
from server.transport.weight_files import WeightFiles

SOCKET, FILES = "CONSILIUM_HUB_SOCKET", "CONSILIUM_WEIGHT_FILES"
"""Environment of the ServerApp, which the SuperLink starts."""
LOOK_S = 5.0
"""Pause between two looks for answers that are not announced: Flower's own, for a site that is not connected."""

_SERVICE, _ANSWERED, _TOKEN = "consilium.Hub", "Answered", "token"
_OPTIONS = [
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    ("grpc.enable_http_proxy", 0),
]
_METHODS: dict[str, tuple[str, Any, Any]] = {
    "PushMessages": (
        "push_messages", runtime_pb2.PushAppMessagesRequest, runtime_pb2.PushAppMessagesResponse
    ),
    "PullMessages": (
        "pull_messages", runtime_pb2.PullAppMessagesRequest, runtime_pb2.PullAppMessagesResponse
    ),
    "PushObject": ("push_object", message_pb2.PushObjectRequest, message_pb2.PushObjectResponse),
    "PullObject": ("pull_object", message_pb2.PullObjectRequest, message_pb2.PullObjectResponse),
    "ConfirmMessageReceived": (
        "confirm_message_received",
        message_pb2.ConfirmMessageReceivedRequest,
        message_pb2.ConfirmMessageReceivedResponse,
    ),
    "GetNodes": ("get_nodes", runtime_pb2.GetNodesRequest, runtime_pb2.GetNodesResponse),
}  # fmt: skip
"""By method of Flower's client: its handler's name, its request and its response."""


# --- in the SuperLink's process ---------------------------------------------------------------


def serve(path: Path, states: Any, presence: Presence) -> grpc.Server:
    """Answer the ServerApp on the socket at `path`, whose folder is this user's alone."""
    from flwr.superlink.servicer.runtime import runtime_handlers

    def authenticated(context: grpc.ServicerContext) -> Any:
        token = str(dict(context.invocation_metadata()).get(_TOKEN, ""))
        task = states.state().get_task_by_token(token) if token else None
        if task is None:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "no task has this token")
        return task

    def handler(name: str, request_type: Any) -> Any:
        handle = getattr(runtime_handlers, name)

        def answer(request: Any, context: grpc.ServicerContext) -> Any:
            return handle(request, states.state(), authenticated(context))

        return grpc.unary_unary_rpc_method_handler(
            answer, request_type.FromString, lambda response: response.SerializeToString()
        )

    def answered(_request: bytes, context: grpc.ServicerContext) -> Iterator[bytes]:
        authenticated(context)
        listener = presence.listen()
        context.add_callback(lambda: listener.put(""))
        try:
            context.send_initial_metadata(())  # from here on nothing is missed
            while message_id := listener.get():
                yield message_id.encode()
        finally:
            presence.leave(listener)

    server = grpc.server(ThreadPoolExecutor(max_workers=8), options=_OPTIONS)
    handlers = {method: handler(name, request) for method, (name, request, _) in _METHODS.items()}
    handlers[_ANSWERED] = grpc.unary_stream_rpc_method_handler(answered)
    server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(_SERVICE, handlers),))
    path.unlink(missing_ok=True)
    former = os.umask(0o177)
    try:
        server.add_insecure_port(_address(path))
    finally:
        os.umask(former)
    server.start()
    return server


def _address(path: Path) -> str:
    return f"unix:{quote(os.fsencode(path.absolute()))}"  # gRPC reads it as a URI


# --- in the ServerApp's process ---------------------------------------------------------------


class Client:
    """Stands in for Flower's HTTP client in a Grid; what it does not offer, the former client does."""

    def __init__(self, channel: grpc.Channel, token: str, former: Any) -> None:
        self._former = former
        for method, (_, _, response) in _METHODS.items():
            call = channel.unary_unary(
                f"/{_SERVICE}/{method}", lambda request: request.SerializeToString(), response.FromString
            )
            setattr(self, method, _with_token(call, token))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._former, name)


def _with_token(call: Callable[..., Any], token: str) -> Callable[[Any], Any]:
    return lambda request: call(request, metadata=((_TOKEN, token),))


class Announcements:
    """Ids of answered messages, as the SuperLink says them."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self._heard: queue.SimpleQueue[str] = queue.SimpleQueue()
        call = channel.unary_stream(f"/{_SERVICE}/{_ANSWERED}")(b"", metadata=((_TOKEN, token),))
        call.initial_metadata()  # the SuperLink listens
        threading.Thread(target=self._listen, args=(call,), daemon=True, name="answers").start()

    def wait(self, waited_s: float, left_s: float) -> set[str] | None:  # noqa: ARG002
        """Messages that were answered; None after `LOOK_S` without any, to look at all."""
        try:
            first = self._heard.get(timeout=max(0.0, min(LOOK_S, left_s)))
        except queue.Empty:
            return None
        heard = {first}
        while not self._heard.empty():
            heard.add(self._heard.get())
        return heard

    def _listen(self, call: Any) -> None:
        try:
            for message_id in call:
                self._heard.put(message_id.decode())
        except grpc.RpcError:
            return  # the SuperLink has ended; the next request says so


def connect(grid: Grid) -> tuple[Announcements, WeightFiles] | None:
    """Let `grid` use the hub of this machine's SuperLink; None if there is none."""
    path, folder = os.environ.get(SOCKET), os.environ.get(FILES)
    if path is None or folder is None:
        return None
    http: Any = grid
    channel = grpc.insecure_channel(_address(Path(path)), options=_OPTIONS)
    http._client = Client(channel, http._token, http._runtime_client)
    files = WeightFiles(Path(folder))
    files.clear()
    return Announcements(channel, http._token), files
