"""What people hear of a server's studies, once, and who hears it."""

import json
import threading
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from common.errors import ConfigError
from server.config import Address, FederationConfig, SiteEntry
from server.deployment import notices, queue
from server.deployment.folder import ServerFolder
from server.deployment.notices import Notice, Post, Watch
from server.state import Approvals, Asked, Progress, SiteApproval
from server.storage import history
from server.storage.status import set_approvals, set_progress, set_status

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    sites = {"north": SiteEntry(), "south": SiteEntry()}
    return ServerFolder(
        tmp_path, FederationConfig(name="f", server=Address(hosts=("s.example",)), sites=sites)
    )


def begin(folder: ServerFolder, study) -> Path:
    queue.begin(folder, queue.put(folder, study))
    run = folder.runs / study.name
    set_status(run, "running", "study demo")
    return run


def test_the_end_of_a_study_is_a_notice_once(folder, study) -> None:
    set_status(folder.runs / "earlier", "finished", "after 3 rounds")
    watch = Watch(folder)
    run = begin(folder, study)
    assert watch.look() == []
    set_status(run, "failed", "too few sites answered")
    assert watch.look() == [Notice("study demo is over: failed, too few sites answered")]
    assert watch.look() == []


def test_a_person_who_is_waited_for_is_named_once_and_by_site(folder, study) -> None:
    watch, run = Watch(folder), begin(folder, study)
    people = {
        "north": SiteApproval(answer="undecided", since=NOW),
        "south": SiteApproval(answer="yes", since=NOW),
    }
    set_approvals(run, Approvals(since=NOW, until=None, sites=people))
    text = "study demo waits for a person at north to approve or refuse it"
    assert watch.look() == [Notice(text, "north")]
    set_status(run, "running", "study demo, again")
    assert watch.look() == []


def test_a_site_that_is_late_is_named_once_a_round(folder, study, random_state) -> None:
    watch, run = Watch(folder), begin(folder, study)
    history.append_round(run, random_state(1))  # every site answered in 3.5 s
    sites = {"north": Asked(outcome="awaited"), "south": Asked(outcome="ok", after_s=2.0)}
    set_progress(
        run, Progress(round=2, rounds=3, closing=False, attempt=1, since=NOW, deadline_s=9e3, sites=sites)
    )
    assert watch.look(NOW + timedelta(seconds=603)) == []  # 599.5 s later than usual
    late = NOW + timedelta(seconds=604.5)
    assert watch.look(late) == [
        Notice("round 2 of study demo waits for north, 10 min later than usual", "north")
    ]
    assert watch.look(late) == []


def test_people_at_a_site_hear_only_what_concerns_it_and_the_operator_everything() -> None:
    heard: dict[str, list[str]] = {"operator": [], "north": [], "south": []}

    def to(who: str) -> notices.Send:
        return lambda _, text: heard[who].append(text) is None

    post = Post("Consilium f", to("operator"), {"north": to("north"), "south": to("south")})
    post.deliver(Notice("over"))
    post.deliver(Notice("late\x1b[2J", "north"))
    assert heard == {"operator": ["over", r"late\x1b[2J"], "north": [r"late\x1b[2J"], "south": []}


def test_a_notice_that_is_not_taken_is_in_the_log(caplog) -> None:
    Post("t", lambda *_: False, {}).deliver(Notice("over"))
    assert "a notice could not be sent to every address of the operator: over" in caplog.text


class Hook(BaseHTTPRequestHandler):
    """A web hook that keeps what it gets."""

    got: list[dict[str, str]] = []  # noqa: RUF012

    def do_POST(self) -> None:
        self.got.append(json.loads(self.rfile.read(int(self.headers["Content-Length"]))))
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        pass


def test_a_web_hook_gets_the_end_of_the_study(folder, study, monkeypatch) -> None:
    pytest.importorskip("apprise")
    monkeypatch.setattr(notices, "_LOOK_S", 0.05)
    monkeypatch.setattr(Hook, "got", [])
    with HTTPServer(("127.0.0.1", 0), Hook) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        address = f"json://127.0.0.1:{server.server_port}/"
        config = folder.config.model_copy(update={"notify": (address,)})
        with notices.sending(ServerFolder(folder.root, config)):
            set_status(begin(folder, study), "finished", "after <b>3</b> rounds")
        server.shutdown()
    assert [(got["title"], got["message"]) for got in Hook.got] == [
        ("Consilium f", "study demo is over: finished, after <b>3</b> rounds")
    ]


def test_an_address_of_no_service_is_refused_without_being_repeated(folder) -> None:
    pytest.importorskip("apprise")
    sites = {**folder.config.sites, "north": SiteEntry(notify=("nothing://user:secret@host",))}
    config = folder.config.model_copy(update={"sites": sites})
    with (
        pytest.raises(ConfigError, match=r"address 1 of sites\.north\.notify") as refused,
        notices.sending(ServerFolder(folder.root, config)),
    ):
        pass
    assert "secret" not in str(refused.value)


def test_without_addresses_nothing_is_started(folder) -> None:
    before = threading.active_count()
    with notices.sending(folder):
        assert threading.active_count() == before
