"""The site's console: what it shows, what it decides, and what it refuses."""

import json
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.cli import console as command
from client.cli import main
from client.config import SiteConfig, load_site
from client.console import confine, reading
from client.console.app import application
from client.governance import approval, audit
from common.config import StudyConfig
from common.formats import yaml_text
from common.processes.launcher import Interrupted
from common.processes.ports import free_ports
from common.web.access import Sessions
from common.web.serve import Place
from tests.browser import ORIGIN, TOKEN, Browser

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
SCRIPT = "<script>alert(1)</script>"
PAGES = ["/", "/studies", "/sent", "/sent?lines=all", "/verify", "/preflight"]


@pytest.fixture
def study(make_study) -> StudyConfig:
    return make_study()


@pytest.fixture
def site_file(tmp_path: Path, study: StudyConfig) -> Path:
    """A site whose policy asks, with one study that waits."""
    path = tmp_path / "site.yaml"
    about = {
        "name": study.sites.train[0],
        "data": {"kind": "folders", "root": str(tmp_path)},
        "state_dir": str(tmp_path / "state"),
    }
    path.write_text(yaml_text.dump(about))
    approval.note(tmp_path / "state", study, NOW)
    return path


@pytest.fixture
def site(site_file: Path) -> SiteConfig:
    return load_site(site_file)


@pytest.fixture
def label(site: SiteConfig) -> str:
    return approval.pending(site.state_dir)[0].label


@pytest.fixture
def stranger(site: SiteConfig) -> Browser:
    return Browser(
        application(site, Sessions(TOKEN), Place().address), base_url=ORIGIN, follow_redirects=False
    )


@pytest.fixture
def browser(stranger: Browser) -> Browser:
    assert stranger.post("/login", data={"token": TOKEN}, headers={"origin": ORIGIN}).status_code == 303
    return stranger


def lines(site: SiteConfig) -> list[dict[str, object]]:
    """What the log says was decided, without time and hashes."""
    told = [dict(fields) for fields in audit.events(site.state_dir / audit.FILE)]
    return [
        {name: one[name] for name in one if name not in ("time", "previous", "hash", "salt")} for one in told
    ]


def test_without_a_login_nothing_is_shown_or_decided(stranger, site, label) -> None:
    for page in [*PAGES, f"/studies/{label}"]:
        assert stranger.get(page).headers["location"] == "/login"
    answer = stranger.post(f"/studies/{label}", data={"answer": "yes"}, headers={"origin": ORIGIN})
    assert answer.status_code == 401
    assert len(approval.pending(site.state_dir)) == 1


def test_a_study_is_read_whole_and_approved(browser, site, study, label) -> None:
    assert "1 study waits" in browser.get("/").text
    text = browser.get(f"/studies/{label}").text
    assert study.fingerprint in text
    assert "the server sees this site&#39;s own updates" in text
    assert f"rounds: {study.rounds}" in text
    answer = browser.submit(f"/studies/{label}", answer="yes", fingerprint=study.fingerprint)
    assert answer.headers["location"] == "/studies?done=yes"
    assert approval.decision(site.state_dir, study).answer == "yes"


@pytest.mark.parametrize("answer", ["yes", "no"])
def test_a_decision_on_the_page_and_one_in_a_terminal_are_the_same_record(
    browser, site, site_file, study, label, answer
) -> None:
    reason = "no ethics vote" if answer == "no" else ""
    browser.submit(f"/studies/{label}", answer=answer, reason=reason, fingerprint=study.fingerprint)
    [here] = lines(site)
    kept = [path.name for path in sorted((site.state_dir / "approvals").rglob("*.json"))]
    (site.state_dir / audit.FILE).unlink()
    for path in (site.state_dir / "approvals").rglob("*.json"):
        path.unlink()
    approval.note(site.state_dir, study, NOW)
    refused = ["--refuse", "--reason", reason] if answer == "no" else []
    assert main.main(["approve", str(site_file), label, *refused]) == 0
    assert lines(site) == [here]
    assert [path.name for path in sorted((site.state_dir / "approvals").rglob("*.json"))] == kept


def test_an_approval_can_be_taken_back_in_a_second_tab_once(browser, site, study, label) -> None:
    page = f"/studies/{label}"
    assert browser.submit(page, answer="yes", fingerprint=study.fingerprint).status_code == 303
    assert browser.submit(page, answer="yes", fingerprint=study.fingerprint).status_code == 409
    assert "Take the approval back" in browser.get(page).text
    assert browser.submit(page, answer="no", fingerprint=study.fingerprint).status_code == 303
    assert approval.decision(site.state_dir, study).answer == "no"
    assert [line["event"] for line in lines(site)] == ["approval", "decline"]


@pytest.mark.parametrize("form", [{"fingerprint": "0" * 64}, {"form_token": "0" * 64}, {"answer": "perhaps"}])
def test_only_a_whole_answer_to_the_study_that_was_shown_counts(browser, site, study, label, form) -> None:
    sent = {"answer": "yes", "fingerprint": study.fingerprint, **form}
    assert browser.submit(f"/studies/{label}", **sent).status_code in (400, 403, 409)
    assert len(approval.pending(site.state_dir)) == 1
    assert lines(site) == []


