"""What the operator's console refuses, whatever a page of a stranger or a site tries."""

from datetime import UTC, datetime

import pytest

from common.web.access import Sessions
from common.web.serve import Place
from server.console.app import application
from server.deployment import orders, queue
from server.state import Asked, Progress
from server.storage.status import set_progress, set_status
from tests.browser import ORIGIN, TOKEN

PAGES = ["/", "/sites", "/start", "/log", "/orders", "/studies/demo", "/studies/demo/files/rounds.jsonl"]


@pytest.mark.parametrize("page", PAGES)
def test_without_a_login_every_page_leads_to_the_login(stranger, run_dir, page) -> None:
    answer = stranger.get(page)
    assert (answer.status_code, answer.headers["location"]) == (303, "/login")
    assert "demo" not in answer.text


def test_a_wrong_token_is_refused(stranger) -> None:
    answer = stranger.post("/login", data={"token": "x" * 43}, headers={"origin": ORIGIN})
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers
    assert stranger.get("/").status_code == 303


def test_events_need_a_login(stranger) -> None:
    assert stranger.get("/events").status_code == 401


def test_the_cookie_is_kept_from_scripts_and_from_requests_of_other_sites(stranger) -> None:
    answer = stranger.post("/login", data={"token": TOKEN}, headers={"origin": ORIGIN})
    cookie = answer.headers["set-cookie"]
    assert cookie.startswith("consilium_8765=")
    assert "HttpOnly" in cookie
    assert "SameSite=strict" in cookie
    assert TOKEN not in cookie


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8765", "127.0.0.1:9999", "127.0.0.1", ""])
def test_a_strangers_name_for_this_machine_is_refused(browser, host) -> None:
    assert browser.get("/", headers={"host": host}).status_code == 421


@pytest.mark.parametrize(
    "origin", [None, "null", "http://evil.example", "http://127.0.0.1:9999", "https://127.0.0.1:8765"]
)
def test_an_order_from_a_page_of_a_stranger_is_refused(browser, run_dir, folder, origin) -> None:
    assert browser.submit("/studies/demo/resume", origin).status_code == 403
    assert queue.waiting(folder) == []
    assert list(orders.read(folder.root)) == []


@pytest.mark.parametrize("token", ["", "0" * 64])
def test_an_order_without_the_token_of_its_form_is_refused(browser, run_dir, folder, token) -> None:
    assert browser.submit("/studies/demo/resume", form_token=token).status_code == 403
    assert queue.waiting(folder) == []


def test_a_form_of_another_login_is_refused(browser, run_dir, folder) -> None:
    other = browser.form_token()
    browser.cookies.clear()
    browser.post("/login", data={"token": TOKEN}, headers={"origin": ORIGIN})
    assert browser.submit("/studies/demo/resume", form_token=other).status_code == 403
    assert queue.waiting(folder) == []


def test_every_page_that_changes_something_is_a_post(browser, run_dir, folder) -> None:
    before = sorted(folder.root.rglob("*"))
    for page in [
        *PAGES,
        "/studies/demo/resume",
        "/studies/demo/stop",
        "/sites/north/revoke",
        "/sites/south/enrol",
    ]:
        assert browser.get(page).status_code == 200
    for method in ("PUT", "DELETE", "PATCH", "OPTIONS"):
        assert browser.request(method, "/studies/demo/resume").status_code == 405
    assert sorted(folder.root.rglob("*")) == before


def test_a_second_tab_keeps_its_form_and_a_login_survives_a_restart(browser, run_dir, folder) -> None:
    first, second = browser.form_token(), browser.form_token()
    assert first == second
    restarted = type(browser)(
        application(folder, Sessions(TOKEN), Place().address), base_url=ORIGIN, follow_redirects=False
    )
    restarted.cookies = browser.cookies
    assert restarted.submit("/studies/demo/resume", form_token=first).status_code == 303
    again = restarted.submit("/studies/demo/resume", form_token=second)
    assert again.status_code == 409
    assert "a study demo is waiting already" in again.text
    assert len(queue.waiting(folder)) == 1


def test_after_a_logout_the_cookie_opens_nothing(browser) -> None:
    cookies = dict(browser.cookies)
    assert browser.submit("/logout").status_code == 303
    browser.cookies = cookies
    assert browser.get("/").status_code == 303


SCRIPT = "<script>alert(1)</script>"


def test_markup_in_what_a_site_says_is_shown_as_text(browser, run_dir, folder) -> None:
    set_status(run_dir, "running", f"study {SCRIPT}")
    asked = Asked(outcome="refused", after_s=1.0, reason=f'its "norm" is {SCRIPT}\x1b[2J')
    now = datetime.now(UTC)
    set_progress(
        run_dir,
        Progress(
            round=3, rounds=3, closing=False, attempt=1, since=now, deadline_s=9, sites={"north": asked}
        ),
    )
    (run_dir / "server.log").write_text(f"10:00:00  WARNING: north: {SCRIPT}\n")
    for page in ("/studies/demo", "/log?file=study%20demo%3A%20server"):
        text = browser.get(page).text
        assert SCRIPT not in text
        assert "&lt;script&gt;alert(1)&lt;/script&gt;" in text
        assert "\x1b" not in text
    for page in (f"/log?words={SCRIPT}", f"/?done={SCRIPT}", f"/start?again={SCRIPT}"):
        assert SCRIPT not in browser.get(page).text
    assert SCRIPT not in browser.submit("/start", step="check", study=f"</textarea>{SCRIPT}").text


def test_no_page_has_a_script_or_a_style_in_it_and_the_browser_would_run_none(browser, run_dir) -> None:
    for page in ["/login", *PAGES[:-1], "/studies/demo/resume", "/nothing"]:
        answer = browser.get(page)
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'; script-src 'self'; style-src 'self'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["cache-control"] == "no-store"
        text = answer.text.replace('<script src="/static/console.js" defer></script>', "")
        assert not any(
            word in text for word in ("<script", " style=", "<style", " onclick", "javascript:", "http://")
        )


@pytest.mark.parametrize(
    "path", ["server.yaml", "wishes", "..%2F..%2Fkeys%2Fca.key", "checkpoints-..%2Fstudy.yaml", "checkpoints"]
)
def test_no_file_but_those_on_the_page_can_be_fetched(browser, run_dir, path) -> None:
    (run_dir / "server.yaml").write_text("secret")
    assert browser.get(f"/studies/demo/files/{path}").status_code == 404


def test_a_link_out_of_the_folder_is_not_followed(browser, run_dir, folder) -> None:
    (run_dir / "report.md").symlink_to(folder.root / "federation.yaml")
    (folder.runs / "other").symlink_to(folder.root)
    assert browser.get("/studies/demo/files/report.md").status_code == 404
    assert browser.get("/studies/other").status_code == 404


def test_a_form_that_is_too_large_is_not_read(browser) -> None:
    assert browser.submit("/start", step="check", study="x" * 2**20).status_code == 413
