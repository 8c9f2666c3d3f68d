"""The server's side of the calls beside Flower's Fleet API (`common/wire/gateway_calls.py`).

Flower's own interceptor authenticates each call, as if it were one of Flower's. A stream checks the key again each
time it is woken, so that a revoked key is cut off at once.
"""

import json
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TypeAlias

import grpc
from flwr.proto.fleet_pb2 import ActivateNodeRequest, PullMessagesRequest
from flwr.proto.node_pb2 import Node
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor

from common.wire import CHECK_HEADER
from common.wire.codec import SCHEMA
from common.wire.gateway_calls import (
    CONNECT,
    DOWNLOAD,
    LINE_OPTIONS,
    MESSAGE,
    NODE_HEADER,
    NOTHING,
    NOTHING_S,
    PROCESS_HEADER,
    ROUND_TRIP_HEADER,
    SCHEMA_HEADER,
    SILENT_S,
    UPLOAD,
    VERSION_HEADER,
)
from server.transport import flower_state
from server.transport.gateway_record import GatewayRecord
from server.transport.presence import Presence
from server.transport.weight_files import TooMuch, WeightFiles

MOST_IN_HAND_BYTES = 2**16
"""Of the list of messages that a gateway has in hand; it works on one or two."""

_FLOWERS_CALL = "/flwr.proto.Fleet/PullMessages"
_ACTIVATE = "/flwr.proto.Fleet/ActivateNode"
_HEARTBEAT = "/flwr.proto.Fleet/SendNodeHeartbeat"

Authenticate: TypeAlias = Callable[[Any], None]
"""Aborts the call if its key is not that of its node."""


@contextmanager
def short_windows() -> Iterator[None]:
    """Within, a server that Flower makes has `LINE_OPTIONS`, for which Flower has no setting."""
    make = grpc.server

    def server(*arguments: Any, options: Iterable[tuple[str, Any]] = (), **rest: Any) -> grpc.Server:
        return make(*arguments, options=[*options, *LINE_OPTIONS], **rest)

    grpc.server = server
    try:
        yield
    finally:
        grpc.server = make


class _AsFlowersCall:
    """The details of a call, as Flower's authentication expects them: it looks at its own service only."""

    def __init__(self, details: Any) -> None:
        self.method, self.invocation_metadata = _FLOWERS_CALL, details.invocation_metadata


