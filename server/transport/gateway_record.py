"""What gateways say of themselves: version and round trip, in one file that the console and `sites` read.

Flower's database has no place for either. The file holds one entry a node, is written at most every few seconds, and
is for people alone: nothing is decided by it. Both are a site's own words, so they are checked here before they reach
a page.
"""

import contextlib
import re
import threading
import time
from collections.abc import Callable
from pathlib import Path

from pydantic import ValidationError

from common.errors import StorageError
from common.files import write_json
from common.settings import Frozen

FILE = "gateways.json"
WRITE_S = 5.0
"""Seconds between two writes of the file; a new connection is written at once."""
MOST_MS = 60_000
"""A heartbeat without an answer is given up long before."""

_VERSION = re.compile(r"[0-9A-Za-z.+!-]{1,40}")
_MILLISECONDS = re.compile(r"[0-9]{1,5}")


class GatewayFacts(Frozen):
    """One gateway, in its own words."""

    version: str = ""
    """Version of its program; empty if it named none."""
    round_trip_ms: int | None = None
    """Of its last heartbeat, to the server and back; None before the first has come back."""


class GatewayFile(Frozen):
    """Content of the file: facts by Flower's number of the node."""

    nodes: dict[int, GatewayFacts] = {}  # noqa: RUF012  (pydantic copies it)


class GatewayRecord:
    """Keeps the facts of connected gateways and writes them. Thread-safe. A full disk costs no connection."""

    def __init__(self, file: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._file, self._clock, self._lock = file, clock, threading.Lock()
        self._nodes = dict(read(file))
        self._written_at = -WRITE_S

    def connected(self, node: int, version: str) -> None:
        """A gateway has connected and names this version."""
        named = version if _VERSION.fullmatch(version) else ""
        with self._lock:
            self._nodes[node] = GatewayFacts(version=named)
            self._write()

    def timed(self, node: int, milliseconds: str) -> None:
        """A gateway's heartbeat says how long the one before took. What is no such number is ignored."""
        if not _MILLISECONDS.fullmatch(milliseconds) or int(milliseconds) > MOST_MS:
            return
        with self._lock:
            facts = self._nodes.get(node, GatewayFacts())
            self._nodes[node] = facts.model_copy(update={"round_trip_ms": int(milliseconds)})
            if self._clock() - self._written_at >= WRITE_S:
                self._write()

    def _write(self) -> None:
        self._written_at = self._clock()
        with contextlib.suppress(StorageError, OSError):
            write_json(self._file, GatewayFile(nodes=self._nodes))


def read(file: Path) -> dict[int, GatewayFacts]:
    """Facts by node; none where the file is not there or not whole, as the next heartbeat writes it again."""
    try:
        return GatewayFile.model_validate_json(file.read_bytes()).nodes
    except (OSError, ValidationError):
        return {}
