"""The way of a message through the gateway: from the server to the trainer, and of its answer back; no logic.

What is done with a message is fixed here. A plan is forwarded unread to the trainer's socket, and only a trainer
understands plans. Large arrays pass piece by piece between server and trainer, so a gateway never holds a model.
"""

import itertools
import uuid
from collections.abc import Iterable, Iterator
from typing import Protocol

import grpc
from flwr.app import RecordDict

from client.gateway.connection import CallFailed, MessageGone
from client.gateway.link import SocketLink
from common import log, wire
from common.errors import SiteFailure, WireError
from common.wire import codec, flower_codec
from common.wire.gateway_calls import INLINE_BYTES
from common.wire.signed_heads import SignedHead

_ADVICE: dict[wire.ErrorKind, str] = {
    "unreachable": "the site's trainer did not answer its gateway; the gateway's log has the reason",
    "message": "the site's gateway could not pass on a message; install the same version on all sides",
    "internal": "an unexpected error in the site's gateway; its log has the details",
}


class Server(Protocol):
    """The server as the gateway reaches it: where arrays beside messages come from and go to, in this site's name."""

    def download(self, name: str, timeout_s: float) -> Iterator[bytes]:
        """A file in pieces. Raises CallFailed."""

    def upload(self, pieces: Iterable[bytes], timeout_s: float) -> str:
        """The name of the file that these pieces became. Raises CallFailed."""

    def signed(self, audit_head: str) -> SignedHead:
        """The head of the trainer's audit log, signed with this site's key."""


def answer(content: RecordDict, link: SocketLink, server: Server, timeout_s: float) -> RecordDict:
    """The site's answer to a message. Whatever goes wrong at the site is an answer, too.

    Raises CallFailed where the line to the server fails: the message can then be answered once more. Raises
    MessageGone if the server does not wait for it, WireError for a message that does not even say what it is.
    """
    if flower_codec.is_probe(content):
        return flower_codec.probe()
    try:
        reply = _from_trainer(content, link, server, timeout_s)
        return flower_codec.with_head(reply, server.signed(link.audit_head)) if link.audit_head else reply
    except MessageGone:
        raise
    except CallFailed as failed:
        if failed.code != grpc.StatusCode.RESOURCE_EXHAUSTED:
            raise
        return _refusal(content, WireError(f"the server does not take this answer: {failed.details}"))
    except Exception as error:  # no text of an exception may leave the site
        return _refusal(content, error)


def _from_trainer(content: RecordDict, link: SocketLink, server: Server, timeout_s: float) -> RecordDict:
    apart = flower_codec.beside(content)
    if apart is None:
        whole = flower_codec.records_to_bytes(content)

    def request() -> Iterator[bytes]:
        if apart is None:
            return codec.chunks(whole)
        return codec.with_header(apart.header, server.download(apart.name, timeout_s), apart.size)

    def receive(pieces: Iterator[bytes]) -> RecordDict:
        start = b""
        for piece in pieces:
            start += piece
            if len(start) > INLINE_BYTES:
                break
        else:
            return flower_codec.bytes_to_records(start)
        sent = _Counted(itertools.chain([start], pieces))
        name = server.upload(sent, timeout_s)
        return flower_codec.Beside("", name, sent.size).records()

    return link.pass_on(request, receive, timeout_s)


class _Counted:
    """An iterator over pieces that counts their bytes."""

    def __init__(self, pieces: Iterator[bytes]) -> None:
        self._pieces, self.size = pieces, 0

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._pieces:
            self.size += len(piece)
            yield piece


def _refusal(content: RecordDict, error: Exception) -> RecordDict:
    case, kind = uuid.uuid4().hex[:8], _kind(error)
    log.logger.exception("case %s", case)
    return flower_codec.refuse(content, kind, case, _ADVICE[kind])


def _kind(error: Exception) -> wire.ErrorKind:
    match error:
        case SiteFailure():
            return "unreachable"
        case WireError():
            return "message"
        case _:
            return "internal"
