"""Log files that stop growing: one is set aside when it is full, and the one set aside before is removed.

So a log takes twice `MOST_BYTES` of disk, however long a study runs. What is removed are the oldest lines, and the new
file begins with a line that says so.
"""

import os
import threading
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

MOST_BYTES = 16 * 2**20
"""Bytes of a log file: a study of two sites writes 1 KiB a round to its own, Flower's processes 55 KiB."""


def set_aside(path: Path) -> Path:
    """Where the lines before those of the log at `path` are, if there are any."""
    return path.with_name(f"{path.name}.1")


class BoundedLog:
    """A log that is appended to, by one process."""

    def __init__(
        self,
        path: Path,
        most_bytes: int | None = None,
        note: Callable[[str], str] = lambda sentence: sentence,
    ) -> None:
        """`note` puts a sentence into the form of the log's lines. Without `most_bytes` a file has `MOST_BYTES`."""
        self._path, self._most, self._note = path, most_bytes or MOST_BYTES, note
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._is_whole = True
        """The last line has its end."""

    def write(self, text: bytes) -> None:
        """Append; a full file is set aside between two lines."""
        with self._lock:
            while self._size + len(text) > self._most:
                end = text.rfind(b"\n", 0, max(0, self._most - self._size))
                if end < 0 and self._size and self._is_whole:  # not even one line has room
                    self._set_aside()
                    continue
                end = text.find(b"\n") if end < 0 else end
                if end < 0 and self._size <= self._most:
                    break  # the line may end with the next write
                self._append(text[: end + 1])
                text = text[end + 1 :]
                self._set_aside()
            self._append(text)

    def _append(self, text: bytes) -> None:
        self._is_whole = text.endswith(b"\n") if text else self._is_whole
        while text:
            written = self._file.write(text)
            self._size += written
            text = text[written:]

    def _set_aside(self) -> None:
        aside, dropped = set_aside(self._path), 0
        with suppress(FileNotFoundError):
            dropped = aside.stat().st_size
        self._file.close()
        with suppress(FileNotFoundError):
            self._path.replace(aside)
        self._file = self._path.open("ab", buffering=0)
        lost = f"; older lines, {dropped / 2**20:.1f} MiB, were dropped" if dropped else ""
        sentence = f"the lines before this one are in {aside.name}{lost}"
        self._append(f"{self._note(sentence)}\n".encode(errors="backslashreplace"))
        self._size = 0  # without this line, which alone must not fill a file

    def close(self) -> None:
        """Write no more."""
        with self._lock:
            self._file.close()


class Pump:
    """Copies what comes out of a pipe to a log, in a thread of its own, until the other ends are closed."""

    def __init__(self, source: int, to: BoundedLog) -> None:
        """`source` is a file descriptor, which stays the caller's to close, after the end."""
        self._source, self._to = source, to
        self._thread = threading.Thread(target=self._copy, daemon=True, name="log")
        self._thread.start()

    def _copy(self) -> None:
        while text := os.read(self._source, 2**16):
            # A process that writes must never wait for a full disk.
            with suppress(OSError):
                self._to.write(text)

    def wait(self, within_s: float) -> bool:
        """Wait until all is copied; True if it is."""
        self._thread.join(within_s)
        return not self._thread.is_alive()
