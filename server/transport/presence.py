"""Presence of gateways: one open stream per node, and who has to hear that a message is complete.

Flower shows a message before its objects are there, and sends no word of either. Here a message counts when its last
object has been stored: then the node's stream is woken, or the ServerApp hears which of its messages was answered. So
neither side polls. This file knows no gRPC and no database.
"""

import queue
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(eq=False)
class Stream:
    """One gateway's open stream."""

    node: int
    process: str
    """Random name of the gateway's process."""
    heard_at: float = field(default_factory=time.monotonic)
    """When the gateway was heard of last, by the monotonic clock."""
    _wake: threading.Event = field(default_factory=threading.Event)
    _over: bool = False

    def wait(self, seconds: float) -> bool:
        """True once a message may wait, or the stream is over; False after so many seconds."""
        woken = self._wake.wait(seconds)
        self._wake.clear()
        return woken

    def wake(self) -> None:
        """End the wait."""
        self._wake.set()

    @property
    def silent_s(self) -> float:
        """Seconds since the gateway was heard of."""
        return time.monotonic() - self.heard_at

    def close(self) -> None:
        """The stream is over: its call ended, or another stream took its place."""
        self._over = True
        self._wake.set()

    @property
    def is_over(self) -> bool:
        """True after `close`."""
        return self._over


@dataclass
class _Upload:
    """Messages whose objects are on their way, in one of Flower's push sessions."""

    whom: list[tuple[int, str]] = field(default_factory=list)
    """Destination node, and the message that is answered (empty for a plan)."""
    missing: set[str] = field(default_factory=set)


class Presence:
    """Who is connected, and who waits for what. Thread-safe."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._streams: dict[int, Stream] = {}
        self._uploads: dict[str, _Upload] = {}
        self._listeners: list[queue.SimpleQueue[str]] = []

    # --- streams of gateways -------------------------------------------------------------

    def open(self, node: int, process: str) -> Stream:
        """A new stream of a node; it takes the place of an earlier one."""
        stream = Stream(node, process)
        with self._lock:
            former, self._streams[node] = self._streams.get(node), stream
        if former is not None:
            former.close()
        return stream

    def close(self, stream: Stream) -> bool:
        """End a stream. True if its node is gone with it, False if another stream has taken its place."""
        stream.close()
        with self._lock:
            if self._streams.get(stream.node) is not stream:
                return False
            del self._streams[stream.node]
            return True

    def replace(self, node: int, process: str) -> bool:
        """End the stream of a node whose own process connects again. True if there was one."""
        with self._lock:
            stream = self._streams.get(node)
        return stream is not None and stream.process == process and self.close(stream)

    def wake(self, node: int) -> None:
        """Let the stream of a node look for messages, and check its key."""
        with self._lock:
            stream = self._streams.get(node)
        if stream is not None:
            stream.wake()

    def hear(self, node: int) -> None:
        """A sign of life of a node's gateway has come."""
        with self._lock:
            stream = self._streams.get(node)
        if stream is not None:
            stream.heard_at = time.monotonic()

    # --- messages ------------------------------------------------------------------------

    def registered(self, node: int, reply_to: str, missing: Sequence[str], session: str) -> None:
        """A message to `node` was stored; its objects `missing` follow in the push session `session`."""
        with self._lock:
            if missing:
                upload = self._uploads.setdefault(session, _Upload())
                upload.whom.append((node, reply_to))
                upload.missing.update(missing)
                return
        self._complete(node, reply_to)

    def stored(self, session: str, object_id: str) -> None:
        """An object was stored; the last one of a session completes its messages."""
        with self._lock:
            upload = self._uploads.get(session)
            if upload is None:
                return
            upload.missing.discard(object_id)
            if upload.missing:
                return
            del self._uploads[session]
        for node, reply_to in upload.whom:
            self._complete(node, reply_to)

    def take_unfinished(self, message_ids: set[str]) -> list[str]:
        """Push sessions in which answers to these messages are still on their way; they are forgotten here."""
        with self._lock:
            found = [
                session
                for session, upload in self._uploads.items()
                if any(reply_to in message_ids for _, reply_to in upload.whom)
            ]
            for session in found:
                del self._uploads[session]
        return found

    def _complete(self, node: int, reply_to: str) -> None:
        if not reply_to:
            self.wake(node)
            return
        with self._lock:
            for listener in self._listeners:
                listener.put(reply_to)

    # --- the ServerApp -------------------------------------------------------------------

    def listen(self) -> "queue.SimpleQueue[str]":
        """A queue of the messages that have been answered from now on, by id."""
        listener: queue.SimpleQueue[str] = queue.SimpleQueue()
        with self._lock:
            self._listeners.append(listener)
        return listener

    def leave(self, listener: "queue.SimpleQueue[str]") -> None:
        """Tell this listener nothing more."""
        with self._lock:
            self._listeners.remove(listener)
