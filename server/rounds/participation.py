"""How often a site was refused, what it is told of it, and when it is asked no more.

Refusals count in a row: one admitted answer clears them. A site that diverges once in fifty
rounds would sooner or later run into any count over a whole study, and a site that is bad only
now and then does no harm, for what is refused never touches the model. Setting aside is not what
protects the model: it spares a site that is plainly broken, or worse, the work, and calls a
person. A site that failed or was late was not refused; its count stays as it is.

All of it follows from the state of the last round, so a resumed study goes on as it was.
"""

from collections.abc import Collection, Iterable, Mapping
from dataclasses import replace
from datetime import datetime

from common.wire import LONGEST_NOTICE
from server.state import Absence, Refusals, RoundState, SiteRound


def counted(before: Mapping[str, Refusals], number: int, rows: Iterable[SiteRound]) -> dict[str, Refusals]:
    """Refusals by site after round `number`, in which the sites did `rows`."""
    after = dict(before)
    for row in rows:
        match row.outcome:
            case "ok":
                after.pop(row.site, None)
            case "refused":
                in_a_row = after[row.site].in_a_row + 1 if row.site in after else 1
                after[row.site] = Refusals(in_a_row, number, row.reason)
            case "failed" | "missing" | "set_aside":
                pass
    return {site: after[site] for site in sorted(after)}


def set_aside(refusals: Mapping[str, Refusals], limit: int | None) -> frozenset[str]:
    """Sites that get no more plans."""
    return frozenset(
        site for site, refused in refusals.items() if limit is not None and refused.in_a_row >= limit
    )


def readmitted(state: RoundState, sites: Collection[str]) -> RoundState:
    """`state` with a clean slate for `sites`: what an operator says who has talked to them."""
    return replace(
        state, refusals={site: refused for site, refused in state.refusals.items() if site not in sites}
    )


def summary(refused: Refusals) -> str:
    """How often, when last and why, for a log."""
    return f"refused {refused.in_a_row} time(s) in a row, last in round {refused.round}: {refused.reason}"


def notice(refused: Refusals | None, limit: int | None) -> str | None:
    """What the next plan says to a site that was refused since its last admitted answer, or None."""
    if refused is None:
        return None
    text = summary(refused)
    if limit is not None:
        # Said before it happens: a site that is set aside gets no plan that could say it.
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
    """Who gave nothing, since when and why, for the sentence a failed study ends with."""
    return "; ".join(
        f"{row.site} since round {absent[row.site].round} ({absent[row.site].since}): {row.reason}"
        for row in rows
        if row.outcome != "ok"
    )
