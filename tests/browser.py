"""A browser of the tests: it sends to a console what a browser on one of its pages sends."""

import re

from starlette.testclient import TestClient

TOKEN = "t" * 43
ORIGIN = "http://127.0.0.1:8765"


class Browser(TestClient):
    """Sends what a browser on a page of the console sends."""

    def form_token(self, page: str = "/sites") -> str:
        found = re.search(r'name="form_token" value="(\w+)"', self.get(page).text)
        assert found is not None
        return found[1]

    def submit(self, page: str, origin: str | None = ORIGIN, **form: str):
        form = {"form_token": self.form_token(), **form}
        return self.post(page, data=form, headers={} if origin is None else {"origin": origin})
