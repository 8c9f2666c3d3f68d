"""What the operator's console shows and orders, beside the command line."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from common import release
from common.files import write_json
from common.settings import to_yaml
from server.cli import main
from server.console import curves, log_lines
from server.deployment import orders, queue, site_keys
from server.deployment.folder import ServerFolder
from server.deployment.refusals import Refusal
from server.state import Asked, Progress
from server.storage import requests
from server.storage.status import set_progress, set_status
from server.transport.gateway_record import GatewayFacts, GatewayFile


def test_the_first_page_has_the_sites_the_queue_and_the_studies(
    browser, run_dir, folder, small_study
) -> None:
    queue.put(folder, small_study.model_copy(update={"name": "next"}))
    text = browser.get("/").text
    assert "not running" in text
    assert "<b>0 of 2</b>" in text
    assert '<li id="next">next</li>' in text
    assert "stopped by the operator after round 2" in text


def test_a_study_has_curves_rounds_sites_and_files(browser, run_dir) -> None:
    text = browser.get("/studies/demo").text
    for part in (
        "Balanced accuracy",
        "Training loss",
        "round-0002.safetensors",
        "/studies/demo/files/rounds.jsonl",
    ):
        assert part in text
    assert text.count("<figure") == 5
    assert "1.0 MiB" in text  # two rounds of 0.5 MiB to each site


def test_a_site_that_is_late_is_named_with_how_much(browser, run_dir, folder, small_study) -> None:
    entry = queue.put(folder, small_study.model_copy(update={"name": "demo"}))
    queue.begin(folder, entry)
    set_status(run_dir, "running", "study demo")
    since = datetime.now(UTC) - timedelta(seconds=63.6)
    sites = {"north": Asked(outcome="awaited"), "south": Asked(outcome="ok", after_s=2.0)}
    set_progress(
        run_dir,
        Progress(round=3, rounds=3, closing=False, attempt=1, since=since, deadline_s=600, sites=sites),
    )
    text = browser.get("/studies/demo").text
    assert "awaited, 60 s later than usual" in text  # sites answered in 3.5 s before
    assert "answered after 2 s" in text
    assert "60 s later than usual in this round" in browser.get("/sites").text


def test_a_file_of_a_study_is_fetched_as_it_is(browser, run_dir) -> None:
    answer = browser.get("/studies/demo/files/checkpoints-round-0002.safetensors")
    assert answer.content == (run_dir / "checkpoints" / "round-0002.safetensors").read_bytes()
    assert answer.headers["content-disposition"] == 'attachment; filename="demo-round-0002.safetensors"'


def test_an_order_on_a_page_and_one_in_a_terminal_leave_the_same_line(
    browser, run_dir, folder, capsys
) -> None:
    assert browser.submit("/studies/demo/resume").headers["location"] == "/studies/demo?done=resume"
    queue.end(queue.waiting(folder)[0])
    assert main.main(["resume", str(folder.root), "demo"]) == 0
    first, second = [json.loads(line) for line in (folder.root / orders.FILE).read_text().splitlines()]
    assert (first.pop("via"), second.pop("via")) == ("console", "command line")
    first.pop("time"), second.pop("time")
    assert first == second
    assert (first["order"], first["study"]) == ("resume", "demo")
    text = browser.get("/orders").text
    assert "console" in text
    assert "command line" in text


def test_a_study_is_shown_before_it_is_started(browser, folder, small_study) -> None:
    text = (
        to_yaml(small_study.model_dump(mode="json")).decode().replace("\n", "\r\n")
    )  # as a browser sends it
    shown = browser.submit("/start", step="check", study=text)
    assert small_study.fingerprint in shown.text
    assert queue.waiting(folder) == []
    assert browser.submit("/start", step="start", study=text).headers["location"] == "/?done=start#demo"
    assert [entry.name for entry in queue.waiting(folder)] == ["demo"]
    assert next(orders.read(folder.root)).detail == small_study.fingerprint


def test_a_study_with_mistakes_is_not_started_and_each_is_named(browser, folder) -> None:
    answer = browser.submit("/start", step="start", study="name: a\nround: 3\n")
    assert answer.status_code == 409
    assert "round: unknown setting" in answer.text or "round" in answer.text
    assert "name: a" in answer.text  # what was written is still there
    assert queue.waiting(folder) == []


def test_a_study_of_a_site_without_a_key_is_not_started(browser, folder, small_study) -> None:
    site_keys.revoke(folder, "south")
    answer = browser.submit(
        "/start", step="start", study=to_yaml(small_study.model_dump(mode="json")).decode()
    )
    assert "the study names south, whose keys are not enrolled" in answer.text
    assert queue.waiting(folder) == []


def test_only_the_study_that_the_page_named_is_stopped(
    browser, run_dir, folder, small_study, monkeypatch
) -> None:
    monkeypatch.setattr(ServerFolder, "is_up", True)
    queue.begin(folder, queue.put(folder, small_study.model_copy(update={"name": "other"})))
    (folder.runs / "other").mkdir()
    answer = browser.submit("/studies/demo/stop")
    assert answer.status_code == 409
    assert "study demo does not run any more; other does, and is not stopped" in answer.text
    assert not requests.take_stop(folder.runs / "other")
    assert browser.submit("/studies/other/stop").status_code == 303
    assert requests.take_stop(folder.runs / "other")


def test_a_site_is_readmitted_after_a_question(browser, run_dir) -> None:
    assert "Readmit north to study demo" in browser.get("/studies/demo/readmit/north").text
    assert requests.take_readmitted(run_dir) == ()
    assert browser.submit("/studies/demo/readmit/north").status_code == 303
    assert requests.take_readmitted(run_dir) == ("north",)
    assert browser.submit("/studies/demo/readmit/mars").status_code == 404


def test_a_key_is_revoked_only_if_it_is_the_one_that_was_shown(browser, folder) -> None:
    key = site_keys.enrolled(folder)["north"].fingerprint
    assert browser.submit("/sites/north/revoke", subject="SHA256:other").status_code == 409
    assert "north" in site_keys.enrolled(folder)
    assert browser.submit("/sites/north/revoke", subject=key).status_code == 303
    assert "north" not in site_keys.enrolled(folder)


def test_a_key_is_enrolled_from_its_text(browser, folder, tmp_path) -> None:
    from common import keys

    site_keys.revoke(folder, "north")
    public = keys.make_site_key(tmp_path / "second", "site").public.read_text()
    wrong = browser.submit("/sites/north/enrol", key="nonsense")
    assert wrong.status_code == 409
    assert "tmp" not in wrong.text
    assert browser.submit("/sites/north/enrol", key=public).status_code == 303
    assert site_keys.enrolled(folder)["north"].fingerprint in browser.get("/sites").text


def test_ten_thousand_lines_of_a_log_come_page_by_page_and_filtered(browser, run_dir) -> None:
    lines = [f"10:00:00  {'WARNING: ' if n % 100 == 0 else ''}event {n}" for n in range(10_000)]
    (run_dir / "server.log").write_text("".join(f"{line}\n    below\n" for line in lines))
    page = "/log?file=study%20demo%3A%20server"
    first = browser.get(page).text
    assert "10,000 events, the newest first; page 1 of 50" in first
    assert first.index("event 9999") < first.index("event 9800")
    assert "event 9799" not in first
    assert "event 0\n    below" in browser.get(f"{page}&page=50").text
    assert "100 events, the newest first; page 1 of 1" in browser.get(f"{page}&level=warning").text
    assert "1 events" in browser.get(f"{page}&words=EVENT+1234").text


def test_lines_of_a_log_in_json_have_their_time_and_level(tmp_path) -> None:
    event = {"time": "2026-03-01T10:00:00.000+00:00", "level": "error", "message": "m", "below": "    b"}
    (tmp_path / "a.log").write_text(json.dumps(event) + "\n{broken\n")
    newest, oldest = log_lines.read(tmp_path / "a.log").lines
    assert newest.text == "{broken"
    assert (oldest.time, oldest.level, oldest.text) == (event["time"], "error", "m\n    b")


@pytest.mark.parametrize(
    "page", ["/studies/none", "/studies/demo/eat", "/sites/mars/revoke", "/log?file=none"]
)
def test_what_is_not_there_is_not_found(browser, run_dir, page) -> None:
    assert browser.get(page).status_code == 404


def test_a_damaged_file_is_named_and_the_rest_is_shown(browser, run_dir) -> None:
    (run_dir / "rounds.jsonl").write_text("nonsense\n")
    (run_dir / "census.json").write_text("nonsense\n")
    text = browser.get("/studies/demo").text
    assert "rounds.jsonl is not one round per line" in text
    assert "census.json cannot be read" in text
    assert "stopped by the operator after round 2" in text


def test_refused_connections_are_sentences_with_the_newest_first(browser, folder) -> None:
    key = site_keys.enrolled(folder)["north"].fingerprint
    folder.refusals.parent.mkdir(exist_ok=True)
    first = datetime(2026, 3, 1, tzinfo=UTC)
    seen = [
        Refusal(time=first.replace(hour=hour), address="192.0.2.7", fingerprint=key, clock_s=None, what=what)
        for hour, what in ((1, "No SuperNode found"), (2, "<b>odd</b>"))
    ]
    checked = seen[0].model_copy(update={"check": True})
    text = "".join(f"{one.model_dump_json()}\n" for one in [*seen, checked])
    folder.refusals.write_text(f"{text}a torn li")
    page = browser.get("/sites").text
    newer, older = "was turned away: &lt;b&gt;odd&lt;/b&gt;", "its key was not enrolled yet"
    assert page.index(newer) < page.index(older)
    assert page.count("turned away") == 2


def test_a_site_is_online_since_it_connected(browser, folder, monkeypatch) -> None:
    key, since = site_keys.enrolled(folder)["north"], datetime(2026, 3, 1, 8, tzinfo=UTC)
    node = site_keys.Node(1, since, True, datetime.now(UTC), since)
    monkeypatch.setattr(site_keys, "nodes", lambda _: {key.pem: node})
    monkeypatch.setattr(ServerFolder, "is_up", True)
    assert "online</span> since 2026-03-01 08:00:00 UTC" in browser.get("/sites").text


@pytest.mark.parametrize(
    ("version", "milliseconds", "shown"),
    [
        (release.version(), 23, f"gateway <span>{release.version()}</span>, round trip 23 ms<"),
        ("0.0.1", 0, f"0.0.1, this server has {release.version()}</span>, round trip 0 ms<"),
        ("", None, "gateway of an unknown version<"),
    ],
)
def test_a_site_has_its_gateways_version_and_round_trip_while_it_is_online(
    browser, folder, monkeypatch, version: str, milliseconds: int | None, shown: str
) -> None:
    key, now = site_keys.enrolled(folder)["north"], datetime.now(UTC)
    facts = GatewayFacts(version=version, round_trip_ms=milliseconds)
    write_json(folder.gateways, GatewayFile(nodes={1: facts}))
    monkeypatch.setattr(ServerFolder, "is_up", True)
    for online in (True, False):
        node = site_keys.Node(1, now, online, now, now)
        monkeypatch.setattr(site_keys, "nodes", lambda _, node=node: {key.pem: node})
        assert (shown in browser.get("/sites").text) is online


@pytest.mark.parametrize(
    ("last", "shown"), [(1, "0 1"), (6, "0 1 2 3 4 5 6"), (30, "0 5 10 15 20 25 30"), (31, "0 6 12 18 24 30")]
)
def test_a_curve_has_whole_rounds_in_even_steps_below_it(last: int, shown: str) -> None:
    drawn = curves.chart("loss", {"all": [(0, 2.0), (last, 1.0)]})
    assert drawn is not None
    assert " ".join(label for _, label in drawn.x_ticks) == shown
