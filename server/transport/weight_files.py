"""Files of weights on their way between the ServerApp and the gateways, in one folder that both sides share.

The ServerApp writes arrays once and links the file for each site that gets them. The SuperLink's process sends a
file in pieces, and writes what a site sends to a file that the ServerApp then takes. A site's folder is named by
its Flower node, and a site reaches no other folder. What a site may leave here is limited in size and number, so that
no site fills the disk. Nothing here outlives the SuperLink.
"""

import os
import shutil
import threading
import uuid
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

from common.errors import WireError
from common.wire.gateway_calls import FILE_NAME, PIECE_BYTES

MOST_BYTES = 8 * 2**30
"""Bytes of one answer, before the study's layout is known."""
MOST_UPLOADS, MOST_AT_ONCE = 3, 2
"""Answers of one site that wait for the ServerApp, older ones are removed; and answers that it may be sending."""
_OFFERED, _UPLOADED, _LIMIT = "offered", "uploaded", "limit"
_PART, _SHARED, _TAKEN = ".part", ".shared", ".taken"


class TooMuch(Exception):
    """A site sends more than its study can need. The text says what."""


class WeightFiles:
    """The folder, as either process sees it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lock = threading.Lock()
        self._sending: Counter[int] = Counter()

    # --- the SuperLink -------------------------------------------------------------------

    def begin(self) -> None:
        """An empty folder that only this user can enter."""
        shutil.rmtree(self._folder, ignore_errors=True)
        self._folder.mkdir(mode=0o700, parents=True)

    def read(self, node: int, name: str) -> Iterator[bytes]:
        """The file in pieces. Raises FileNotFoundError."""
        with self._path(node, _OFFERED, name).open("rb", buffering=0) as file:
            while piece := file.read(PIECE_BYTES):
                yield piece

    def write(self, node: int, pieces: Iterable[bytes]) -> str:
        """Write what the node sends; returns the file's name. Raises TooMuch."""
        with self._lock:
            if self._sending[node] == MOST_AT_ONCE:
                raise TooMuch(f"this site is sending {MOST_AT_ONCE} answers already")
            self._sending[node] += 1
        try:
            return self._write(node, pieces)
        finally:
            with self._lock:
                self._sending[node] -= 1

    def _write(self, node: int, pieces: Iterable[bytes]) -> str:
        home, name = self._home(node, _UPLOADED), uuid.uuid4().hex
        most, size, part = self._limit(node), 0, home / f"{name}{_PART}"
        try:
            with part.open("wb", buffering=0) as file:
                for piece in pieces:
                    size += len(piece)
                    if size > most:
                        raise TooMuch(
                            f"the answer is larger than its study's weights can make it, {most:,} bytes"
                        )
                    file.write(piece)
            part.rename(home / name)
        finally:
            part.unlink(missing_ok=True)
        self._remove_old(home)
        return name

    def _remove_old(self, home: Path) -> None:
        waiting = [(path.stat().st_mtime_ns, path) for path in home.iterdir() if path.suffix != _PART]
        for _, path in sorted(waiting)[:-MOST_UPLOADS]:
            path.unlink(missing_ok=True)

    # --- the ServerApp -------------------------------------------------------------------

    def clear(self) -> None:
        """Remove what an earlier ServerApp left; an upload in progress is not touched."""
        for path in self._folder.glob("**/*"):
            if path.is_file() and path.suffix != _PART:
                path.unlink(missing_ok=True)

    def share(self, write: Callable[[Path], None]) -> Path:
        """A file for any number of nodes, written by `write`. The caller removes it after the last `offer`."""
        path = self._folder / f"{uuid.uuid4().hex}{_SHARED}"
        write(path)
        return path

    def offer(self, node: int, shared: Path) -> str:
        """Link a shared file for a node; returns the name under which the node finds it."""
        name = uuid.uuid4().hex
        os.link(shared, self._home(node, _OFFERED) / name)
        return name

    def limit(self, node: int, most_bytes: int) -> None:
        """Let the node's next answers have at most so many bytes."""
        path = self._home(node) / _LIMIT
        partial = path.with_suffix(_PART)
        partial.write_text(str(most_bytes))
        partial.replace(path)

    def take(self, node: int, name: str) -> Path:
        """The file that a node sent, which is now the caller's to remove. Raises WireError."""
        taken = self._folder / f"{uuid.uuid4().hex}{_TAKEN}"
        try:
            self._path(node, _UPLOADED, name).rename(taken)
        except FileNotFoundError as error:
            raise WireError("the answer names a file that was not uploaded") from error
        return taken

    def remove(self, node: int, name: str) -> None:
        """Take back what was offered to a node."""
        self._path(node, _OFFERED, name).unlink(missing_ok=True)

    # --- both ----------------------------------------------------------------------------

    def _home(self, node: int, kind: str = "") -> Path:
        home = self._folder / str(node) / kind
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _path(self, node: int, kind: str, name: str) -> Path:
        if not FILE_NAME.fullmatch(name):
            raise FileNotFoundError(name)
        return self._folder / str(node) / kind / name

    def _limit(self, node: int) -> int:
        try:
            return int((self._home(node) / _LIMIT).read_text())
        except (FileNotFoundError, ValueError):
            return MOST_BYTES
