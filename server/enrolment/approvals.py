"""Waiting for people: before round 1, a study waits for sites whose policy lets a person decide first.

A site that has not decided has neither failed nor refused. It is asked again until it has, or until the time
that the study gives it (`deadlines.approval_s`) has passed. A question holds no weights, and a site holds its
answer back for some seconds while no person decides. So a decision is known here within seconds, and a week of
waiting costs few messages. A closed site (`hours`) is waited for in the same way.

When and whom the study first asked stands in its status, so a server that was killed goes on waiting.
"""

import time
import uuid
from collections.abc import Callable, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from common import log, wire
from common.config import StudyConfig
from common.console.spans import format_span
from server.rounds.failures import failure_sentence, printable
from server.rounds.sites import Deadline, Sites
from server.state import Approvals, SiteApproval

HOLD_S = 30.0
"""For which a site holds back an answer that no person has decided."""
_WAY_S = 20.0
"""For the way there and back. A site that is slower, or away, is simply asked again."""
_PAUSE_S = 2.0
"""Least time between two questions."""
_FIRST_REMINDER_S, _LONGEST_REMINDER_S = 60.0, 86_400.0
"""The log mentions the waiting again after a minute, then after twice the time, at least once a day."""


def utc_now() -> datetime:
    """The time, in UTC."""
    return datetime.now(UTC)


@dataclass(frozen=True)
class WaitingRecord:
    """The waiting as the study's status shows it."""

    before: Approvals | None = None
    """Of an earlier process of the same run."""
    save: Callable[[Approvals | None], None] = lambda _: None
    """Keep it; None: no site is waited for any more."""


NOT_KEPT = WaitingRecord()
"""A record that is not kept."""


