"""Since when a site has been giving nothing to the study.

A study that fails for want of a quorum must say whom to call, and for how long they have been
away: a site that missed one round has a bad line, one that missed forty has moved house.
"""

from collections.abc import Iterable, Mapping
from datetime import datetime

from server.state import Absence, SiteRound


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
