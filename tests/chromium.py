"""Headless Chromium for tests, over its own pipe: Chrome DevTools Protocol, JSON messages that end with a zero byte.

No driver and no package is needed. Every request to another host than this machine fails, and is noted.
"""

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

PROGRAM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")

_FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-extensions",
    "--disable-dev-shm-usage",
    "--disable-features=Translate,MediaRouter,OptimizationHints", "--hide-scrollbars",
    "--remote-debugging-pipe",
)  # fmt: skip
_WAIT_S = 60.0

# It reads commands from descriptor 3 and answers on 4.
_WITH_PIPES = """
import fcntl, os, sys
read, write = (fcntl.fcntl(int(n), fcntl.F_DUPFD, 10) for n in sys.argv[1:3])
os.dup2(read, 3), os.dup2(write, 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One browser with a profile of its own."""

    def __init__(self, profile: Path) -> None:
        assert PROGRAM is not None
        to_read, self._to = os.pipe()
        self._from, to_write = os.pipe()
        self._process = subprocess.Popen(
            [sys.executable, "-c", _WITH_PIPES, str(to_read), str(to_write), PROGRAM, *_FLAGS,
             f"--user-data-dir={profile}"],
            pass_fds=(to_read, to_write), stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL, env=os.environ | {"HOME": str(profile)},
        )  # fmt: skip
        os.close(to_read)
        os.close(to_write)
        self._number, self._rest, self.events = 0, b"", []

    def tab(self, width: int = 1280, *, dark: bool = False, scripts: bool = True) -> "Tab":
        """A new tab."""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        tab = Tab(self, session)
        for domain in ("Page", "Network", "Runtime", "Log"):
            tab.call(f"{domain}.enable")
        tab.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        tab.call("Emulation.setEmulatedMedia", features=[scheme])
        tab.call("Emulation.setScriptExecutionDisabled", value=not scripts)
        return tab

    def call(self, method: str, session: str | None = None, **params: Any) -> dict[str, Any]:
        """Send one command and return its result. Raises AssertionError."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        os.write(self._to, json.dumps(message | ({"sessionId": session} if session else {})).encode() + b"\0")
        end = time.monotonic() + _WAIT_S
        while time.monotonic() < end:
            answer = self.read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                result: dict[str, Any] = answer["result"]
                return result
        raise AssertionError(f"{method} was not answered within {_WAIT_S:.0f} s")

    def read(self) -> dict[str, Any]:
        """The next message; events are kept."""
        while b"\0" not in self._rest:
            more = os.read(self._from, 2**16)
            assert more, "Chromium has ended"
            self._rest += more
        first, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(first)
        if "id" not in message:
            self.events.append(message)
        return message

    def close(self) -> None:
        """End it."""
        self._process.terminate()
        self._process.wait(30)
        os.close(self._to)
        os.close(self._from)


class Tab:
    """One tab."""

    def __init__(self, browser: Chromium, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command for this tab."""
        return self._browser.call(method, self._session, **params)

    def open(self, url: str) -> None:
        """Load a page and wait for its end."""
        before = self._num_loads()
        self.call("Page.navigate", url=url)
        self.loaded(before)

    def loaded(self, before: int) -> None:
        """Wait until more pages than `before` were loaded."""
        while self._num_loads() <= before:
            self._browser.read()

    def _num_loads(self) -> int:
        return sum(
            event["method"] == "Page.loadEventFired" and event.get("sessionId") == self._session
            for event in self._browser.events
        )

    def run(self, script: str) -> Any:
        """The value of an expression of JavaScript in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def click(self, selector: str) -> None:
        """Click on a link or button that leads to another page, and wait for it."""
        before = self._num_loads()
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        self.loaded(before)

    def type(self, selector: str, text: str) -> None:
        """Type into a field."""
        self.run(f"document.querySelector({json.dumps(selector)}).focus()")
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int) -> None:
        """Press a key: Tab (9), Enter (13)."""
        text = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text
            )

    def press_button(self, words: str) -> None:
        """Go to the link or button with these words and press it, with the keyboard alone; wait for the next page."""
        for _ in range(60):
            self.press("Tab", 9)
            if self.run("document.activeElement.innerText") == words:
                break
        assert self.run("document.activeElement.innerText") == words
        assert self.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"
        before = self._num_loads()
        self.press("Enter", 13)
        self.loaded(before)

    def text(self) -> str:
        """What the page shows."""
        return str(self.run("document.body.innerText"))

    def wait_for(self, words: str) -> None:
        """Wait until the page shows these words. Raises AssertionError."""
        end = time.monotonic() + _WAIT_S
        while words not in self.text():
            assert time.monotonic() < end, f"{words!r} is not in {self.text()!r}"
            self.run("new Promise(done => setTimeout(done, 100))")

    def screenshot(self, path: Path) -> None:
        """The whole page as a PNG."""
        shot = self.call("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(shot["data"]))
