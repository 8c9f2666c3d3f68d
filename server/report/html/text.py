"""Sections of the Markdown report as HTML.

The page says in words what `report.md` says, because both come from the same text. HTML within it is not let through,
nor is a link, so a site's name or reason cannot bring any.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from markdown_it import MarkdownIt
from markdown_it.token import Token
from markupsafe import Markup, escape


@dataclass(frozen=True)
class Section:
    """One section of the page."""

    title: str
    body: Markup


def section(text: str) -> Section:
    """A heading and what is below it. Pictures are left out: the page has figures of its own."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table").disable(["link", "autolink"])
    tokens = reader.parse(text)
    title = ""
    if tokens and tokens[0].type == "heading_open":
        title = "".join(child.content for child in tokens[1].children or ())
        tokens = tokens[3:]
    tokens = list(_with_tables(_without_pictures(tokens), title))
    return Section(title, Markup(reader.renderer.render(tokens, reader.options, {})))


def _without_pictures(tokens: list[Token]) -> Iterator[Token]:
    at = 0
    while at < len(tokens):
        inline = tokens[at + 1] if tokens[at].type == "paragraph_open" else None
        if inline is not None and [child.type for child in inline.children or ()] == ["image"]:
            at += 3
            continue
        yield tokens[at]
        at += 1


def _with_tables(tokens: Iterator[Token], title: str) -> Iterator[Token]:
    """Headings for columns and rows, and a frame that scrolls with the keyboard where a table is wide."""
    in_body = first = is_heading = False
    for token in tokens:
        match token.type:
            case "table_open":
                label = escape(f"Table: {title}")
                yield _raw(f'<div class="scroll" role="region" tabindex="0" aria-label="{label}">')
            case "tbody_open" | "tbody_close":
                in_body = token.type == "tbody_open"
            case "tr_open":
                first = in_body
            case "th_open":
                token.attrs = _aligned(token) | {"scope": "col"}
            case "td_open":
                token.attrs = _aligned(token)
                if first:
                    token.tag, token.attrs = "th", token.attrs | {"scope": "row"}
                first, is_heading = False, first
            case "td_close" if is_heading:
                token.tag, is_heading = "th", False
            case _:
                pass
        yield token
        if token.type == "table_close":
            yield _raw("</div>")


def _aligned(token: Token) -> dict[str, str | int | float]:
    """A class in place of a style, which the page's policy does not let through."""
    return {"class": "n"} if "right" in str(token.attrs.get("style", "")) else {}


def _raw(html: str) -> Token:
    return Token("html_block", "", 0, content=html)
