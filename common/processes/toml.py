"""Strings in TOML, for Flower's files and for the settings on its command lines.

Flower splits a command line's settings by a regular expression before TOML is read, and that ends a string at the
first quote, escaped or not. So quotes are written as TOML's numbered escapes, which both understand.
"""

from pathlib import Path

from common.errors import LaunchError


def quoted(value: str | Path) -> str:
    """`value` as a TOML string, quotes included. Raises LaunchError for a path that is not valid UTF-8."""
    text = str(value)
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise LaunchError(
            f"{text.encode(errors='backslashreplace').decode()} is not UTF-8, which Flower's settings have to be; "
            "rename that folder or choose another"
        ) from error
    return '"' + "".join(_escaped(character) for character in text) + '"'


def _escaped(character: str) -> str:
    is_plain = character.isprintable() and character not in "\"'\\"
    return character if is_plain or character == " " else f"\\U{ord(character):08X}"
