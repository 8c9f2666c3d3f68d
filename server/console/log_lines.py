"""Lines of a server's logs, newest first, with filters and page by page."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, TypeAlias

from common.bounded_log import set_aside
from common.formats import json_text
from server.deployment.folder import ServerFolder

PER_PAGE = 200

Level: TypeAlias = Literal["info", "warning", "error"]
LEVELS: tuple[Level, ...] = ("info", "warning", "error")

_READABLE = re.compile(r"^(\d\d:\d\d:\d\d)  (?:(WARNING|ERROR|CRITICAL): )?(.*)$")


@dataclass(frozen=True)
class LogLine:
    """One event of a log."""

    time: str
    level: Level
    text: str


@dataclass(frozen=True)
class LogPage:
    """Some events of a log, the newest first."""

    lines: tuple[LogLine, ...]
    page: int
    """From 1 on."""
    pages: int
    found: int
    """Events that pass the filters."""


def files(folder: ServerFolder) -> dict[str, Path]:
    """The logs of this server by the name that a page gives them: its own, then those of the studies."""
    own = sorted((folder.root / "logs").glob("*.log"))
    named = {f"server: {path.stem}": path for path in own}
    runs = sorted(
        (path for path in folder.runs.glob("*/*.log") if path.is_file()),
        key=lambda path: path.stat().st_mtime,
        reverse=True,
    )
    return named | {f"study {path.parent.name}: {path.stem}": path for path in runs}


def read(path: Path, *, least: Level = "info", words: str = "", page: int = 1) -> LogPage:
    """One page of the events in the log at `path` that are at least `least` and hold `words`, in any case."""
    wanted, place = words.casefold(), LEVELS.index(least)
    found = [
        line for line in _events(path) if LEVELS.index(line.level) >= place and wanted in line.text.casefold()
    ]
    found.reverse()
    pages = max(1, -(-len(found) // PER_PAGE))
    page = min(max(page, 1), pages)
    return LogPage(tuple(found[(page - 1) * PER_PAGE : page * PER_PAGE]), page, pages, len(found))


def _events(path: Path) -> Iterator[LogLine]:
    """Events, the oldest first; a line that is indented belongs to the one before it."""
    event: LogLine | None = None
    for line in _lines(path):
        if event is not None and line.startswith("    "):
            event = LogLine(event.time, event.level, f"{event.text}\n{line}")
            continue
        if event is not None:
            yield event
        event = _event(line)
    if event is not None:
        yield event


def _lines(path: Path) -> Iterator[str]:
    for file in (set_aside(path), path):
        try:
            yield from file.read_text(encoding="utf-8", errors="replace").splitlines()
        except FileNotFoundError:
            continue


def _event(line: str) -> LogLine:
    if line.startswith("{"):
        try:
            there = json_text.loads(line)
            below = f"\n{there['below']}" if "below" in there else ""
            below += f"\n{there['exception']}" if "exception" in there else ""
            return LogLine(str(there["time"]), _level(str(there["level"])), f"{there['message']}{below}")
        except (ValueError, KeyError, TypeError, json.JSONDecodeError):
            return LogLine("", "info", line)
    if (found := _READABLE.match(line)) is not None:
        return LogLine(found[1], _level(found[2] or "info"), found[3])
    return LogLine("", "warning" if "WARN" in line else "error" if "ERROR" in line else "info", line)


def _level(word: str) -> Level:
    match word.lower():
        case "warning":
            return "warning"
        case "error" | "critical":
            return "error"
        case _:
            return "info"
