"""Login of a console: one token in a file, and signed cookies.

The token is the only secret. It lies in a file of its user alone, so the person who may read the file may log in. A
cookie names a session and its end, with a code that only the token's holder can compute. So sessions live through a
restart, and a new token ends them all. The form token of a session (against requests that another page makes) is
computed in the same way.
"""

import hashlib
import hmac
import os
import secrets
import time
from collections.abc import Callable
from pathlib import Path

from common.errors import StorageError

LIFETIME_S = 12 * 3600
"""Seconds after a login until the next one."""
_TOKEN_BYTES = 32
_SHORTEST = 32
"""Characters of a token that is taken from a file."""
_MOST_ENDED = 10_000


def load_token(path: Path) -> tuple[str, bool]:
    """The token in the file at `path`, and whether it was made just now. Raises StorageError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return _read(path), False
    except OSError as error:
        raise StorageError(f"{path} could not be made: {error.strerror}") from error
    token = secrets.token_urlsafe(_TOKEN_BYTES)
    with os.fdopen(descriptor, "w", encoding="ascii") as file:
        file.write(f"{token}\n")
    return token, True


def _read(path: Path) -> str:
    try:
        if path.stat().st_mode & 0o077:
            raise StorageError(
                f"{path} can be read by other users of this machine; remove it, and a new token is made"
            )
        token = path.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(
            f"{path} cannot be read ({type(error).__name__}); remove it, and a new token is made"
        ) from error
    if len(token) < _SHORTEST:
        raise StorageError(
            f"{path} holds {len(token)} characters, expected {_SHORTEST} or more; remove it, and a new token is made"
        )
    return token


class Sessions:
    """Who is logged in."""

    def __init__(self, token: str, clock: Callable[[], float] = time.time) -> None:
        self._token, self._clock = token.encode(), clock
        self._ended: dict[str, float] = {}
        """End of the sessions that were logged out, by session, as seconds since 1970."""

    def login(self, token: str) -> str | None:
        """A cookie for the person who knows the token; None for anybody else."""
        if not hmac.compare_digest(self._token, token.strip().encode()):
            return None
        session = f"{secrets.token_urlsafe(16)}.{int(self._clock()) + LIFETIME_S}"
        return f"{session}.{self._code('session', session)}"

    def session(self, cookie: str | None) -> str | None:
        """The session of a cookie; None if there is none, or it is over."""
        session, _, code = (cookie or "").rpartition(".")
        if not hmac.compare_digest(self._code("session", session).encode(), code.encode()):
            return None
        ends = int(session.rpartition(".")[2])
        return session if ends > self._clock() and session not in self._ended else None

    def logout(self, session: str) -> None:
        """End a session before its time, until a restart of this program."""
        now = self._clock()
        self._ended = {other: ends for other, ends in self._ended.items() if ends > now}
        if len(self._ended) < _MOST_ENDED:
            self._ended[session] = float(session.rpartition(".")[2])

    def form_token(self, session: str) -> str:
        """What every form of this session must send back."""
        return self._code("form", session)

    def _code(self, purpose: str, text: str) -> str:
        return hmac.new(self._token, f"{purpose} {text}".encode(), hashlib.sha256).hexdigest()
