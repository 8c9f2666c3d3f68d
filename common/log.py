"""One event a line: for people on a terminal, as JSON for machines.

An event is a sentence plus named fields. A person reads the sentence; a machine reads the
fields, so no program has to parse sentences. Fields name sites, rounds and figures, never
patients, files or paths of a hospital.

Sentences quote what others wrote, so an event is one plain line: what does not print is written as its escape. A
table and the trace of an error stand below the line, indented, so that no line of them looks like an event.
"""

import json
import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from common.bounded_log import BoundedLog
from common.text import one_line

LogFormat = Literal["readable", "json"]
Field = str | int | float | bool | None | list[str] | list[float]

_FIELDS, _BELOW = "consilium_fields", "consilium_below"
logger = logging.getLogger("consilium")


def event(message: str, *, level: int = logging.INFO, below: str = "", **fields: Field) -> None:
    """Log one event; `fields` appear in JSON lines only. `below` is a text of several lines that belongs to it."""
    logger.log(level, message, extra={_FIELDS: fields, _BELOW: below})


def warn(message: str, *, below: str = "", **fields: Field) -> None:
    """Log one event that a person should check."""
    event(message, level=logging.WARNING, below=below, **fields)


def lines(text: str, *, level: int = logging.INFO, **fields: Field) -> None:
    """Log one event of a text of our own that has several lines: all but the first stand below it."""
    first, _, below = text.partition("\n")
    event(first, level=level, below=below, **fields)


@contextmanager
def muted() -> Iterator[None]:
    """Nothing below an error is logged within, for a caller that says the same in its own way."""
    former = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(former)


class ReadableFormatter(logging.Formatter):
    """`10:31:07  message`; warnings and errors carry their level."""

    def format(self, record: logging.LogRecord) -> str:
        clock = datetime.fromtimestamp(record.created).strftime("%H:%M:%S")
        rank = "" if record.levelno < logging.WARNING else f"{record.levelname}: "
        return "\n".join(
            [f"{clock}  {rank}{one_line(record.getMessage())}", *_below(record), *_trace(record)]
        )


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time (UTC), level, message and the event's fields."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "message": one_line(record.getMessage()),
        }
        line |= {name: _plain(value) for name, value in getattr(record, _FIELDS, {}).items()}
        if below := _below(record):
            line["below"] = "\n".join(below)
        if trace := _trace(record):
            line["exception"] = "\n".join(trace)
        return json.dumps(line, ensure_ascii=False)


def _trace(record: logging.LogRecord) -> list[str]:
    """Lines on the record's exception, each indented and plain; empty without one."""
    if not record.exc_info:
        return []
    return _indented(logging.Formatter().formatException(record.exc_info))


def _below(record: logging.LogRecord) -> list[str]:
    return _indented(getattr(record, _BELOW, ""))


def _indented(text: str) -> list[str]:
    return [f"    {one_line(line)}" for line in text.split("\n")] if text else []


def _plain(value: Field) -> Field:
    match value:
        case str():
            return one_line(value)
        case list():
            return [one_line(one) if isinstance(one, str) else one for one in value]  # type: ignore[return-value]
        case _:
            return value


def form() -> LogFormat:
    """The form in which events are written now, to start another process with the same."""
    written = [handler.formatter for handler in logger.handlers]
    return "json" if any(isinstance(formatter, JsonFormatter) for formatter in written) else "readable"


def start(form: LogFormat = "readable", file: Path | None = None) -> None:
    """Send events to standard error and, where given, to `file`; replaces earlier handlers."""
    formatter = JsonFormatter() if form == "json" else ReadableFormatter()
    handlers: list[logging.Handler] = [logging.StreamHandler(sys.stderr)]
    if file is not None:
        handlers.append(_FileHandler(file))
    for old in logger.handlers[:]:
        logger.removeHandler(old)
        old.close()
    for handler in handlers:
        handler.setFormatter(formatter)
        logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    logger.propagate = False  # Flower configures its own handlers; a line must not appear twice


class _FileHandler(logging.Handler):
    """Writes events to a file that stops growing (`bounded_log.py`)."""

    def __init__(self, file: Path) -> None:
        super().__init__()
        self._log = BoundedLog(file, note=self._line)

    def emit(self, record: logging.LogRecord) -> None:
        try:
            # A file name of another encoding than UTF-8 is written as escapes, which are valid in JSON, too.
            self._log.write(f"{self.format(record)}\n".encode(errors="backslashreplace"))
        except Exception:
            self.handleError(record)

    def _line(self, sentence: str) -> str:
        return self.format(logger.makeRecord(logger.name, logging.INFO, "", 0, sentence, (), None))

    def close(self) -> None:
        self._log.close()
        super().close()


@contextmanager
def also_to(file: Path) -> Iterator[None]:
    """Events go to `file`, too, as long as this lasts."""
    with _opened(file) as handler:
        level = logger.level
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        logger.addHandler(handler)
        try:
            yield
        finally:
            logger.removeHandler(handler)
            logger.setLevel(level)


@contextmanager
def only_to(file: Path) -> Iterator[None]:
    """Events go to `file` and nowhere else, as long as this lasts."""
    with _opened(file) as handler:
        before = logger.handlers[:], logger.propagate, logger.level
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(min(logger.getEffectiveLevel(), logging.INFO))
        try:
            yield
        finally:
            logger.handlers, logger.propagate = before[0], before[1]
            logger.setLevel(before[2])


@contextmanager
def _opened(file: Path) -> Iterator[logging.Handler]:
    handler = _FileHandler(file)
    handler.setFormatter(JsonFormatter() if form() == "json" else ReadableFormatter())
    try:
        yield handler
    finally:
        handler.close()
