"""Notices to people: a study is over, waits for approval, or waits for a site that is late.

`up` looks at the files of the studies and sends a sentence to the addresses in `federation.yaml`, through apprise:
mail, chat, a web hook. The operator hears of everything, the people at a site only of what concerns their site. A
gateway and a trainer send nothing: they have no way to any machine but the server, and get none for this.
"""

import contextlib
import logging
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeAlias

from common import log
from common.console.spans import format_span
from common.errors import ConfigError, ConsiliumError, LaunchError
from common.text import one_line
from server.deployment import overview, queue
from server.deployment.folder import ServerFolder
from server.storage.status import Status, read_status

LATE_S = 600.0
"""Seconds beyond the usual time after which a site's people, and the operator, hear that it is late."""
_LOOK_S = 5.0
_STOP_S = 10.0
_LONGEST = 500
"""Characters; a reason may be a site's words."""

Send: TypeAlias = Callable[[str, str], bool]
"""Title and text to one group of addresses; False if not all of them took it."""


@dataclass(frozen=True)
class Notice:
    """One sentence."""

    text: str
    site: str | None = None
    """The site that it concerns; None: the operator alone hears it."""


@dataclass
class Watch:
    """What has happened in a server's folder since the last look."""

    folder: ServerFolder
    _read: dict[Path, int] = field(default_factory=dict)
    """Time of each study's status file, when it was read last."""
    _known: set[tuple[str, ...]] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.look()  # what was so before is no news

    def look(self, now: datetime | None = None) -> list[Notice]:
        """Notices on what is new. A file that cannot be read now is read again later."""
        found: list[Notice] = []
        for path in sorted(self.folder.runs.glob("*/status.json")):
            with contextlib.suppress(ConsiliumError, OSError):
                written = path.stat().st_mtime_ns
                if self._read.get(path) != written:
                    status = read_status(path.parent)
                    found += [] if status is None else self._of_status(path.parent.name, status)
                    self._read[path] = written
        with contextlib.suppress(ConsiliumError, OSError):
            found += self._late(now or datetime.now(UTC))
        return found

    def _of_status(self, study: str, status: Status) -> Iterator[Notice]:
        if status.is_over and self._is_new(study, status.status, str(status.since)):
            yield Notice(f"study {study} is over: {status.status}, {status.reason}")
        people = status.approvals.sites if status.approvals is not None and not status.is_over else {}
        for site, answer in people.items():
            if answer.answer == "undecided" and self._is_new(study, site, "approval"):
                yield Notice(f"study {study} waits for a person at {site} to approve or refuse it", site)

    def _late(self, now: datetime) -> Iterator[Notice]:
        running = queue.running(self.folder)
        if running is None or not (self.folder.runs / running.name).exists():
            return
        run = overview.read_run(self.folder.runs / running.name, now, flwr_home=self.folder.flwr_home)
        for site, state in run.sites.items():
            late_s = state.late_s or 0.0
            if late_s >= LATE_S and self._is_new(run.study, site, f"round {run.round}"):
                late = f"{format_span(late_s)} later than usual"
                yield Notice(f"round {run.round} of study {run.study} waits for {site}, {late}", site)

    def _is_new(self, *what: str) -> bool:
        """True once."""
        if what in self._known:
            return False
        self._known.add(what)
        return True


@dataclass(frozen=True)
class Post:
    """Who hears what."""

    title: str
    operator: Send | None
    sites: Mapping[str, Send]

    def deliver(self, notice: Notice) -> None:
        """Send one notice to everybody whom it concerns; a failure is in the log, and holds up nothing."""
        text = one_line(notice.text, _LONGEST)
        for who, send in (("the operator", self.operator), (notice.site, self.sites.get(notice.site or ""))):
            if send is not None and not send(self.title, text):
                log.warn(f"a notice could not be sent to every address of {who}: {text}")


@contextmanager
def sending(folder: ServerFolder) -> Iterator[None]:
    """Send notices as long as this lasts, if the federation names addresses. Raises ConfigError, LaunchError."""
    post = _post(folder)
    if post is None:
        yield
        return
    watch, stopped = Watch(folder), threading.Event()

    def work() -> None:
        while not stopped.wait(_LOOK_S):
            for notice in watch.look():
                post.deliver(notice)

    thread = threading.Thread(target=work, name="notices", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stopped.set()
        thread.join(_STOP_S)
        if not thread.is_alive():  # the last study may have ended a moment ago
            for notice in watch.look():
                post.deliver(notice)


def _post(folder: ServerFolder) -> Post | None:
    config = folder.config
    sites = {site: entry.notify for site, entry in config.sites.items() if entry.notify}
    if not config.notify and not sites:
        return None
    return Post(
        f"Consilium {config.name}",
        _sender(config.notify, "notify") if config.notify else None,
        {site: _sender(addresses, f"sites.{site}.notify") for site, addresses in sites.items()},
    )


def _sender(addresses: Sequence[str], setting: str) -> Send:
    """Sends to these addresses. An address may hold a password, so no message repeats one."""
    try:
        import apprise
    except ImportError as error:
        raise LaunchError(
            f"{setting} in federation.yaml needs the package apprise; install Consilium with its extra `notify`"
        ) from error
    logging.getLogger("apprise").setLevel(logging.CRITICAL)  # it writes addresses
    people = apprise.Apprise()
    for number, address in enumerate(addresses, start=1):
        if not people.add(address):
            raise ConfigError(
                f"federation.yaml: address {number} of {setting} is none that apprise knows; see its list of services, "
                "e.g. mailtos://USER:PASSWORD@HOST/?to=PERSON@HOST"
            )

    def send(title: str, text: str) -> bool:
        return bool(people.notify(body=text, title=title, body_format=apprise.NotifyFormat.TEXT))

    return send