def test_an_answer_from_a_page_of_a_stranger_does_not_count(browser, site, study, label) -> None:
    sent = {"answer": "yes", "fingerprint": study.fingerprint}
    assert browser.submit(f"/studies/{label}", "http://evil.example", **sent).status_code == 403
    assert len(approval.pending(site.state_dir)) == 1


def test_what_the_policy_would_refuse_is_said_before_a_person_decides(site, study, label) -> None:
    strict = site.model_copy(update={"policy": site.policy.model_copy(update={"encoders": ("convnext_t",)})})
    other = site.model_copy(update={"name": "mars"})
    for changed, said in ((strict, "policy.encoders"), (other, "the study does not name mars")):
        app = application(changed, Sessions(TOKEN), Place().address)
        tab = Browser(app, base_url=ORIGIN, follow_redirects=False)
        tab.post("/login", data={"token": TOKEN}, headers={"origin": ORIGIN})
        assert said in tab.get(f"/studies/{label}").text


@pytest.fixture
def log(site: SiteConfig, study: StudyConfig) -> None:
    """A plan and its answer, 300 times, and one refusal whose reason holds markup."""
    book = audit.Audit(site.state_dir, lambda: NOW, lambda: "s")
    for number in range(1, 121):
        about = {"plan_id": f"p{number}", "kind": "round", "study": study.name, "round": number}
        book.append("plan", {**about, "bytes": 10, "sha256": "c" * 64})
        book.append(
            "sent", {"plan_id": f"p{number}", "kind": "answer", "bytes": 2**20, "sha256": f"{number:064}"}
        )
    book.append("failure", {"plan_id": "p120", "error": "E", "reason": SCRIPT})


def test_every_message_that_left_is_listed_with_its_size_and_hash(browser, site, study, log) -> None:
    text = browser.get("/sent").text
    assert "120 lines, 120.0 MiB that left; the newest first; page 1 of 2" in text
    assert f"{120:064}" in text
    assert f"{20:064}" not in text
    assert f"{20:064}" in browser.get("/sent?page=2").text
    assert "c" * 64 not in text
    assert "241 lines" in browser.get("/sent?lines=all").text
    assert "120 lines" in browser.get(f"/sent?study={study.name}").text
    assert "0 lines" in browser.get("/sent?study=other").text
    assert "120 answers, 120.0 MiB" in browser.get("/").text


def test_an_edited_log_is_found(browser, site, log) -> None:
    assert "241 lines as they were written" in browser.get("/verify").text
    path = site.state_dir / audit.FILE
    path.write_bytes(path.read_bytes().replace(b'"round":7,', b'"round":8,', 1))
    assert "EDITED OR CUT: line 13" in browser.get("/verify").text


def test_markup_of_a_server_is_shown_as_text(browser, site, study, log) -> None:
    own = study.model_copy(update={"name": "other", "class_names": {study.classes[0]: SCRIPT}})
    approval.note(site.state_dir, own, NOW)
    shown = [browser.get("/sent?lines=all").text, browser.get("/studies").text]
    shown += [browser.get(f"/studies/{one.label}").text for one in approval.pending(site.state_dir)]
    assert not any(SCRIPT in text for text in shown)
    assert sum("&lt;script&gt;" in text for text in shown) == 2  # the log, and every setting of the study


def test_the_page_of_a_preflight_runs_nothing(browser, site) -> None:
    assert browser.get("/preflight/page").status_code == 404
    (site.state_dir / "console").mkdir()
    (site.state_dir / "console" / "preflight.html").write_text(SCRIPT)
    answer = browser.get("/preflight/page")
    assert "sandbox" in answer.headers["content-security-policy"]
    assert "script" not in answer.headers["content-security-policy"]


def test_the_command_serves_it_and_keeps_its_token_to_its_user(site_file, site, monkeypatch, capsys) -> None:
    [port], seen = free_ports(1), []

    def wait() -> None:
        seen.append((site.state_dir / "console" / "token").stat().st_mode & 0o777)
        raise Interrupted(2)

    monkeypatch.setattr(command, "_wait", wait)
    monkeypatch.setattr(confine, "confine", lambda _: True)  # or this test's process could do nothing more
    monkeypatch.setattr(command, "is_terminal", lambda: True)
    assert main.main(["console", str(site_file), "--port", str(port)]) == 0
    assert seen == [0o600]
    assert (site.state_dir / "console" / "token").read_text().strip() in capsys.readouterr().out


def test_a_log_line_that_is_damaged_hides_no_other(browser, site, log) -> None:
    with (site.state_dir / audit.FILE).open("ab") as file:
        file.write(json.dumps({"event": "sent"}).encode() + b"\n")
    assert "120 lines" in browser.get("/sent").text


def test_what_a_message_counted_is_shown_without_brackets() -> None:
    counts = {"examples": 56, "scored": {"validation": [0, 1, 3]}}
    message = reading._message({"time": "2026-03-01", "event": "sent", "counts": counts}, "skin")
    assert message.about == (("counts", "examples 56, scored validation 0 1 3"),)
