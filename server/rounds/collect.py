"""The collector of one round: sends the plans, admits or refuses the answers, keeps a row for each site.

A round can be repeated. Only sites that failed or stayed silent are asked again, with the same plans: a plan
is answered by its id, so a site does not train the same work twice. Admitted answers stay, so a repetition
costs the other sites nothing.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from typing import TypeAlias

from common import log, wire
from common.config import FedNova, OwnModel, Scaffold, StudyConfig, own_models
from common.config.types import ScoredSide
from common.errors import UpdateRejected
from common.metrics import NUM_BINS, Score
from common.metrics.calibration import CalibrationCounts
from common.metrics.pooling import POOLED
from common.metrics.replicates import Replicates
from common.metrics.subgroups import SubgroupCounts
from common.weights import Arrays, digest, num_bytes
from common.wire import questions
from common.wire.mask_steps import Envelopes
from server.aggregation import local_work, tally
from server.aggregation.masked_tables import MaskedTables
from server.aggregation.tally import AdmittedUpdate
from server.rounds import admission, calibration, downlink, participation, replies, stragglers
from server.rounds.failures import printable
from server.rounds.masked_round import with_envelopes
from server.rounds.plans import round_plans
from server.rounds.sites import Deadline, Reply, Sites
from server.state import Asked, Cohort, Progress, RoundState, SiteRound

ProgressCallback: TypeAlias = Callable[[Progress], None]
"""Called with the progress of a round whenever it changes."""

_NOT_ASKED = ("set_aside", "absent")
"""Outcomes of sites that get no plan."""


@dataclass(frozen=True)
class _Measured:
    """What an admitted update is compared by with the others of its round."""

    norm: float
    statistics_norm: float
    num_examples: int


class RoundCollector:
    """Answers to round `state.round + 1` so far."""

    def __init__(
        self,
        study: StudyConfig,
        cohort: Cohort,
        state: RoundState,
        *,
        train: bool,
        score: tuple[ScoredSide, ...] = ("validation",),
        on_progress: ProgressCallback = lambda _: None,
    ) -> None:
        self._study, self._cohort, self._before, self._train = study, cohort, state, train
        self.number = state.round + 1
        self.attempts = 0
        self.tally = tally.build_tally(
            study.aggregation,
            side_by_side=study.admission.max_norm_ratio is not None,
            max_share=study.largest_share,
            way=partial(local_work.way, study, self.number) if isinstance(study.algorithm, FedNova) else None,
            masked=state.layout if train and study.secure_aggregation is not None else None,
        )
        """The admitted updates; its result must leave out `left_out`."""
        self.left_out: set[str] = set()
        """Sites whose update was admitted first, and then refused for its norm beside the others."""
        self._started = time.monotonic()
        self.corrected: list[AdmittedUpdate] = []
        """SCAFFOLD: the admitted updates, `left_out` included."""
        self._aside = participation.set_aside(state.refusals, study.admission.set_aside_after)
        self._plans = round_plans(study, cohort, state, self._aside, train=train, score=score)
        self._mib_down = {site: _mib(plan.weights) for site, plan in self._plans.items()}
        self._on_progress, self._since, self._deadline_s = on_progress, datetime.now(UTC), 0.0
        self._updates: dict[str, _Measured] = {}
        self._scores: dict[str, Mapping[ScoredSide, Score]] = {}
        self._own: dict[str, Mapping[OwnModel, Score]] = {}
        self._subgroups: dict[str, Mapping[str, SubgroupCounts]] = {}
        self._calibration: dict[str, CalibrationCounts] = {}
        self.masked = MaskedTables()
        """With masks: tables of scores, which `open_scores` reads once their masks are off."""
        self._bins: list[int] = []
        self._pooled: Mapping[ScoredSide, Score] = {}
        self._replicates: dict[str, Replicates] = {}
        self._rows: dict[str, SiteRound] = {}
        for site in sorted(self._aside & cohort.enrolments.keys()):
            reason = f"{participation.summary(state.refusals[site])}; no plan until the operator readmits it"
            self._rows[site] = SiteRound(site, "set_aside", reason)
        for site, reason in cohort.absent.items():
            self._rows[site] = SiteRound(site, "absent", printable(reason))

    @property
    def trainers(self) -> list[str]:
        """Training sites that are asked in this round."""
        return [site for site in self._plans if site in self._study.sites.train]

    @property
    def question(self) -> str:
        """What the training sites are asked, which their masks are for."""
        plan = self._plans[self.trainers[0]]
        return questions.of_round(plan, digest(self._before.weights))

    def take_masks(self, envelopes: Mapping[str, Envelopes], lacking: Mapping[str, str]) -> None:
        """Give each training site the shares for it; `lacking` sites have no masks, and are not asked."""
        for site in self.trainers:
            if site in envelopes:
                self._plans[site] = with_envelopes(self._plans[site], envelopes[site])
                continue
            del self._plans[site]
            self._enter(SiteRound(site, "failed", printable(lacking.get(site, "it has no masks"))))

    # --- asking --------------------------------------------------------------------------

    def ask(self, sites: Sites) -> None:
        """Send the plans of all `unheard` sites, and wait for answers until the study's deadline."""
        deadlines = self._study.deadlines
        deadline = Deadline(deadlines.round_s if self._train else deadlines.evaluate_s)
        full_s, started = deadline.seconds, time.monotonic()
        plans = {site: self._plans[site] for site in self._plans if site in self.unheard}
        for site in plans:
            self._rows.pop(site, None)
        self.attempts += 1
        log.event(
            f"round {self.number} of {self._study.rounds}: {self._loads(plans)}"
            if self._train
            else f"closing: the weights after round {self._before.round} go to {', '.join(plans)} to be scored",
            round=self.number,
        )
        self._since, self._deadline_s = datetime.now(UTC), full_s
        self._report_progress()
        quorum_after_s = None
        for reply in self._replies(sites, plans, deadline):
            self._take(reply)
            if quorum_after_s is None and self.num_answered >= self._study.sites.quorum:
                quorum_after_s = time.monotonic() - started
                deadline.seconds = stragglers.patience(
                    deadlines.grace, quorum_after_s, self._before.answer_times, full_s
                )
        waited_s = deadline.seconds
        for site in sorted(plans.keys() - self._rows.keys()):
            self._enter(
                SiteRound(
                    site, "missing", f"no answer within {waited_s:.0f} s",
                    mib_down=self._mib_down[site], answered_after_s=waited_s,
                )
            )  # fmt: skip
        self._compare_norms()

    def _replies(
        self, sites: Sites, plans: Mapping[str, wire.RoundPlan], deadline: Deadline
    ) -> Iterator[Reply]:
        """Replies of all sites. One that does not hold the weights before gets whole ones, within the deadline."""
        started, again = time.monotonic(), dict[str, wire.RoundPlan]()
        for reply in sites.ask(plans, deadline):
            plan = self._plans.get(reply.site)
            lacks = isinstance(reply.answer, wire.Failure) and reply.answer.error == "no_base"
            if lacks and not reply.late and plan is not None and plan.base is not None:
                again[reply.site] = self._plans[reply.site] = downlink.whole(plan, self._before)
                self._mib_down[reply.site] += _mib(self._before.weights)
                log.event(
                    f"round {self.number}  {reply.site}: does not hold the weights before, it gets whole ones",
                    round=self.number, site=reply.site,
                )  # fmt: skip
            else:
                yield reply
        left_s = deadline.seconds - (time.monotonic() - started)
        if again and left_s > 0:
            yield from sites.ask(again, Deadline(left_s))

    def _loads(self, plans: Mapping[str, wire.RoundPlan]) -> str:
        """How much goes to which sites."""
        parts = []
        for what, has_base in (("weights", False), ("changes", True)):
            names = [site for site, plan in plans.items() if (plan.base is not None) == has_base]
            if names:
                most = max(_mib(plans[name].weights) for name in names)
                parts.append(f"{most:.1f} MiB of {what} to {', '.join(names)}")
        return "; ".join(parts)

    def _take(self, reply: Reply) -> None:
        site, number = reply.site, self.number
        if reply.late:
            of = f" to round {reply.answer.round}" if isinstance(reply.answer, wire.RoundAnswer) else ""
            log.warn(
                f"round {number}  {site}: late answer{of} dropped (deadline passed)",
                round=number, site=site, outcome="late",
            )  # fmt: skip
            return
        if site in self._rows or site not in self._plans:
            self._log_uncounted(site)
            return
        row = SiteRound(
            site, "ok", answered_after_s=reply.after_s, mib_down=self._mib_down[site],
            mib_up=_mib(wire.arrays_of(reply.answer)),
        )  # fmt: skip
        try:
            update, scores, row = replies.read(
                self._study, self._cohort, self._before, self._plans[site], reply, row
            )
            counts = self._calibrated(reply)
            tables = replies.masked_tables(self._study, self._plans[site], reply)
        except UpdateRejected as rejection:
            row = replace(row, outcome="refused", reason=printable(str(rejection)))
        else:
            if isinstance(reply.answer, wire.RoundAnswer) and self._plans[site].envelopes is not None:
                self.masked.add(site, tables)
                self._bins.append(reply.answer.score_bins or NUM_BINS)
            if update is not None:
                if self._plans[site].envelopes is None:
                    self._updates[site] = _Measured(update.norm, update.statistics_norm, update.num_examples)
                self.tally.add(update)
                if isinstance(self._study.algorithm, Scaffold):
                    self.corrected.append(update)
            self._scores[site] = scores
            if isinstance(reply.answer, wire.RoundAnswer):
                self._own[site] = reply.answer.own
                self._subgroups[site] = reply.answer.subgroups
                if reply.answer.replicates is not None:
                    self._replicates[site] = reply.answer.replicates
            if counts is not None:
                self._calibration[site] = counts
        self._enter(row)

    def _calibrated(self, reply: Reply) -> CalibrationCounts | None:
        """Calibration counts in a reply, if any. Raises UpdateRejected."""
        if not isinstance(reply.answer, wire.RoundAnswer):
            return None
        validation = self._cohort.counts(reply.site, "validation")
        return calibration.admit(self._plans[reply.site], reply.answer, validation)

    def _enter(self, row: SiteRound) -> None:
        self._rows[row.site] = row
        self._report_progress()
        replies.log_row(self.number, row, self._scores.get(row.site, {}))

    def _report_progress(self) -> None:
        sites = {site: Asked(outcome="awaited") for site in self._plans}
        for row in self._rows.values():
            silent = row.outcome in ("missing", *_NOT_ASKED)
            after_s = None if silent else row.answered_after_s
            sites[row.site] = Asked(outcome=row.outcome, after_s=after_s, reason=row.reason)
        self._on_progress(
            Progress(
                round=self.number,
                rounds=self._study.rounds,
                closing=not self._train,
                attempt=self.attempts,
                since=self._since,
                deadline_s=self._deadline_s,
                sites={site: sites[site] for site in sorted(sites)},
            )
        )

    def _log_uncounted(self, site: str) -> None:
        """Log an answer that does not count. After a first one, the row of the first one mentions it."""
        row = self._rows.get(site)
        if row is None or row.outcome in _NOT_ASKED:
            reason = "an answer was refused, the site was not asked"
        else:
            reason = "a second answer was refused, the first one counts"
            if reason not in row.reason:
                self._rows[site] = replace(row, reason="; ".join(filter(None, (row.reason, reason))))
        log.warn(
            f"round {self.number}  {site}: {reason}",
            round=self.number, site=site, outcome="refused", reason=reason,
        )  # fmt: skip

    def _compare_norms(self) -> None:
        """Compare the norms of all admitted updates of the round."""
        counted = {site: update for site, update in self._updates.items() if site not in self.left_out}
        rules, reasons = self._study.admission, dict[str, str]()
        if any(update.statistics_norm for update in counted.values()):
            statistics = {site: update.statistics_norm for site, update in counted.items()}
            reasons |= admission.too_long(statistics, rules, "its running statistics change by")
        reasons |= admission.too_long(
            {site: update.norm for site, update in counted.items()}, rules, of_one_class=self._of_one_class()
        )
        for site, reason in sorted(reasons.items()):
            self.left_out.add(site)
            self._scores.pop(site, None)
            self._enter(replace(self._rows[site], outcome="refused", reason=reason))

    def _of_one_class(self) -> set[str]:
        """Sites whose training images are all of one class."""
        counts = {site: enrolment.train_counts for site, enrolment in self._cohort.enrolments.items()}
        return {site for site, of_classes in counts.items() if sum(map(bool, of_classes)) == 1}

    def log_limited_shares(self) -> None:
        """Log the site, if any, whose share of the weight is cut to the study's limit."""
        most = self._study.largest_share
        counts = {
            site: update.num_examples for site, update in self._updates.items() if site not in self.left_out
        }
        for site, count in sorted(counts.items()):
            share = count / sum(counts.values())
            if most < 1 and share > most and len(counts) > 1:
                images = replies.weight(self._study, self._cohort, site) is None
                claim = f"claims {count} examples" if images else "has the weight of its classes or of a site"
                log.warn(
                    f"round {self.number}  {site}: {claim}, {100 * share:.0f} % of this round's; its "
                    f"weight is cut to {100 * max(most, 1 / len(counts)):.0f} % (aggregation.max_share)",
                    round=self.number, site=site,
                )  # fmt: skip

    # --- results -------------------------------------------------------------------------

    @property
    def rows(self) -> tuple[SiteRound, ...]:
        """One row a site, in the order of names."""
        return tuple(self._rows[site] for site in sorted(self._rows))

    @property
    def counted_updates(self) -> list[AdmittedUpdate]:
        """SCAFFOLD: the updates that count. Other algorithms keep none."""
        return [update for update in self.corrected if update.site not in self.left_out]

    @property
    def num_answered(self) -> int:
        """Training sites whose answer counts."""
        return sum(self._rows[s].outcome == "ok" for s in self._study.sites.train if s in self._rows)

    @property
    def unheard(self) -> list[str]:
        """Sites that a repetition would ask. A refused site would send the same answer again."""
        silent = {"failed", "missing"}
        return [site for site in self._plans if site not in self._rows or self._rows[site].outcome in silent]

    def open_scores(self) -> None:
        """Read the scores of all sites together, whose masks are off. Wrong ones are logged, and there is no score."""
        try:
            self._pooled = replies.pooled_scores(self._study, self.masked.sums, self._bins)
        except ValueError as error:
            log.warn(
                f"round {self.number}: the sites' scores add up to none ({printable(str(error))}): a site sent wrong "
                "numbers; no score of this round is used",
                round=self.number,
            )

    def _on(self, side: ScoredSide) -> dict[str, Score]:
        """Scores on one side by site, in the order of names; with masks, of all of them together."""
        if side in self._pooled:
            return {POOLED: self._pooled[side]}
        return {site: scores[side] for site, scores in sorted(self._scores.items()) if side in scores}

    @property
    def after(self) -> RoundState:
        """The next state, without its weights and optimizer."""
        before = self._before
        times = [row.answered_after_s for row in self.rows if row.outcome == "ok"]
        return replace(
            before,
            round=self.number,
            sites=self.rows,
            counted={**before.counted, **{update.site: self.number for update in self.counted_updates}},
            scores=self._on("validation"),
            test_scores=self._on("test"),
            own_scores={
                name: {site: own[name] for site, own in sorted(self._own.items()) if name in own}
                for name in own_models(self._study.personalisation)
            }
            if not self._train
            else {},
            subgroups={site: counts for site, counts in sorted(self._subgroups.items()) if counts},
            calibration=dict(sorted(self._calibration.items())),
            replicates=dict(sorted(self._replicates.items())),
            seconds=time.monotonic() - self._started,
            refusals=participation.counted(before.refusals, self.number, self.rows),
            absences=participation.absences(before.absences, self.number, self.rows, datetime.now(UTC)),
            answer_times=(*before.answer_times, *times)[-stragglers.MEMORY * len(self._plans) :],
            attempts=self.attempts,
        )


def _mib(arrays: Arrays) -> float:
    return num_bytes(arrays) / 2**20
