"""The operator's console in a real browser: a login, a study started, watched and stopped, and what strangers try."""

from datetime import UTC, datetime

import pytest

from common.processes.ports import free_ports
from common.settings import to_yaml
from common.web.access import Sessions
from common.web.serve import Place, serving
from server.console.app import application
from server.deployment import orders, queue
from server.deployment.folder import ServerFolder
from server.state import Progress
from server.storage import history, requests
from server.storage.status import set_progress, set_status
from tests.browser import TOKEN
from tests.chromium import PROGRAM, Chromium

pytestmark = [pytest.mark.slow, pytest.mark.skipif(PROGRAM is None, reason="this machine has no Chromium")]


@pytest.fixture
def chromium(tmp_path):
    browser = Chromium(tmp_path / "profile")
    yield browser
    browser.close()


@pytest.fixture
def place() -> Place:
    return Place(port=free_ports(1)[0])


def login(tab, place: Place) -> None:
    tab.open(place.url)
    tab.type("#token", TOKEN)
    tab.click("main button")


def test_a_study_is_started_watched_and_stopped(
    chromium, place, folder, small_study, random_state, monkeypatch
) -> None:
    monkeypatch.setattr(ServerFolder, "is_up", True)
    tab, watcher = chromium.tab(), chromium.tab(400, dark=True)
    with serving(application(folder, Sessions(TOKEN), place.address), place):
        tab.open(place.url)
        tab.type("#token", "x" * 43)
        tab.click("main button")
        assert "That is not the token." in tab.text()
        login(tab, place)

        tab.open(f"{place.url}start")
        tab.type("#study", to_yaml(small_study.model_dump(mode="json")).decode())
        tab.click("main button")
        assert small_study.fingerprint in tab.text()
        tab.click("button[value=start]")
        assert "The study waits for its turn." in tab.text()

        # The server begins it, and both tabs show the rounds as they are written.
        watcher.open(place.url)
        queue.begin(folder, queue.waiting(folder)[0])
        run = folder.runs / "demo"
        set_status(run, "running", "study demo")
        watcher.wait_for("demo: running")
        tab.open(f"{place.url}studies/demo")
        tab.wait_for("Live.")
        since = datetime.now(UTC)
        set_progress(
            run, Progress(round=3, rounds=3, closing=False, attempt=1, since=since, deadline_s=60, sites={})
        )
        for number in (1, 2):
            history.append_round(run, random_state(number))
        tab.wait_for("round 3 of 3")
        tab.wait_for("Balanced accuracy")
        assert tab.run("document.querySelectorAll('svg.chart').length") == 5
        assert not watcher.run("document.documentElement.scrollWidth > innerWidth")

        tab.press_button("Stop")
        assert not requests.take_stop(run)
        tab.press_button("Stop")
        assert requests.take_stop(run)
    with serving(application(folder, Sessions(TOKEN), place.address), place):  # after a restart
        set_status(run, "stopped", "stopped by the operator before round 1")
        watcher.wait_for("stopped by the operator before round 1")
    assert [order.order for order in orders.read(folder.root)] == ["start", "stop"]
    asked = [event["params"] for event in chromium.events if event["method"] == "Network.requestWillBeSent"]
    assert {params["request"]["url"].split("/")[2] for params in asked} == {place.address.hosts[0]}
    blocked = [e for e in chromium.events if e["method"] == "Log.entryAdded" and "Security Policy" in str(e)]
    assert not blocked


def test_a_page_of_a_stranger_gives_no_order_and_markup_of_a_site_does_not_run(
    chromium, place, run_dir, folder, tmp_path
) -> None:
    markup = "<img src=x onerror=document.title='taken'><script>document.title='taken'</script>"
    set_status(run_dir, "stopped", markup)
    evil = tmp_path / "evil.html"
    evil.write_text(f"<form method=post action='{place.url}studies/demo/resume'><button>Win</button></form>")
    with serving(application(folder, Sessions(TOKEN), place.address), place):
        tab = chromium.tab()
        login(tab, place)
        assert markup in tab.text()
        assert tab.run("document.title") == "Consilium server f"
        tab.open(evil.as_uri())
        tab.click("button")
        assert "The request does not come from a page of this console." in tab.text()
    assert queue.waiting(folder) == []


def test_without_javascript_and_with_ten_thousand_lines_the_log_is_read(
    chromium, place, run_dir, folder
) -> None:
    lines = "".join(f"10:00:00  {'WARNING: ' if n % 100 == 0 else ''}event {n}\n" for n in range(10_000))
    (run_dir / "server.log").write_text(lines)
    with serving(application(folder, Sessions(TOKEN), place.address), place):
        login(chromium.tab(), place)
        tab = chromium.tab(400, scripts=False)
        tab.open(f"{place.url}log?file=study%20demo%3A%20server")
        size = tab.call("Page.getLayoutMetrics")["cssContentSize"]
        assert size["width"] <= 400
        assert size["height"] > 200 * 20  # 200 lines
        shown = tab.call("DOMSnapshot.captureSnapshot", computedStyles=[])["strings"]
        assert "event 9999" in shown
        assert "event 9799" not in shown
        assert "Load the page again to see what is new." in shown
