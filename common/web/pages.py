"""Pages of a console: templates whose every value is escaped, and what all pages need."""

from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined
from starlette.requests import Request
from starlette.responses import HTMLResponse

from common.console.spans import format_span
from common.text import one_line


class Pages:
    """The templates of one console, over the shared layout."""

    def __init__(self, package: str, *, title: str, links: Mapping[str, str]) -> None:
        """`package` has a folder `templates`; `links` are the addresses of the navigation, with their names."""
        self._templates = Environment(
            loader=ChoiceLoader([PackageLoader(package), PackageLoader("common.web")]),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
            finalize=_plain,
        )
        self._templates.filters |= {
            "ago": ago,
            "moment": moment,
            "clock": clock,
            "size": size,
            "span": format_span,
        }
        self._templates.globals |= {"title": title, "links": dict(links)}

    def page(self, request: Request, name: str, status: int = 200, **values: Any) -> HTMLResponse:
        """The page of the template `name`."""
        values = {"error": None, **values}
        text = self._templates.get_template(f"{name}.html.jinja").render(
            form_token=request.state.form_token, path=request.url.path, now=datetime.now(UTC), **values
        )
        return HTMLResponse(text, status)


def _plain(value: Any) -> Any:
    """Text of strangers as it prints; what has several lines keeps them."""
    if type(value) is not str or value.isprintable():
        return value
    return "\n".join(map(one_line, value.split("\n")))


def moment(when: datetime) -> str:
    """`when` for a person: "2026-03-01 12:00:05 UTC"."""
    return f"{when.astimezone(UTC):%Y-%m-%d %H:%M:%S} UTC"


def clock(text: str) -> str:
    """A moment in ISO 8601, as `moment` writes it; any other text as it is."""
    try:
        return moment(datetime.fromisoformat(text))
    except ValueError:
        return text


def ago(when: datetime) -> str:
    """How long ago `when` was: "3 min ago"."""
    return f"{format_span(max(0.0, (datetime.now(UTC) - when).total_seconds()))} ago"


def size(num_bytes: float) -> str:
    """`num_bytes` in the unit that a person would choose: "3.2 MiB"."""
    if num_bytes < 2**10:
        return f"{num_bytes:.0f} B"
    if num_bytes < 2**20:
        return f"{num_bytes / 2**10:.1f} KiB"
    return f"{num_bytes / 2**20:,.1f} MiB"
