"""Participation of the sites: refusals in a row, the notice a site gets, setting aside, and absences.

Refusals count in a row: one admitted answer clears them. A site that diverges once in fifty rounds would reach
any limit over a whole study, and does no harm: a refused update never touches the model. So setting aside
does not protect the model. It spares a broken or hostile site the work, and calls a person. A site that
failed or was late was not refused, and its count stays as it is.

All of it follows from the state of the last round, so a resumed study goes on as it was.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from common.wire import LONGEST_NOTICE
from server.state import Absence, RefusalStreak, RoundState, SiteRound


def counted(
    before: Mapping[str, RefusalStreak], number: int, rows: Iterable[SiteRound]
) -> dict[str, RefusalStreak]:
    """Refusals by site after round `number`, in which the sites did `rows`."""
    after = dict(before)
    for row in rows:
        match row.outcome:
            case "ok":
                after.pop(row.site, None)
            case "refused":
                in_a_row = after[row.site].in_a_row + 1 if row.site in after else 1
                after[row.site] = RefusalStreak(in_a_row, number, row.reason)
            case "failed" | "missing" | "set_aside" | "absent":
                pass
    return {site: after[site] for site in sorted(after)}


def set_aside(refusals: Mapping[str, RefusalStreak], limit: int | None) -> frozenset[str]:
    """Sites that get no more plans."""
    return frozenset(
        site for site, refused in refusals.items() if limit is not None and refused.in_a_row >= limit
    )


def readmitted(state: RoundState, sites: Collection[str]) -> RoundState:
    """`state` without refusals of `sites`, which the operator readmits after talking to them."""
    return replace(
        state, refusals={site: refused for site, refused in state.refusals.items() if site not in sites}
    )


def summary(refused: RefusalStreak) -> str:
    """Number of refusals, the last round and its reason, for a log."""
    return f"refused {refused.in_a_row} time(s) in a row, last in round {refused.round}: {refused.reason}"


def notice(refused: RefusalStreak | None, limit: int | None) -> str | None:
    """Text in the next plan for a site that was refused since its last admitted answer, or None."""
    if refused is None:
        return None
    text = summary(refused)
    if limit is not None:
        # It comes before the event: a site that is set aside gets no further plan.
        text = f"at {limit} in a row this site is set aside; {text}"
    return text[:LONGEST_NOTICE]


def absences(
    before: Mapping[str, Absence], number: int, rows: Iterable[SiteRound], now: datetime
) -> dict[str, Absence]:
    """Absences by site after round `number`; an answer that counts ends one."""
    after = dict(before)
    for row in rows:
        if row.outcome == "ok":
            after.pop(row.site, None)
        elif row.site not in after:
            after[row.site] = Absence(number, f"{now:%Y-%m-%d %H:%M} UTC")
    return {site: after[site] for site in sorted(after)}


def lacking(rows: Iterable[SiteRound], absent: Mapping[str, Absence]) -> str:
    """Sites without an answer that counts, since when and why, for the last sentence of a failed study."""
    return "; ".join(
        f"{row.site} since round {absent[row.site].round} ({absent[row.site].since}): {row.reason}"
        for row in rows
        if row.outcome != "ok"
    )
