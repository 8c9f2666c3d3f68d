"""One connection to the server: Flower's Fleet API, and the calls beside it, signed with this site's key.

Only what a gateway needs of the Fleet API is here: activate, pull, push, confirm, deactivate. Nothing asks for a
run or for its app, so no code from the server ever reaches a hospital. For a connection that was lost the
relay makes another.
"""

import json
import threading
import time
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import grpc
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.client.grpc_rere_client.node_auth_client_interceptor import NodeAuthClientInterceptor
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER, ErrorCode
from flwr.common.serde import message_from_proto, message_to_proto
from flwr.proto.fleet_pb2 import (
    ActivateNodeRequest,
    ActivateNodeResponse,
    DeactivateNodeRequest,
    DeactivateNodeResponse,
    PullMessagesRequest,
    PullMessagesResponse,
    PushMessagesRequest,
    PushMessagesResponse,
)
from flwr.proto.heartbeat_pb2 import SendNodeHeartbeatRequest, SendNodeHeartbeatResponse
from flwr.proto.message_pb2 import (
    ConfirmMessageReceivedRequest,
    ConfirmMessageReceivedResponse,
    PullObjectResponse,
    PushObjectResponse,
)
from flwr.proto.node_pb2 import Node
from flwr.supercore.error import ApiErrorCode, FlowerError
from flwr.supercore.inflatable.inflatable_object import (
    get_all_nested_objects,
    get_object_tree,
    iterate_object_tree,
    no_object_id_recompute,
)
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_pull_object_fn_protobuf,
    make_push_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    ObjectPullError,
    ObjectPushError,
    inflate_object_from_contents,
    pull_objects,
    push_objects,
)

from client.gateway.settings import GatewayConfig, authority
from common import keys, release
from common.wire.codec import SCHEMA
from common.wire.gateway_calls import (
    CONNECT,
    DOWNLOAD,
    LINE_OPTIONS,
    MESSAGE,
    NODE_HEADER,
    NOTHING_S,
    PROCESS_HEADER,
    ROUND_TRIP_HEADER,
    SCHEMA_HEADER,
    SILENT_S,
    UPLOAD,
    VERSION_HEADER,
)
from common.wire.signed_heads import SignedHead, sign

HEARTBEAT_S = 30.0
"""The server counts this site as reachable for twice as long after its last sign of life."""
CALL_S = 20.0
"""For one small call. A slow line may be busy with weights meanwhile."""
OBJECTS_S = 60.0
"""For the parts of a message to arrive at the server, after it has shown the message."""

_LINE_FAILED = (
    grpc.StatusCode.UNAVAILABLE,
    grpc.StatusCode.CANCELLED,
    grpc.StatusCode.DEADLINE_EXCEEDED,
    grpc.StatusCode.UNAUTHENTICATED,
)
"""Codes after which a call may succeed on another connection."""

_PROCESS = uuid.uuid4().hex
_OPTIONS = [
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
    *LINE_OPTIONS,
    ("grpc.use_local_subchannel_pool", 1),  # a new connection does not inherit the pauses of the one before
]


class MessageGone(Exception):
    """The server wants no answer to this message any more: its study is over, or it was sent again."""


class CallFailed(Exception):
    """A call to the server failed; the connection may be lost."""

    def __init__(self, code: grpc.StatusCode, details: str) -> None:
        super().__init__(f"{code.name}: {details}")
        self.code, self.details = code, details

    @property
    def is_of_the_line(self) -> bool:
        """True if the same call may succeed on another connection."""
        return self.code in _LINE_FAILED


@contextmanager
def _calling() -> Iterator[None]:
    """Within, gRPC's errors become MessageGone or CallFailed."""
    try:
        yield
    except grpc.RpcError as error:
        details = str(error.details() or "")
        flowers = FlowerError.from_json(error.details())
        if flowers is not None and flowers.code == ApiErrorCode.FLEET_RUN_STATUS_NOT_ALLOWED:
            raise MessageGone("its study is over") from error
        if error.code() == grpc.StatusCode.NOT_FOUND:
            raise MessageGone(details) from error
        raise CallFailed(error.code(), details) from error
    except ValueError as error:  # gRPC's error for a channel that another thread has closed
        raise CallFailed(grpc.StatusCode.CANCELLED, "the connection was closed") from error


