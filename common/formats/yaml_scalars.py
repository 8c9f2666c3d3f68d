"""Plain words of a YAML file: which of them are text, and which are something else.

YAML reads some words as numbers, truth values or dates although a person meant text: `NO`, `007`, `1.10`,
`12:30`. Programs differ in which. So a number remembers how it was written, and a word that two versions
of YAML read differently is neither text nor a number (`Unclear`) until somebody puts it in quotes.
"""

import re
from dataclasses import dataclass, field
from typing import Any, Protocol, TypeAlias, TypeGuard

STR = "tag:yaml.org,2002:str"
NULL = "tag:yaml.org,2002:null"
BOOL = "tag:yaml.org,2002:bool"
INT = "tag:yaml.org,2002:int"
FLOAT = "tag:yaml.org,2002:float"
MERGE = "tag:yaml.org,2002:merge"
UNCLEAR = "tag:consilium,2026:unclear"

_MOST_DIGITS = 300
"""A longer number is text: no setting needs it, and Python refuses to read it."""

_TRUE = ("true", "yes", "on")
_FALSE = ("false", "no", "off")

RESOLVERS: tuple[tuple[str, re.Pattern[str]], ...] = (
    (NULL, re.compile(r"(?:~|null|Null|NULL|)\Z")),
    (BOOL, re.compile(r"(?:yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF)\Z")),
    (
        INT,
        re.compile(
            rf"[-+]?(?:0|[1-9][0-9]{{0,{_MOST_DIGITS}}}|[1-9][0-9]*(?:_[0-9]+){{1,99}}|0x[0-9a-fA-F]+)\Z"
        ),
    ),
    (
        FLOAT,
        re.compile(
            rf"(?:[-+]?(?:[0-9][0-9_]{{0,{_MOST_DIGITS}}}\.[0-9]*|\.[0-9]+)(?:[eE][-+]?[0-9]+)?"
            rf"|[-+]?[0-9]{{1,{_MOST_DIGITS}}}[eE][-+]?[0-9]+"
            r"|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN))\Z"
        ),
    ),
    # Octal in one version of YAML, decimal or text in the other; numbers to the base 60; dates.
    (
        UNCLEAR,
        re.compile(
            r"(?:[-+]?0[0-9_]+|[-+]?0b[01_]+|[-+]?0o[0-7]+"
            r"|[-+]?[0-9][0-9_]*(?::[0-5]?[0-9])+(?:\.[0-9_]*)?"
            r"|[0-9]{4}-[0-9]{1,2}-[0-9]{1,2}(?:[Tt \t].*)?)\Z"
        ),
    ),
    (MERGE, re.compile(r"<<\Z")),
)
"""What a word without quotes means, in the order in which it is tried; a word that fits none is text."""


class WrittenInt(int):
    """A whole number that knows its text in the file: `1_000` is 1000."""

    written: str


class WrittenFloat(float):
    """A number that knows its text in the file: `1.10` is 1.1."""

    written: str


@dataclass(frozen=True, repr=False)
class Unclear:
    """A word that programs read differently: `007` (7, or text), `12:30` (750, or text), a date."""

    written: str
    line: int = field(compare=False)

    def __repr__(self) -> str:
        return self.written


class _Written(Protocol):
    written: str


Scalar: TypeAlias = str | bool | WrittenInt | WrittenFloat | Unclear | None


def is_written(value: object) -> TypeGuard[_Written]:
    """True for a value that knows its text in the file."""
    return isinstance(value, WrittenInt | WrittenFloat | Unclear)


def as_written(value: Any) -> Any:
    """The text of a number or a date as it stands in the file; anything else as it is."""
    return value.written if is_written(value) else value


def construct(tag: str, text: str, line: int) -> Scalar:
    """The value of a word. Raises ValueError if a tag that somebody wrote down does not fit it."""
    match tag:
        case _ if tag == STR:
            return text
        case _ if tag == NULL:
            return None
        case _ if tag == BOOL:
            if text.lower() not in (*_TRUE, *_FALSE):
                raise ValueError(text)
            return text.lower() in _TRUE
        case _ if tag == INT:
            whole = WrittenInt(text, 0)
            whole.written = text
            return whole
        case _ if tag == FLOAT:
            number = WrittenFloat(re.sub(r"\.(?=inf|nan)", "", text.lower().replace("_", "")))
            number.written = text
            return number
        case _ if tag == UNCLEAR:
            return Unclear(text, line)
        case _:
            raise ValueError(tag)


def meaning(value: object) -> str:
    """What YAML takes a word for, as words of a sentence."""
    match value:
        case bool():
            return f"the truth value {'true' if value else 'false'}, not as text"
        case None:
            return "no value, not as text"
        case Unclear():
            return "a number or a date by some programs and as text by others"
        case _:
            return "a number, not as text"