class Waiting:
    """The people whose answers a study waits for."""

    def __init__(
        self,
        study: StudyConfig,
        answers: Mapping[str, wire.ApprovalAnswer],
        record: WaitingRecord,
        pause: Callable[[float], None] = time.sleep,
        clock: Callable[[], datetime] = utc_now,
        *,
        first_round: int = 1,
    ) -> None:
        """`answers` are the first ones of sites that are undecided or closed."""
        self._study, self._record, self._pause, self._clock = study, record, pause, clock
        self._first_round = first_round
        self.refused: dict[str, str] = {}
        """Sites that do not take part, each with the reason."""
        before = record.before
        self._began = clock()
        self._since = self._began if before is None else before.since
        self._sites = {
            site: SiteApproval(
                answer=answer.decision,
                since=before.sites[site].since
                if before is not None and site in before.sites
                else self._began,
                reason=printable(answer.reason),
            )
            for site, answer in sorted(answers.items())
        }
        self._plan_ids = {site: uuid.uuid4().hex for site in answers}
        self._quorum_since: datetime | None = None
        self._remind_after_s, self._reminded = _FIRST_REMINDER_S, self._began
        self._announce()

    @property
    def undecided(self) -> list[str]:
        """Sites that are still waited for."""
        return [site for site, state in self._sites.items() if state.answer in ("undecided", "closed")]

    @property
    def waited_s(self) -> float:
        """Seconds that this process has waited."""
        return (self._clock() - self._began).total_seconds()

    def next_agreed(self, sites: Sites, able: Set[str]) -> list[str]:
        """Wait for the next sites that agree. Empty when the waiting is over: `refused` then has the others.

        `able` are the sites that are known to take part.
        """
        while self.undecided and not self._is_over(able):
            asked = time.monotonic()
            agreed = self._ask(sites, able)
            if agreed:
                return agreed
            self._remind(sites, able)
            self._pause(max(0.0, _PAUSE_S - (time.monotonic() - asked)))
        self._record.save(None)
        return []

    # --- asking --------------------------------------------------------------------------

    def _ask(self, sites: Sites, able: Set[str]) -> list[str]:
        """Ask every undecided site that is connected; returns those that agree.

        Ends at once when an answer means that the study cannot begin.
        """
        online = sites.online()
        plans = {
            site: wire.ApprovalPlan(
                plan_id=self._plan_ids[site],
                site=site,
                study=self._study,
                first_round=self._first_round,
                hold_s=HOLD_S,
            )
            for site in self.undecided
            if site in online
        }
        if not plans:
            return []
        left_s = (self._until - self._clock()).total_seconds() if self._until is not None else HOLD_S
        agreed = []
        deadline = Deadline(min(HOLD_S, max(left_s, 0.0)) + _WAY_S)
        for reply in sites.ask(plans, deadline):
            if reply.site not in self.undecided:
                continue
            match reply.answer:
                case wire.ApprovalAnswer() as answer:
                    self.take(reply.site, answer)
                    if answer.decision == "yes":
                        agreed.append(reply.site)
                case wire.Failure(error="unreachable"):
                    pass  # a gateway or a trainer that starts again; it is asked again
                case wire.Failure() as failure:
                    self._refuse(reply.site, failure_sentence(failure))
                case other if not reply.late:
                    self._refuse(reply.site, f"its answer is of kind {other.kind}, expected a yes or a no")
                case _:
                    pass  # to an earlier plan
            if not agreed and self._is_hopeless(able):
                deadline.seconds = 0.0
        return agreed

    def take(self, site: str, answer: wire.ApprovalAnswer) -> None:
        """One more answer of a site that did not agree at first."""
        before, reason = self._sites[site], printable(answer.reason)
        if (before.answer, before.reason) == (answer.decision, reason):
            return
        match answer.decision:
            case "no":
                self._refuse(site, refusal(reason))
                return
            case "yes" if before.answer == "undecided":
                text = f"{site}: the study is approved there"
            case "yes":
                text = f"{site}: open again"
            case "closed" if before.answer == "undecided":
                text = f"{site}: the study is approved there; {reason}"
            case "closed":
                text = f"{site}: {reason}"
            case "undecided":
                text = f"{site}: the approval was taken back"
        self._set(site, answer.decision, reason)
        log.event(f"{text}{self._rest()}", site=site)

    def _refuse(self, site: str, reason: str) -> None:
        self.refused[site] = reason
        self._set(site, "no", reason)
        log.event(f"{site}: {reason}{self._rest()}", site=site)

    def _set(self, site: str, answer: wire.Decision, reason: str) -> None:
        since = self._clock() if answer != "closed" else self._sites[site].since
        self._sites[site] = SiteApproval(answer=answer, since=since, reason=reason)
        self._record.save(self._state)

    # --- the end -------------------------------------------------------------------------

    def _is_over(self, able: Set[str]) -> bool:
        """True if no site is waited for any more. The sites without an answer are then among `refused`."""
        now, deadlines = self._clock(), self._study.deadlines
        if self._is_hopeless(able):
            self._give_up("no answer yet when the study failed for other sites")
            return True
        if deadlines.approval_s == 0:
            self._give_up(
                "waits for a person there, and the study waits for no one (deadlines.approval_s: 0)"
            )
            return True
        if deadlines.approval_s is not None and now >= self._since + timedelta(seconds=deadlines.approval_s):
            self._give_up(
                f"no person there answered within {format_span(deadlines.approval_s)} (deadlines.approval_s)"
            )
            return True
        has_quorum = len(able & set(self._study.sites.train)) >= self._study.sites.quorum
        if has_quorum != (self._quorum_since is not None):
            self._quorum_since = now if has_quorum else None
            self._record.save(self._state)  # the limit is another one now
        if self._quorum_since is None:
            return False
        more_s = deadlines.approval_after_quorum_s
        if more_s is None or now < self._quorum_since + timedelta(seconds=more_s):
            return False
        self._give_up(
            f"no person there answered within {format_span(more_s)} after the quorum "
            "(deadlines.approval_after_quorum_s)"
        )
        return True

    def _is_hopeless(self, able: Set[str]) -> bool:
        """True if the study cannot begin, whatever the undecided sites answer."""
        sites = self._study.sites
        lost = sites.evaluate_missing == "fail" and bool(self.refused.keys() & set(sites.evaluate))
        return lost or len((able | set(self.undecided)) & set(sites.train)) < sites.quorum

    def _give_up(self, reason: str) -> None:
        for site in self.undecided:
            state = self._sites[site]
            closed = state.answer == "closed"
            self.refused[site] = state.reason if closed else f"{reason}; asked since {_when(state.since)}"

    @property
    def _until(self) -> datetime | None:
        """When the waiting ends at the latest: sooner once there is a quorum, if the study says so."""
        deadlines = self._study.deadlines
        limits = [
            (self._since, deadlines.approval_s),
            (self._quorum_since, deadlines.approval_after_quorum_s),
        ]
        ends = [start + timedelta(seconds=more_s) for start, more_s in limits if start and more_s is not None]
        return min(ends, default=None)

    # --- what people read ----------------------------------------------------------------

    @property
    def _state(self) -> Approvals:
        return Approvals(since=self._since, until=self._until, sites=self._sites)

    def _announce(self) -> None:
        self._record.save(self._state)
        name = self._study.name
        asked = [site for site, state in self._sites.items() if state.answer == "undecided"]
        for site, state in self._sites.items():
            if state.answer == "closed":
                log.event(f"{site}: {state.reason}", site=site)
        if asked and self._study.deadlines.approval_s != 0:
            log.event(
                f"waiting for people to approve study {name} at {', '.join(asked)} (there: `./site.sh approve {name}`)"
                f"{self._limit()}",
                waiting=asked,
            )

    def _remind(self, sites: Sites, able: Iterable[str]) -> None:
        now = self._clock()
        if (now - self._reminded).total_seconds() < self._remind_after_s or not self.undecided:
            return
        if self._until is not None and now >= self._until:
            return  # the waiting ends now, which is said at once
        self._reminded, self._remind_after_s = now, min(2 * self._remind_after_s, _LONGEST_REMINDER_S)
        waiting = ", ".join(self._describe(site, sites.online()) for site in self.undecided)
        agreed = ", ".join(sorted(able)) or "no site yet"
        log.event(
            f"still waiting for approval: {waiting}; taking part: {agreed}{self._limit()}",
            waiting=self.undecided,
        )

    def _describe(self, site: str, online: Set[str]) -> str:
        away = "" if site in online else " (not connected)"
        return f"{site}{away} since {_when(self._sites[site].since)}"

    def _rest(self) -> str:
        return f"; still waiting for {', '.join(self.undecided)}" if self.undecided else ""

    def _limit(self) -> str:
        return "" if self._until is None else f"; the study waits until {_when(self._until)}"


def refusal(reason: str) -> str:
    """A person's no, for the log and the last sentence of a study."""
    return f"refused by a person there: {reason}" if reason else "refused by a person there"


def _when(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC"
