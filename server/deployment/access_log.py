"""Door of the server: a log of refused connections, and of calls that Flower would let pass.

Flower refuses a key that is not enrolled, a clock that is wrong, and a request without a signature. Its own log
names no address, and for a wrong clock no caller at all. Here every refusal adds one line to RECORD: when, from
which address, with which key, how far its clock is off, and why. `up` reads RECORD into its own log. The same
caller is noted once a minute, and a large file is started again, so that repeated calls fill no disk.

A call has to be of the key that it names: Flower checks who signed it, and then connects the node of whichever key
stands in the request.
"""

import contextlib
import time
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import grpc
from flwr.common.constant import PUBLIC_KEY_HEADER, TIMESTAMP_HEADER

from common import keys
from common.errors import ConfigError
from common.wire import CHECK_HEADER
from server.deployment.refusals import OTHER_USER, OTHERS_KEY, Refusal

AGAIN_S = 60.0
MOST_CALLERS, LARGEST = 1000, 2**20

_FLEET, _ENTRIES = "/flwr.proto.Fleet/", ("ActivateNode", "RegisterNode")


class RefusalRecorder(grpc.ServerInterceptor):  # type: ignore[misc]
    """Refuses calls in another's name, and records every refused call of the Fleet API."""

    def __init__(self, record: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._record, self._clock = record, clock
        self._noted: dict[tuple[str, str, str], float] = {}

    def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        """Wrap the handler of one call."""
        handler = continuation(handler_call_details)
        if not handler_call_details.method.startswith(_FLEET) or handler.unary_unary is None:
            return handler
        metadata = dict(handler_call_details.invocation_metadata)
        is_entry = handler_call_details.method.removeprefix(_FLEET) in _ENTRIES

        def answer(request: Any, context: Any) -> Any:
            if is_in_others_name(request, metadata):
                with contextlib.suppress(Exception):
                    self.note(context.peer(), metadata, OTHERS_KEY)
                context.abort(grpc.StatusCode.PERMISSION_DENIED, OTHERS_KEY)
            try:
                return handler.unary_unary(request, context)
            except Exception as error:
                with contextlib.suppress(Exception):  # an error here must not let the call pass
                    if is_entry or context.code() == grpc.StatusCode.UNAUTHENTICATED:
                        # Flower's own errors repeat the whole key before they give the reason.
                        message = str(error).rpartition("exception: ")[2] or _details(context)
                        self.note(context.peer(), metadata, message)
                raise

        return grpc.unary_unary_rpc_method_handler(
            answer, handler.request_deserializer, handler.response_serializer
        )

    def note_user(self, user: int | None) -> None:
        """Write that a user of this machine called Flower's own APIs."""
        with contextlib.suppress(Exception):
            self.note("ipv4:127.0.0.1:0", {}, f"{OTHER_USER}{'unknown' if user is None else user}")

    def note(self, peer: str, metadata: dict[str, Any], what: str) -> None:
        """Write one line, unless the same was written a moment ago."""
        address, fingerprint, now = host_of(peer), _fingerprint(metadata), self._clock()
        caller = (address, fingerprint, what[:200])
        if now - self._noted.get(caller, -AGAIN_S) < AGAIN_S:
            return
        if len(self._noted) >= MOST_CALLERS:
            self._noted.clear()
        self._noted[caller] = now
        refusal = Refusal(
            time=datetime.now(UTC),
            address=address,
            fingerprint=fingerprint,
            clock_s=_clock_s(metadata),
            what=what[:200],
            check=CHECK_HEADER in metadata,
        )
        too_large = self._record.exists() and self._record.stat().st_size > LARGEST
        with self._record.open("w" if too_large else "a", encoding="utf-8") as file:
            file.write(refusal.model_dump_json() + "\n")


def is_in_others_name(request: Any, metadata: Mapping[str, Any]) -> bool:
    """Whether a request names a key other than that of its signature, or sends messages of another node."""
    named = getattr(request, "public_key", None)
    if named is not None and named != metadata.get(PUBLIC_KEY_HEADER):
        return True
    messages = getattr(request, "messages_list", ())
    return any(message.metadata.src_node_id != request.node.node_id for message in messages)


def host_of(peer: str) -> str:
    """The address in gRPC's name of a caller: `ipv4:192.0.2.7:51234`, `ipv6:%5B2001:db8::7%5D:51234`."""
    _, _, rest = unquote(peer).partition(":")
    return rest.rpartition(":")[0].strip("[]") or rest


def _fingerprint(metadata: dict[str, Any]) -> str:
    try:
        return keys.fingerprint(keys.from_flower(metadata[PUBLIC_KEY_HEADER]))
    except (KeyError, ConfigError):
        return ""


def _clock_s(metadata: dict[str, Any]) -> float | None:
    try:
        return (datetime.now(UTC) - datetime.fromisoformat(metadata[TIMESTAMP_HEADER])).total_seconds()
    except (KeyError, ValueError, TypeError):
        return None


def _details(context: Any) -> str:
    details = context.details()
    return details.decode(errors="replace") if isinstance(details, bytes) else str(details)
