"""Pseudonyms: names under which the images of one patient belong together, and that say nothing else.

A hash of a patient's number can be undone by trying all numbers; one that is keyed with a secret
that never leaves the site cannot (HMAC, RFC 2104). The secret is drawn once, and only its owner may
read the file. Removing it changes the names of all groups, and nothing else.
"""

import hashlib
import hmac
import os
import secrets
from pathlib import Path

from common.errors import SiteDataError, StorageError

_BYTES = 32


def site_secret(state_dir: Path) -> bytes:
    """This site's secret, drawn when it is first needed. Raises SiteDataError, StorageError."""
    path = state_dir / "identifiers.secret"
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        _draw(path)
        if path.stat().st_mode & 0o077:
            raise SiteDataError(f"{path} may be read by others on this machine; run `chmod 600 {path}`")
        secret = path.read_bytes()
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written or read: {error.strerror}. The trainer keeps there what it hides "
            "patients' identifiers with; give it a state_dir of its own."
        ) from error
    if len(secret) != _BYTES:
        raise SiteDataError(
            f"{path} has {len(secret)} bytes, expected {_BYTES}; put it back from a copy, or remove it"
        )
    return secret


def hidden(secret: bytes, kind: str, identifier: str) -> str:
    """A name for `identifier` that cannot be traced back without the secret."""
    return hmac.new(secret, f"{kind} {identifier}".encode(), hashlib.sha256).hexdigest()[:16]


def _draw(path: Path) -> None:
    """Written whole under another name first: two processes that draw at once end with one secret."""
    if path.exists():
        return
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    with open(os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:  # noqa: PTH123
        file.write(secrets.token_bytes(_BYTES))
        file.flush()
        os.fsync(file.fileno())
    try:
        os.link(draft, path)  # unlike a rename, fails if another process was first
    except FileExistsError:
        pass
    finally:
        draft.unlink()
