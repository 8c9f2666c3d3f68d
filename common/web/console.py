"""Frame of a console: login, logout, static files and live updates around the pages of one side.

A page is whole without JavaScript. With it, `static/console.js` listens to `/events` and loads the page again when
something has changed.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from starlette.routing import BaseRoute, Mount, Route
from starlette.staticfiles import StaticFiles

from common import log
from common.errors import ConsiliumError
from common.web.access import LIFETIME_S, Sessions
from common.web.guard import Guard
from common.web.pages import Pages

_STATIC = Path(__file__).parent / "static"
_LOOK_S, _BEAT_S = 1.0, 15.0
_MOST_STREAMS = 32


@dataclass(frozen=True)
class Address:
    """Where a console is found."""

    hosts: tuple[str, ...]
    """Names in the browser's address, each with the port: `127.0.0.1:8765`."""
    port: int
    scheme: str = "http"


@dataclass
class Live:
    """Open streams of events, and what they watch."""

    mark: Callable[[], str]
    """A text that changes when a page may have changed; read from files, so it runs in a thread."""
    streams: int = 0


def console(
    pages: Pages,
    routes: Sequence[BaseRoute],
    *,
    sessions: Sessions,
    address: Address,
    mark: Callable[[], str],
) -> Starlette:
    """The console as an ASGI application."""
    cookie, live = f"consilium_{address.port}", Live(mark)  # browsers do not keep cookies of two ports apart
    is_secure = address.scheme == "https"

    def show_login(request: Request) -> Response:
        return pages.page(request, "login")

    def login(request: Request) -> Response:
        value = sessions.login(request.state.form.get("token", ""))
        if value is None:
            log.warn("console: a login with a wrong token was refused")
            return pages.page(request, "login", 403, error="That is not the token.")
        log.event("console: a person has logged in")
        response = RedirectResponse("/", 303)
        response.set_cookie(
            cookie, value, max_age=LIFETIME_S, httponly=True, samesite="strict", secure=is_secure
        )
        return response

    def logout(request: Request) -> Response:
        sessions.logout(request.state.session)
        response = RedirectResponse("/login", 303)
        response.delete_cookie(cookie, httponly=True, samesite="strict", secure=is_secure)
        return response

    def refused(request: Request, error: Exception) -> HTMLResponse:
        return pages.page(request, "refused", 409, error=str(error))

    def unknown(request: Request, error: Exception) -> HTMLResponse:
        code = error.status_code if isinstance(error, HTTPException) else 404
        return pages.page(request, "refused", code, error="There is no such page.")

    return Starlette(
        routes=[
            Route("/login", show_login, methods=["GET"]),
            Route("/login", login, methods=["POST"]),
            Route("/logout", logout, methods=["POST"]),
            Route("/events", lambda request: _events(request, live), methods=["GET"]),
            Mount("/static", StaticFiles(directory=_STATIC)),
            *routes,
        ],
        middleware=[
            Middleware(Guard, sessions=sessions, hosts=address.hosts, scheme=address.scheme, cookie=cookie)
        ],
        exception_handlers={ConsiliumError: refused, HTTPException: unknown},
    )


def _events(_request: Request, live: Live) -> Response:
    if live.streams >= _MOST_STREAMS:
        return PlainTextResponse("Too many pages are open.\n", 503)
    return StreamingResponse(changes(live), media_type="text/event-stream")


async def changes(live: Live, look_s: float = _LOOK_S, beat_s: float = _BEAT_S) -> AsyncIterator[str]:
    """Events of one page, in the form of server-sent events: `changed` whenever the mark is another one.

    Every `beat_s` seconds a comment keeps the connection.
    """
    live.streams += 1
    try:
        known, waited_s = await asyncio.to_thread(live.mark), 0.0
        yield "retry: 3000\n\n"
        while True:
            await asyncio.sleep(look_s)
            waited_s += look_s
            now = await asyncio.to_thread(live.mark)
            if now != known:
                known, waited_s = now, 0.0
                yield "event: changed\ndata: \n\n"
            elif waited_s >= beat_s:
                waited_s = 0.0
                yield ": still here\n\n"
    finally:
        live.streams -= 1


def file_mark(*paths: Path) -> str:
    """Sizes and times of these files, and names in these folders, as one text."""
    marks = []
    for path in paths:
        try:
            about = path.stat()
        except OSError:
            marks.append("-")
            continue
        marks.append(f"{about.st_mtime_ns}.{about.st_size}")
    return " ".join(marks)
