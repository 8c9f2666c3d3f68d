"""What went wrong: every site, round and update that was not as planned.

It says "nothing" only if nothing of the kind is on record. An answer that counted may stand here, too, if something
about it was not as it should be.
"""

from collections import Counter
from collections.abc import Iterator

from server.enrolment import overlap
from server.report.outcome import Outcome
from server.report.text import counted, escaped, listed, markdown_table
from server.state import SiteRound
from server.storage.history import RoundRecord

_MEANINGS = {
    "ok": "the answer counted, and something beside it did not.",
    "refused": "the answer did not pass the server's checks and was left out.",
    "failed": "the site answered that it could not, or could not be reached. Where the reason names a case, the "
    "site's own log tells the full story under it.",
    "missing": "no answer came while the server waited.",
    "set_aside": "refused too often in a row, so it was not asked.",
    "absent": "the study names the site, but it did not enrol, so it was not asked.",
}


def troubles(outcome: Outcome) -> str:
    """The section of the report."""
    title = "## What went wrong"
    rows = [*_absences(outcome), *_rows(outcome)]
    sentences = list(_sentences(outcome))
    if not outcome.rounds and not rows and not sentences:
        return f"{title}\n\nNo round is on record."
    if not rows and not sentences:
        so_far = "" if outcome.is_closed else " so far"
        return (
            f"{title}\n\nNothing{so_far}: every site answered every round that it was asked in, and no update was "
            "refused."
        )
    parts = [title]
    if rows:
        table = [[number, site, outcome_, escaped(reason)] for number, site, outcome_, reason in rows]
        parts.append(markdown_table(["round", "site", "outcome", "reason"], table, right=0))
        used = {outcome_ for _, _, outcome_, _ in rows}
        parts.append(" ".join(f"*{name}*: {text}" for name, text in _MEANINGS.items() if name in used))
    if sentences:
        parts.append("\n".join(f"- {sentence}" for sentence in sentences))
    return "\n\n".join(parts)


def _rows(outcome: Outcome) -> Iterator[tuple[str, str, str, str]]:
    for record in outcome.rounds:
        for row in record.sites:
            if row.outcome != "absent" and (row.outcome != "ok" or row.reason):
                yield _name(record), row.site, row.outcome, row.reason


def _absences(outcome: Outcome) -> Iterator[tuple[str, str, str, str]]:
    """One row for each stretch of rounds without a site, so that a long study does not repeat it in each."""
    never = outcome.never_there
    for site in outcome.study.sites.all:
        if site in never and not outcome.rows_of(site):
            yield "all" if outcome.rounds else "-", site, "absent", never[site]
            continue
        stretch: list[tuple[RoundRecord, SiteRound]] = []
        for record in outcome.rounds:
            row = next((row for row in record.sites if row.site == site), None)
            if row is not None and row.outcome == "absent" and (not stretch or stretch[-1][1] == row):
                stretch.append((record, row))
                continue
            if stretch:
                yield _stretch(stretch)
            stretch = [(record, row)] if row is not None and row.outcome == "absent" else []
        if stretch:
            yield _stretch(stretch)


def _stretch(stretch: list[tuple[RoundRecord, SiteRound]]) -> tuple[str, str, str, str]:
    first, last, row = stretch[0][0], stretch[-1][0], stretch[0][1]
    number = _name(first) if first is last else f"{_name(first)} to {_name(last)}"
    return number, row.site, "absent", row.reason


def _sentences(outcome: Outcome) -> Iterator[str]:
    if outcome.ending is not None and outcome.ending.stage in ("failed", "crashed"):
        yield f"The study did not finish: {escaped(outcome.ending.reason)}"
    for record in outcome.rounds:
        if record.attempts > 1:
            what = "The closing evaluation" if record.closing else f"Round {record.round}"
            yield f"{what} had enough answers only in attempt {record.attempts}."
    if outcome.resumed_after:
        times = Counter(outcome.resumed_after)
        rounds = listed([f"round {number}{_times(times[number])}" for number in times])
        yield (
            f"The study was resumed from the checkpoint after {rounds}. What had been done after it was done again."
        )
    clip = outcome.study.aggregation.norm_clip
    if clip is not None:
        shrunk = {
            site: sum(row.outcome == "ok" and (row.delta_norm or 0.0) > clip for row in outcome.rows_of(site))
            for site in outcome.study.sites.train
        }
        if any(shrunk.values()):
            each = listed([f"{site} in {counted(n, 'round')}" for site, n in shrunk.items() if n])
            yield f"Updates longer than {clip:g} were shrunk to it: those of {each}."
    if outcome.overlap is not None and outcome.study.overlap is not None:
        yield from (f"{escaped(text)}." for text in overlap.problems(outcome.study, outcome.overlap))
    if outcome.heads is not None and (outcome.heads.lacking or outcome.heads.problems):
        yield "A classical head or a site's part in one is missing; the section on heads says which."


def _times(number: int) -> str:
    return "" if number == 1 else f" ({number} times)"


def _name(record: RoundRecord) -> str:
    return "closing" if record.closing else str(record.round)