@dataclass(frozen=True)
class Offer:
    """A message that waits for this site, before its content is there."""

    about: Message
    tree: Any
    """Flower's ObjectTree: ids of the content's parts."""

    @property
    def message_id(self) -> str:
        """Flower's id of the message."""
        return str(self.about.metadata.message_id)

    @property
    def ttl(self) -> float:
        """Seconds in which the server wants an answer."""
        return float(self.about.metadata.ttl)


def reply(offer: Offer, content: RecordDict | None) -> Message:
    """The answer to a message, which may be sent more than once. Without content it says that there is none."""
    if content is None:
        return Message(Error(code=ErrorCode.CLIENT_APP_RAISED_EXCEPTION, reason=""), reply_to=offer.about)
    return Message(content, reply_to=offer.about)


class Connection:
    """A channel to the server and, once activated, the node that this site's key stands for."""

    def __init__(self, config: GatewayConfig) -> None:
        self._site = config.site
        private = keys.read_private(config.key)
        self._private, self._public = private, keys.flower_form(private.public_key())
        self._channel = grpc.secure_channel(
            config.server, grpc.ssl_channel_credentials(authority(config)), options=_OPTIONS
        )
        fleet = grpc.intercept_channel(
            self._channel,
            NodeAuthClientInterceptor(private, private.public_key()),
        )
        self._node = Node(node_id=0)
        self._heard_at, self._is_silent, self._is_cut = time.monotonic(), False, threading.Event()
        self._round_trip_ms: int | None = None

        # Flower's stub is not used: gRPC 1.85.1 crashes when one of its calls meets a channel that was closed.
        def call(method: str, response: Any) -> Any:
            return fleet.unary_unary(
                f"/flwr.proto.Fleet/{method}",
                request_serializer=lambda request: request.SerializeToString(),
                response_deserializer=response.FromString,
            )

        self._activate = call("ActivateNode", ActivateNodeResponse)
        self._deactivate = call("DeactivateNode", DeactivateNodeResponse)
        self._pull_messages = call("PullMessages", PullMessagesResponse)
        self._push_messages = call("PushMessages", PushMessagesResponse)
        self._pull_object = call("PullObject", PullObjectResponse)
        self._push_object = call("PushObject", PushObjectResponse)
        self._heartbeat = call("SendNodeHeartbeat", SendNodeHeartbeatResponse)
        self._confirm = call("ConfirmMessageReceived", ConfirmMessageReceivedResponse)
        self._connect = self._channel.unary_stream(CONNECT)
        self._download = self._channel.unary_stream(DOWNLOAD)
        self._upload = self._channel.stream_unary(UPLOAD)

    # --- connected -----------------------------------------------------------------------

    def activate(self) -> None:
        """Tell the server that this site is there. Raises CallFailed."""
        request = ActivateNodeRequest(public_key=self._public, heartbeat_interval=HEARTBEAT_S)
        ours = (
            (PROCESS_HEADER, _PROCESS),
            (SCHEMA_HEADER, str(SCHEMA)),
            (VERSION_HEADER, release.version()),
        )
        with _calling():
            answer = self._activate(request, metadata=ours, timeout=CALL_S)
        self._node = Node(node_id=answer.node_id)

    def wakes(self, in_hand: Iterable[str]) -> Iterator[None]:
        """One item whenever messages may wait, the first at once; ends with the connection.

        Messages `in_hand` are not offered again. Raises CallFailed.
        """
        ours = (*self._signed(), (PROCESS_HEADER, _PROCESS))
        with _calling():
            said = self._connect(json.dumps(sorted(in_hand)).encode(), metadata=ours)
        self._hear()
        threading.Thread(target=self._watch, name="signs of life", daemon=True).start()
        while True:
            try:
                with _calling():
                    word = next(said, None)
            except CallFailed as failed:
                if self._is_silent:
                    raise CallFailed(grpc.StatusCode.UNAVAILABLE, f"nothing for {SILENT_S:.0f} s") from failed
                raise
            if word is None:
                return
            self._hear()
            if word == MESSAGE:
                yield

    def _watch(self) -> None:
        """Send signs of life, and give the line up when none come back."""
        while not self._is_cut.wait(NOTHING_S):
            if time.monotonic() - self._heard_at > SILENT_S:
                self._is_silent = True
                self.cut()
                return
            with suppress(CallFailed, MessageGone), _calling():
                request = SendNodeHeartbeatRequest(node=self._node, heartbeat_interval=HEARTBEAT_S)
                last = self._round_trip_ms
                ours = () if last is None else ((ROUND_TRIP_HEADER, str(last)),)
                answer = self._heartbeat.future(request, metadata=ours, timeout=SILENT_S)
                answer.add_done_callback(partial(self._heard, time.monotonic()))

    def _heard(self, sent_at: float, call: grpc.Future) -> None:
        if call.code() == grpc.StatusCode.OK:
            self._hear()
            self._round_trip_ms = round(1000 * (self._heard_at - sent_at))

    def _hear(self) -> None:
        self._heard_at = time.monotonic()

    def close(self) -> None:
        """Leave, and end every call that is under way."""
        if self._node.node_id:
            with suppress(CallFailed, MessageGone), _calling():
                self._deactivate(DeactivateNodeRequest(node_id=self._node.node_id), timeout=2.0)
        self.cut()

    def cut(self) -> None:
        """End every call that is under way."""
        self._is_cut.set()
        self._channel.close()

    # --- messages ------------------------------------------------------------------------

    def next_offer(self) -> Offer | None:
        """A message that waits; None if there is none. Raises CallFailed."""
        with _calling():
            answer = self._pull_messages(PullMessagesRequest(node=self._node), timeout=CALL_S)
        if not answer.messages_list:
            return None
        return Offer(message_from_proto(answer.messages_list[0]), answer.message_object_trees[0])

    def content(self, offer: Offer) -> RecordDict:
        """The content of a message. Raises MessageGone, CallFailed."""
        wanted = [part.object_id for part in iterate_object_tree(offer.tree)]
        pull = make_pull_object_fn_protobuf(
            lambda request: self._pull_object(request, timeout=CALL_S),
            self._node,
            offer.about.metadata.run_id,
        )
        try:
            with _calling():
                parts = pull_objects(
                    list(dict.fromkeys(wanted)),
                    pull,
                    initial_backoff=0.02,
                    backoff_cap=0.5,
                    max_time=OBJECTS_S,
                )
        except ObjectPullError as error:
            raise MessageGone(str(error)) from error
        message: Any = inflate_object_from_contents(offer.message_id, parts)
        content: RecordDict = message.content
        return content

    def send(self, offer: Offer, answer: Message, seconds: float) -> None:
        """Hand over an answer, which took the site so long; then confirm the message.

        Raises MessageGone, CallFailed.
        """
        run_id = offer.about.metadata.run_id
        try:
            with _calling(), no_object_id_recompute():
                answer.metadata.__dict__["_message_id"] = answer.object_id
                taken = self._push_messages(
                    PushMessagesRequest(
                        node=self._node,
                        messages_list=[message_to_proto(remove_content_from_message(answer))],
                        message_object_trees=[get_object_tree(answer)],
                        clientapp_runtime_list=[seconds],
                    ),
                    timeout=CALL_S,
                )
                push_objects(
                    get_all_nested_objects(answer),
                    make_push_object_fn_protobuf(
                        lambda request: self._push_object(request, timeout=CALL_S),
                        self._node,
                        run_id,
                        taken.session_id,
                    ),
                    object_ids_to_push=set(taken.objects_to_push),
                )
                self._confirm(
                    ConfirmMessageReceivedRequest(
                        node=self._node, run_id=run_id, message_object_id=offer.message_id
                    ),
                    timeout=CALL_S,
                )
        except ObjectPushError as error:
            raise MessageGone(str(error)) from error

    # --- arrays beside messages ----------------------------------------------------------

    def download(self, name: str, timeout_s: float) -> Iterator[bytes]:
        """A file of arrays in pieces. Raises MessageGone, CallFailed."""
        with _calling():
            for piece in self._download(name.encode(), metadata=self._signed(), timeout=timeout_s):
                self._hear()
                yield piece

    def upload(self, pieces: Iterable[bytes], timeout_s: float) -> str:
        """Send an answer in pieces; returns the name of its file. Raises CallFailed."""
        with _calling():
            name: bytes = self._upload(iter(pieces), metadata=self._signed(), timeout=timeout_s)
        return name.decode()

    def signed(self, audit_head: str) -> SignedHead:
        """The head of the trainer's audit log, signed with this site's key."""
        return sign(self._site, audit_head, self._private)

    def _signed(self) -> tuple[tuple[str, str | bytes], ...]:
        now = datetime.now(UTC).isoformat()
        return (
            (PUBLIC_KEY_HEADER, self._public),
            (TIMESTAMP_HEADER, now),
            (SIGNATURE_HEADER, self._private.sign(now.encode(), ec.ECDSA(hashes.SHA256()))),
            (NODE_HEADER, str(self._node.node_id)),
        )
