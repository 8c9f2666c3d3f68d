"""Failures of sites as sentences for the log, the report and the last line of a failed study.

One form for every message that a site may fail to answer, so that an operator reads the same words at the
enrolment, in a round and while heads are fitted.
"""

from common import wire
from common.config.types import LONGEST_LINE
from common.text import one_line, squeezed

NOTICED_BY_SERVER = "server"
"""The case of a failure that the server itself noticed: no site's log has an entry for it."""
LONGEST_REASON = 1000
"""Characters of a reason that are kept."""


def failure_sentence(failure: wire.Failure) -> str:
    """Advice, reason and kind of a failure, and under which case, if any, the site's own log describes it."""
    has_case = failure.case not in ("", NOTICED_BY_SERVER)
    case = f", case {failure.case} in its log" if has_case else ""
    return printable(f"{failure.message} ({failure.error}{case})")


def noticed(plan: wire.Plan, error: wire.ErrorKind, advice: str) -> wire.Failure:
    """A failure of the plan's site that the server noticed itself."""
    return wire.Failure(
        plan_id=plan.plan_id,
        site=plan.site,
        error=error,
        case=NOTICED_BY_SERVER,
        advice=one_line(advice, LONGEST_LINE),
    )


def printable(text: str) -> str:
    """The first `LONGEST_REASON` characters as one plain line."""
    return squeezed(text, LONGEST_REASON)
