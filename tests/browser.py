"""A browser of the tests: it sends to a console what a browser on one of its pages sends."""

import re
from typing import Any

import httpx
from starlette.testclient import TestClient

TOKEN = "t" * 43
ORIGIN = "http://127.0.0.1:8765"


class Forms:
    """Fills in the forms of a console."""

    origin = ORIGIN

    def form_token(self: Any, page: str = "/login") -> str:
        found = re.search(r'name="form_token" value="(\w+)"', self.get(page).text)
        assert found is not None
        return found[1]

    def submit(self: Any, page: str, origin: str | None = "", **form: str) -> Any:
        """Send a form of this console; `origin` is the page's, None for none."""
        form = {"form_token": self.form_token(), **form}
        headers = {} if origin is None else {"origin": origin or self.origin}
        return self.post(page, data=form, headers=headers)


class Browser(Forms, TestClient):
    """On an application in this process."""


class Visitor(Forms, httpx.Client):
    """On a console that another process serves on this machine."""

    def __init__(self, port: int, token: str, *, known_as: int | None = None) -> None:
        """`known_as` is the port under which the console knows itself, if another one leads to it."""
        host = f"127.0.0.1:{known_as or port}"
        self.origin, self._token = f"http://{host}", token
        super().__init__(
            base_url=f"http://127.0.0.1:{port}", trust_env=False, timeout=60, headers={"host": host}
        )

    def __enter__(self) -> "Visitor":
        super().__enter__()
        answer = self.post("/login", data={"token": self._token}, headers={"origin": self.origin})
        assert answer.status_code == 303, answer.text
        return self
