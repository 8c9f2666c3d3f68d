"""Readers of a file that another process writes, as it grows: whole lines only.

A line is read once its end is there, so that no reader sees half a record. A log that was set aside while it was read
(`common/bounded_log.py`) is read to its end first.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from common.bounded_log import set_aside


@dataclass
class GrowingFile:
    """The lines of a file that have not been read yet."""

    path: Path
    offset: int = 0
    """Bytes of the file that have been read."""
    _inode: int | None = None

    def read_lines(self) -> bytes:
        """Whole lines since the last call, with their ends; nothing if there is no file.

        A file that is shorter than before was started again and is read from its beginning.
        """
        try:
            file = self.path.open("rb")
        except FileNotFoundError:
            return b""
        with file:
            inode, before = os.fstat(file.fileno()).st_ino, b""
            if self._inode not in (None, inode):
                before = self._rest_of_former()
                self.offset = 0
            self._inode = inode
            if file.seek(0, 2) < self.offset:
                self.offset = 0
            file.seek(self.offset)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.offset += len(whole)
        return before + whole

    def _rest_of_former(self) -> bytes:
        """Unread lines of the file that was set aside; nothing if another one was."""
        try:
            file = set_aside(self.path).open("rb")
        except FileNotFoundError:
            return b""
        with file:
            if os.fstat(file.fileno()).st_ino != self._inode:
                return b""
            file.seek(self.offset)
            return file.read()


class Tail(GrowingFile):
    """Copies a log to the terminal as it grows."""

    def __call__(self) -> str:
        """Print the new lines; returns them."""
        text = self.read_lines().decode(errors="replace")
        sys.stdout.write(text)
        sys.stdout.flush()
        return text
