"""Hash chain of the audit log: each line holds the hash of the line before, so that an edit can be detected."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeAlias

from pydantic import JsonValue

from common.formats import json_text

Fields: TypeAlias = Mapping[str, JsonValue]

NO_LINE = "0" * 64
"""Stands for the hash of the line before the first one."""
_END = re.compile(rb'(.+),"hash":"([0-9a-f]{64})"\}', re.DOTALL)


@dataclass(frozen=True)
class Chain:
    """State of the hash chain after the lines read so far."""

    num_lines: int = 0
    head: str = NO_LINE
    """Hash of the last whole line."""
    torn: str | None = None
    """SHA-256 of the last line if it is not whole; the next one must record it."""
    num_torn: int = 0


CHANGED = "it was changed after it was written"


class BrokenError(Exception):
    """A line was changed, removed or inserted; `line` counts from 1."""

    def __init__(self, line: int, reason: str) -> None:
        super().__init__(reason)
        self.line = line


def line_after(head: str, fields: Fields) -> bytes:
    """One line of the log, with the end of line, that follows the line with this hash."""
    body = json.dumps({"previous": head, **fields}, separators=(",", ":"))[:-1].encode()
    return body + b',"hash":"' + sha256(body).encode() + b'"}\n'


def follow(chain: Chain, line: bytes) -> tuple[Chain, Fields]:
    """The chain with one more line, given without its end, and the line's fields."""
    number, fields = chain.num_lines + 1, whole(line)
    if chain.torn is not None and (fields.get("event") != "torn" or fields.get("sha256") != chain.torn):
        raise BrokenError(chain.num_lines, CHANGED)
    if not fields:
        return replace(chain, num_lines=number, torn=sha256(line), num_torn=chain.num_torn + 1), {}
    if fields["previous"] != chain.head:
        raise BrokenError(number, "it does not follow the line before: one was removed, inserted or changed")
    return replace(chain, num_lines=number, head=str(fields["hash"]), torn=None), fields


def whole(line: bytes) -> Fields:
    """Fields of a line, none if its own hash does not fit."""
    match = _END.fullmatch(line)
    if match is None or sha256(match[1]).encode() != match[2]:
        return {}
    try:
        fields: dict[str, JsonValue] = json_text.loads(line)
    except ValueError:  # a key stands twice: no line that this program wrote
        return {}
    return fields


def sha256(data: bytes) -> str:
    """As hexadecimal digits."""
    return hashlib.sha256(data).hexdigest()
