"""Refused connections of sites, as sentences for the operator.

The access log (`server/deployment/access_log.py`) writes addresses, fingerprints and Flower's words. Here they
become sentences, with a site's name where the key is or was one of a site.
"""

from collections.abc import Mapping
from datetime import datetime
from itertools import islice
from pathlib import Path

from pydantic import ValidationError

from common.processes.tail import GrowingFile
from common.settings import Frozen

OTHERS_KEY = "the call names a key or a node that is not the caller's"
OTHER_USER = "Control API: user "
"""Begins the reason where another user of this machine called Flower's own APIs."""


class Refusal(Frozen):
    """One line of the record."""

    time: datetime
    address: str
    """Of the caller, without its port."""
    fingerprint: str
    """Of the key that it showed; empty if it showed none."""
    clock_s: float | None
    """How far its clock was behind this machine's; negative: ahead."""
    what: str
    """In Flower's words."""
    check: bool = False
    """It says that it only tries the connection: `consilium-site check-connection`."""


class RefusalReader:
    """Refused connections in the access log at `path` since this reader was made."""

    def __init__(self, path: Path) -> None:
        self._file = GrowingFile(path, path.stat().st_size if path.exists() else 0)

    def new(self) -> list[Refusal]:
        """Refusals since the last call. A line that cannot be read is skipped."""
        parsed = map(_parsed, self._file.read_lines().splitlines())
        return [refusal for refusal in parsed if refusal is not None]


def latest(path: Path, most: int) -> list[Refusal]:
    """The last refused connections in the access log at `path`, the newest first."""
    try:
        lines = path.read_bytes().splitlines()
    except FileNotFoundError:
        return []
    parsed = map(_parsed, reversed(lines))
    return list(islice((refusal for refusal in parsed if refusal is not None and not refusal.check), most))


def _parsed(line: bytes) -> Refusal | None:
    try:
        return Refusal.model_validate_json(line)
    except ValidationError:
        return None


def sentence(refusal: Refusal, enrolled: Mapping[str, str], revoked: Mapping[str, str]) -> str:
    """What happened, and whom it concerns; `enrolled` and `revoked` name sites by fingerprint."""
    key, who = refusal.fingerprint, f"somebody at {refusal.address}"
    if refusal.what.startswith(OTHER_USER):
        user = refusal.what.removeprefix(OTHER_USER)
        return (
            f"a program of another user of this machine (user {user}) called Flower's Control API, which starts runs "
            "as this user, and was turned away"
        )
    if refusal.what == OTHERS_KEY:
        site = enrolled.get(key) or (
            f"{revoked[key]}, revoked" if key in revoked else f"no site's key, {key}"
        )
        return f"{who} ({site}) called in the name of another key, and was turned away"
    if refusal.check:
        known = enrolled.get(key) or (
            f"{revoked[key]}, revoked" if key in revoked else f"no site's key, {key}"
        )
        return f"{who} checks the connection ({known})"
    if not key:
        return f"{who} called without a site's key, and was turned away"
    if key in revoked:
        return f"{who} has the key of {revoked[key]} that was revoked, {key}, and was turned away"
    if key not in enrolled:
        return f"{who} has a key that is not enrolled, {key}, and was turned away"
    site, behind_s = enrolled[key], refusal.clock_s
    if "timestamp" in refusal.what and behind_s is not None:
        way = f"{behind_s:.0f} s behind" if behind_s > 0 else f"{-behind_s:.0f} s ahead of"
        return (
            f"{site} ({refusal.address}) was turned away: its clock is {way} this machine's; 5 s ahead and "
            "300 s behind are allowed. One of the two has to be set"
        )
    if "No SuperNode found" in refusal.what:
        return f"{site} ({refusal.address}) was turned away: its key was not enrolled yet"
    if "could not be activated" in refusal.what:
        return (
            f"{site} ({refusal.address}) was turned away: a gateway with its key is connected already, or was until "
            "less than half a minute ago"
        )
    return f"{site} ({refusal.address}) was turned away: {refusal.what}"
