"""Text of strangers: one plain line of it, for a log, a terminal, a report or a message.

A site's words reach the operator's terminal, and a study's words reach the person who approves it. A line break in
them would draw a line of somebody else's, and an escape sequence or a change of direction would hide one. So
messages take plain lines only, and what is shown is made a plain line once more.
"""

import re

_SPACES = re.compile(" {2,}")


def one_line(text: str, most: int | None = None) -> str:
    r"""`text` as one plain line of at most `most` characters.

    What does not print (line breaks, control codes, escape sequences, invisible characters, changes of direction,
    half characters) is written as its escape: `\n`, `\x1b`, `\u202e`.
    """
    if most is not None and len(text) > most:
        text = text[:most]
    if not text.isprintable():
        text = "".join(_shown(character) for character in text)
    return text if most is None else text[:most]


def squeezed(text: str, most: int | None = None) -> str:
    """`one_line` with one space where there are several: many would push the rest to a terminal's next line."""
    return one_line(_SPACES.sub(" ", text), most)


def require_line(text: str) -> str:
    """`text` if it is one plain line. Raises ValueError."""
    for place, character in enumerate(text, start=1):
        if not character.isprintable():
            raise ValueError(
                f"character {place} is {_shown(character)}, expected one line of plain text without control codes"
            )
    return text


def _shown(character: str) -> str:
    return character if character.isprintable() else character.encode("unicode_escape").decode("ascii")
