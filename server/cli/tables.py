"""What `sites` and `status` print: tables on a terminal, one line per row elsewhere."""

from collections.abc import Iterable
from datetime import UTC, datetime

from common.console import terminal
from common.console.spans import format_span
from server.deployment.overview import Overview, absences, describe_run, describe_site, heading, totals
from server.deployment.server_overview import ServerNow, SiteOfServer, describe_server

_STYLES = {
    "ok": "green",
    "awaited": "",
    "approved": "green",
    "waits for approval": "yellow",
    "finished": "bold green",
    "finished, incomplete": "bold yellow",
    "failed": "bold red",
    "crashed": "bold red",
}
"""By a site's outcome or a study's stage."""


def print_sites(sites: Iterable[SiteOfServer]) -> None:
    """Print the sites of a server."""
    if not terminal.is_terminal():
        for site in sites:
            print(_line(site))
        return
    terminal.print_table(
        ("site", "institution", "state", "last seen", "enrolled", "key"),
        [
            (
                site.name,
                site.institution,
                (_online(site), "green") if site.online else ("offline", "yellow"),
                "" if site.seen is None else _ago(site.seen),
                _enrolled(site),
                site.fingerprint or (site.problem or "no key enrolled", "red"),
            )
            for site in sites
        ],
    )


def _line(site: SiteOfServer) -> str:
    name = f"{site.name} ({site.institution})" if site.institution else site.name
    if site.fingerprint is None:
        return f"{name}: {site.problem or 'no key enrolled'}"
    state = "online" if site.online else "offline"
    seen = "never seen" if site.seen is None else f"last seen {_ago(site.seen)}"
    known = "" if site.enrolled is None else "enrolled "
    gateway = f"gateway {facts}, " if (facts := _gateway(site)) else ""
    return f"{name}: {state}, {seen}, {gateway}{known}{_enrolled(site)}, key {site.fingerprint}"


def _online(site: SiteOfServer) -> str:
    """With its gateway's facts in the same cell: a key's fingerprint needs the width."""
    return f"online ({facts})" if (facts := _gateway(site)) else "online"


def _gateway(site: SiteOfServer) -> str:
    """Version and round trip, as far as they are known."""
    if site.gateway is None:
        return ""
    trip = site.gateway.round_trip_ms
    return ", ".join(part for part in (site.gateway.version, "" if trip is None else f"{trip} ms") if part)


def _enrolled(site: SiteOfServer) -> str:
    if site.fingerprint is None:
        return ""
    return "not yet known to the server" if site.enrolled is None else f"{site.enrolled:%Y-%m-%d %H:%M} UTC"


def _ago(moment: datetime) -> str:
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    return "now" if seconds < 60 else f"{format_span(seconds)} ago"


def print_server(now: ServerNow) -> None:
    """Print the state of a server, and of the study that runs or ran last."""
    print(describe_server(now))
    if now.study is not None:
        print()
        print_run(now.study)


def print_run(now: Overview) -> None:
    """Print the state of a run."""
    if not terminal.is_terminal():
        print(describe_run(now))
        return
    first, *more = heading(now)
    terminal.print_styled(first, _STYLES.get(now.stage, "bold"))
    print("\n".join(more))
    if now.sites:
        terminal.print_table(
            ("site", "this round"),
            [
                (site, (describe_site(state), _STYLES.get(state.outcome, "yellow")))
                for site, state in now.sites.items()
            ],
        )
    print("\n".join([*absences(now), *totals(now)]))