class GatewayCalls(grpc.ServerInterceptor):  # type: ignore[misc]
    """Answers Connect, Download and Upload of nodes that Flower authenticates; passes on every other call."""

    def __init__(self, presence: Presence, files: WeightFiles, states: Any) -> None:
        self._presence, self._files, self._states = presence, files, states
        self._authentication = NodeAuthServerInterceptor(states)

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """The handler of one call."""
        if handler_call_details.method not in (CONNECT, DOWNLOAD, UPLOAD):
            return continuation(handler_call_details)
        metadata = dict(handler_call_details.invocation_metadata)
        number = str(metadata.get(NODE_HEADER, ""))
        node = int(number) if number.isdecimal() else 0
        echo = grpc.unary_unary_rpc_method_handler(lambda request, _context: request)
        checked = self._authentication.intercept_service(
            lambda _details: echo, _AsFlowersCall(handler_call_details)
        )

        def authenticate(context: Any) -> None:
            checked.unary_unary(PullMessagesRequest(node=Node(node_id=node)), context)

        match handler_call_details.method:
            case "/consilium.Gateway/Connect":
                process = str(metadata.get(PROCESS_HEADER, ""))
                return grpc.unary_stream_rpc_method_handler(
                    lambda request, context: self._connect(node, process, request, context, authenticate)
                )
            case "/consilium.Gateway/Download":
                return grpc.unary_stream_rpc_method_handler(
                    lambda name, context: self._download(node, name, context, authenticate)
                )
            case _:
                return grpc.stream_unary_rpc_method_handler(
                    lambda pieces, context: self._upload(node, pieces, context, authenticate)
                )

    def _connect(
        self, node: int, process: str, request: bytes, context: Any, authenticate: Authenticate
    ) -> Iterator[bytes]:
        authenticate(context)
        if len(request) > MOST_IN_HAND_BYTES:
            context.abort(grpc.StatusCode.INVALID_ARGUMENT, "too many messages in hand")
        in_hand = set(map(str, json.loads(request)))
        state = self._states.state()
        stream = self._presence.open(node, process)
        context.add_callback(stream.close)
        try:
            flower_state.offer_again(state, self._presence, node, in_hand)
            yield MESSAGE
            while True:
                woken = stream.wait(NOTHING_S)
                if stream.is_over or stream.silent_s > SILENT_S:
                    return
                if woken:
                    authenticate(context)  # the key may have been revoked meanwhile
                yield MESSAGE if woken else NOTHING
        finally:
            if self._presence.close(stream):
                flower_state.set_offline(state, node)

    def _signs_of_life(self, node: int, pieces: Iterator[bytes]) -> Iterator[bytes]:
        for piece in pieces:
            self._presence.hear(node)
            yield piece

    def _download(self, node: int, name: bytes, context: Any, authenticate: Authenticate) -> Iterator[bytes]:
        authenticate(context)
        try:
            yield from self._signs_of_life(node, self._files.read(node, name[:64].decode(errors="replace")))
        except FileNotFoundError:
            context.abort(grpc.StatusCode.NOT_FOUND, "no such weights; their round is over")

    def _upload(self, node: int, pieces: Iterator[bytes], context: Any, authenticate: Authenticate) -> bytes:
        authenticate(context)
        try:
            return self._files.write(node, self._signs_of_life(node, pieces)).encode()
        except TooMuch as refused:
            context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, str(refused))
            raise  # abort has raised already


class GatewayInterceptor(grpc.ServerInterceptor):  # type: ignore[misc]
    """Looks at activations and heartbeats that Flower has authenticated, before Flower carries them out.

    A gateway must understand the messages of this server. A process that lost its line unnoticed may come back at once.
    """

    def __init__(self, presence: Presence, states: Any, record: GatewayRecord) -> None:
        self._presence, self._states, self._record = presence, states, record

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of an activation, or of a heartbeat."""
        handler = continuation(handler_call_details)
        if handler_call_details.method == _HEARTBEAT:
            return self._heard(handler, dict(handler_call_details.invocation_metadata))
        if handler_call_details.method != _ACTIVATE:
            return handler
        metadata = dict(handler_call_details.invocation_metadata)

        def answer(request: ActivateNodeRequest, context: Any) -> Any:
            if CHECK_HEADER not in metadata:
                self._admit(request, metadata, context)
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )

    def _heard(self, handler: Any, metadata: dict[str, Any]) -> Any:
        def answer(request: Any, context: Any) -> Any:
            self._presence.hear(request.node.node_id)
            self._record.timed(request.node.node_id, str(metadata.get(ROUND_TRIP_HEADER, "")))
            return handler.unary_unary(request, context)

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )

    def _admit(self, request: ActivateNodeRequest, metadata: dict[str, Any], context: Any) -> None:
        state = self._states.state()
        node = state.get_node_id_by_public_key(request.public_key)
        if node is None:
            return  # Flower refuses it
        schema = str(metadata.get(SCHEMA_HEADER, ""))
        if schema != str(SCHEMA):
            found = f"messages of schema {schema}" if schema.isdecimal() else "no version of messages"
            context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"another version of Consilium: found {found}, expected schema {SCHEMA}",
            )
        if self._presence.replace(node, str(metadata.get(PROCESS_HEADER, ""))):
            flower_state.set_offline(state, node)
        self._record.connected(node, str(metadata.get(VERSION_HEADER, "")))
