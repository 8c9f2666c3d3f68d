"""What `sites` and `status` print: a line per row in a pipe, a table on a terminal."""

import io
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from server.cli import tables
from server.deployment.overview import Overview, SiteNow
from server.deployment.server_overview import ServerNow, SiteOfServer
from server.transport.gateway_record import GatewayFacts

LONG_AGO = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)
NOW = datetime.now(UTC) + timedelta(days=1)
"""Printed as "now", however long after the import of this file a test runs."""
SITES = (
    SiteOfServer("east", "", None, None, online=False, seen=None),
    SiteOfServer("north", "North Hospital", "ab:cd", LONG_AGO, online=True, seen=NOW),
    SiteOfServer("south", "", "ef:01", None, online=False, seen=None),
)
RUN = Overview(
    study="demo",
    stage="running",
    reason="study demo",
    since=LONG_AGO,
    round=3,
    rounds=5,
    phase="round 3 of 5",
    round_s=40.0,
    deadline_s=100.0,
    sites={
        "north": SiteNow(outcome="ok", after_s=12.0, late_s=None, reason=""),
        "south": SiteNow(outcome="refused", after_s=9.0, late_s=None, reason="its norm is 100"),
    },
    mib_down=1.0,
    mib_up=2.0,
    last_checkpoint=2,
    memory_mib={"server": 300.0},
)


class Screen(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("NO_COLOR", "1")


def test_in_a_pipe_each_site_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    tables.print_sites(SITES)
    assert capsys.readouterr().out.splitlines() == [
        "east: no key enrolled",
        "north (North Hospital): online, last seen now, enrolled 2026-03-01 12:00 UTC, key ab:cd",
        "south: offline, never seen, not yet known to the server, key ef:01",
    ]


@pytest.mark.usefixtures("wide")
def test_on_a_terminal_the_sites_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    tables.print_sites(SITES)
    rows = [" ".join(line.split()) for line in screen.getvalue().splitlines() if line.strip()]
    assert rows[0] == "site institution state last seen enrolled key"
    assert rows[2:] == [
        "east offline no key enrolled",
        "north North Hospital online now 2026-03-01 12:00 UTC ab:cd",
        "south offline not yet known to the server ef:01",
    ]


@pytest.mark.usefixtures("wide")
def test_on_a_terminal_a_site_that_is_online_has_its_gateways_version_and_round_trip(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    north = next(site for site in SITES if site.name == "north")
    tables.print_sites([replace(north, gateway=GatewayFacts(version="0.2.0", round_trip_ms=23))])
    assert "online (0.2.0, 23 ms)" in " ".join(screen.getvalue().split())


@pytest.mark.usefixtures("wide")
def test_on_a_terminal_the_sites_of_a_round_are_a_table(monkeypatch: pytest.MonkeyPatch) -> None:
    screen = Screen()
    monkeypatch.setattr(sys, "stdout", screen)
    tables.print_run(RUN)
    rows = [" ".join(line.split()) for line in screen.getvalue().splitlines() if line.strip()]
    assert rows[0].startswith("demo: running, study demo")
    assert rows[1] == "round 3 of 5, for 40 s; the deadline is in 60 s"
    assert rows[2] == "site this round"
    assert rows[4:6] == ["north answered after 12 s", "south refused: its norm is 100"]
    assert rows[6:] == [
        "1.0 MiB sent to sites, 2.0 MiB received, tensors only",
        "last checkpoint: after round 2",
        "server: 300 MiB of memory",
    ]


def test_a_server_is_printed_with_its_study(capsys: pytest.CaptureFixture[str]) -> None:
    now = ServerNow(
        federation="f", up=True, enrolled=("north", "south"), online=("north",), waiting=("b",), study=RUN
    )
    tables.print_server(now)
    lines = capsys.readouterr().out.splitlines()
    assert lines[:4] == ["f: the server is up", "1 of 2 enrolled sites online; not south", "waiting: b", ""]
    assert "  south  refused: its norm is 100" in lines
