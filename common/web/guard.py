"""Guard in front of every page of a console: who asks, from which page, under which name.

A browser runs pages of strangers beside the console, so a request counts only if all of this holds:

- It names the console as its host. A stranger's name that leads to this machine (DNS rebinding) is refused.
- It has the cookie of a session, but for the login page and the static files.
- A POST comes from a page of this console (header Origin), and its form has the session's token.

The guard reads every form itself, so that no page can forget to check one. It adds the headers that keep the browser
from running or fetching what is not the console's own.
"""

from collections.abc import Collection
from urllib.parse import parse_qsl

from starlette.datastructures import MutableHeaders
from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from common.web.access import Sessions

LOGIN, STATIC = "/login", "/static/"
FORM_TOKEN = "form_token"
MOST_BYTES = 2**20
"""Bytes of a form; a study's YAML has some KiB."""
_MOST_FIELDS = 100

HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    # not no-referrer: then browsers send `Origin: null` with a form
    "Referrer-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class Guard:
    """Lets through what the console's own pages ask for."""

    def __init__(
        self, app: ASGIApp, *, sessions: Sessions, hosts: Collection[str], scheme: str, cookie: str
    ) -> None:
        """`hosts` are the names that a request may give, with the port; `cookie` is the cookie's name."""
        self._app, self._sessions = app, sessions
        self._hosts, self._scheme, self._cookie = frozenset(hosts), scheme, cookie

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one request, as ASGI has it."""
        if scope["type"] != "http":
            return  # no WebSocket here: its server answers 403

        async def send_guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                for name, value in HEADERS.items():
                    headers.setdefault(name, value)
            await send(message)

        request = Request(scope, receive)
        answer = self._refusal(request) or await self._read_form(request)
        await (answer or self._app)(scope, receive, send_guarded)

    def _refusal(self, request: Request) -> Response | None:
        """The answer to a request that is not let through."""
        hosts, path = request.headers.getlist("host"), request.url.path
        if len(hosts) != 1 or hosts[0].lower() not in self._hosts:
            return PlainTextResponse("This console is not known under that name.\n", 421)
        if request.method not in ("GET", "HEAD", "POST"):
            return PlainTextResponse("Only GET and POST are answered.\n", 405)
        if request.method == "POST" and request.headers.getlist("origin") != [f"{self._scheme}://{hosts[0]}"]:
            return PlainTextResponse("The request does not come from a page of this console.\n", 403)
        session = self._sessions.session(request.cookies.get(self._cookie))
        request.state.session, request.state.form = session, {}
        request.state.form_token = "" if session is None else self._sessions.form_token(session)
        if session is not None or path == LOGIN or path.startswith(STATIC):
            return None
        if request.method == "POST" or path == "/events":
            return PlainTextResponse("Log in first.\n", 401)
        return RedirectResponse(LOGIN, 303)

    async def _read_form(self, request: Request) -> Response | None:
        """Read the fields of a form into `request.state.form`; an answer if they are not taken."""
        if request.method != "POST":
            return None
        body = b""
        async for chunk in request.stream():
            body += chunk
            if len(body) > MOST_BYTES:
                return PlainTextResponse(f"A form may have {MOST_BYTES} bytes.\n", 413)
        try:
            form = dict(
                parse_qsl(
                    body.decode("ascii"), keep_blank_values=True, errors="strict", max_num_fields=_MOST_FIELDS
                )
            )
        except ValueError:
            return PlainTextResponse("The form cannot be read.\n", 400)
        request.state.form = form
        expected = request.state.form_token
        if request.url.path != LOGIN and (not expected or form.get(FORM_TOKEN) != expected):
            return PlainTextResponse(
                "The form is of another login. Go back, load the page again, and send it once more.\n", 403
            )
        return None
