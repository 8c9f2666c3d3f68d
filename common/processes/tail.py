"""A log that another process writes, shown here as it grows: whole lines only."""

import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Tail:
    """Copies a log to the terminal, whole lines only, as it grows."""

    path: Path
    shown: int = 0

    def __call__(self) -> str:
        """Show what is new; returns it."""
        if not self.path.exists():
            return ""
        with self.path.open("rb") as file:
            file.seek(self.shown)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]
        self.shown += len(whole)
        text = whole.decode(errors="replace")
        sys.stdout.write(text)
        sys.stdout.flush()
        return text
