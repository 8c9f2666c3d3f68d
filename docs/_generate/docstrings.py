"""Docstrings for autodoc: Markdown's code and plain `*`, `|` and `_` become reStructuredText.

Docstrings here are Markdown in spirit. reStructuredText reads a single backtick as a reference, and
the bars of a norm as a substitution; both would be warnings, which are errors.
"""

import re
from typing import Any

from sphinx.application import Sphinx

_CODE = re.compile(r"(``?)([^`\n]+)\1")


def to_rst(lines: list[str]) -> list[str]:
    """Lines of a docstring, each escaped; indented lines stay a literal block of their own."""
    return [_line(line) for line in lines]


def _line(line: str) -> str:
    if line.startswith("    ") and not line.lstrip().startswith(("-", "*")):
        return line
    parts = _CODE.split(line)
    # split gives text, the quote, the code, text, ...
    texts, codes = parts[::3], parts[2::3]
    escaped = [re.sub(r"([*|_\\])", r"\\\1", text) for text in texts]
    joined = [f"{text}``{code}``" for text, code in zip(escaped, codes, strict=False)]
    return "".join([*joined, escaped[-1]])


def _process(*arguments: Any) -> None:
    lines: list[str] = arguments[-1]  # Sphinx replaces a docstring that is changed in place
    lines[:] = to_rst(lines)


def setup(app: Sphinx) -> dict[str, bool]:
    """Called by Sphinx."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
