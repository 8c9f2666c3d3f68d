"""The loop of rounds: send plans, collect answers, aggregate, step the server optimizer, yield the state.

Rounds are an iterator of states. Checkpoints, reports and early stopping consume it, and resuming starts it
from another state. A round is one message per site: the site scores the weights it received, trains, and
answers with a delta and counts. So the scores of a state belong to the weights its round *started* from, on
validation images. The closing evaluation follows: the final weights are scored on validation images, then the study
has chosen its weights, and those are scored on test images, once.

Nothing here depends on the order in which sites answer, so the same study gives the same bits.
"""

import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from common import log, wire
from common.config import Scaffold, StudyConfig
from common.config.types import MaskPhase, ScoredSide
from common.errors import QuorumNotMet
from common.polling import SLOW_POLL_S, wait_until
from common.weights import Array
from server.aggregation import local_work, server_optimizer
from server.aggregation.averaging import AVERAGE, next_average
from server.aggregation.control_variates import CONTROL, next_control
from server.aggregation.masked_mean import MaskedMean
from server.aggregation.update import limited
from server.rounds import downlink, participation, selection
from server.rounds.collect import ProgressCallback, RoundCollector
from server.rounds.masked_round import MaskedRound
from server.rounds.replies import trainer_weights
from server.rounds.sites import Sites
from server.state import ChosenWeights, Cohort, OptimizerState, RoundState, SiteRound


def no_sites() -> Collection[str]:
    """No site is readmitted."""
    return ()


def run_rounds(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    start: RoundState,
    *,
    readmit: Callable[[], Collection[str]] = no_sites,
    best_weights: Callable[[], Mapping[str, Array]] | None = None,
    on_progress: ProgressCallback = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
    mask_record: Path | None = None,
) -> Iterator[RoundState]:
    """States after round start.round+1, ..., study.rounds, then the closing evaluation.

    Ends earlier if the study's selection stops it. The closing state has the weights of the last round and their
    validation scores, the chosen weights and their test scores, and a round number of one more. `readmit` is called
    before every round and returns the sites that the operator readmits. `best_weights` reads the weights of an earlier
    round that the study has chosen. `on_progress` is called with the progress of the round. `mask_record` is the file
    of `MaskedRound`. Raises QuorumNotMet; every state yielded before is complete.
    """
    state = start
    del start  # no weights but those of `state` are held from round to round
    sites_that_decide = selection.deciding(study, cohort)
    while state.round < study.rounds and not stops_early(study, state):
        state = _trained(
            study,
            sites,
            cohort,
            _readmitted(state, readmit()),
            sites_that_decide,
            on_progress,
            pause,
            mask_record,
        )
        yield state

    def closing(before: RoundState, score: tuple[ScoredSide, ...]) -> RoundState:
        after, _ = _collect(
            study, sites, cohort, before, train=False, score=score, on_progress=on_progress, pause=pause,
            mask_record=mask_record,
        )  # fmt: skip
        return after

    if study.selection is None:  # nothing to choose: one message asks for all
        after = closing(state, ("validation", "test"))
        yield replace(after, closing=True, chosen=ChosenWeights(state.round, state.weights))
        return
    after = selection.judged(study, closing(state, ("validation",)), sites_that_decide)
    chosen = _chosen(state, after, best_weights)
    tested = closing(replace(after, round=chosen.round, weights=chosen.weights, change=None), ("test",))
    yield replace(
        after,
        closing=True,
        chosen=chosen,
        test_scores=tested.test_scores,
        own_scores=tested.own_scores,
        subgroups=tested.subgroups,
        calibration=tested.calibration,
        replicates=tested.replicates,
        sites=_both_messages(after.sites, tested.sites),
        seconds=after.seconds + tested.seconds,
        attempts=max(after.attempts, tested.attempts),
    )


def _trained(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    state: RoundState,
    sites_that_decide: Sequence[str],
    on_progress: ProgressCallback,
    pause: Callable[[float], None],
    mask_record: Path | None,
) -> RoundState:
    """The state after one more round of training. Raises QuorumNotMet."""
    after, collector = _collect(
        study,
        sites,
        cohort,
        state,
        train=True,
        score=_sides(study, state),
        on_progress=on_progress,
        pause=pause,
        mask_record=mask_record,
    )
    collector.log_limited_shares()
    # An array of the delta is computed when the step reads it, so next to the weights before and after it
    # there is none of the whole model.
    delta = collector.tally.result(without=collector.left_out)
    weights, slots = server_optimizer.step(
        study.algorithm, state.weights, delta, state.layout, state.optimizer
    )
    if isinstance(study.algorithm, Scaffold):
        slots = _with_control(study, cohort, slots, state, collector)
    judged = selection.judged(study, after, sites_that_decide)
    adopted, slots, change = downlink.adopt(study, state, weights, slots)
    stepped = replace(judged, weights=adopted, optimizer=slots, change=change)
    return _averaged(study, state, stepped)


def _with_control(
    study: StudyConfig, cohort: Cohort, after: OptimizerState, before: RoundState, collector: RoundCollector
) -> OptimizerState:
    """The optimizer's state with the control variate after this round."""
    counts = trainer_weights(study, cohort)
    shares = limited(list(counts.values()), study.largest_share)
    control = next_control(
        before.optimizer.slots.get(CONTROL, {}),
        collector.counted_updates,
        dict(zip(counts, shares, strict=True)),
        partial(local_work.rate_sum, study, before.round + 1),
    )
    return replace(after, slots={**after.slots, CONTROL: control})


def _averaged(study: StudyConfig, before: RoundState, after: RoundState) -> RoundState:
    """The state with the average of the rounds so far, which is its weights if no round follows."""
    if study.averaging is None:
        return after
    average = next_average(
        study.averaging,
        before.optimizer.slots.get(AVERAGE, {}),
        after.weights,
        after.round,
        study.rounds,
    )
    if not average:
        return after
    is_last = after.round >= study.rounds or stops_early(study, after)
    slots = {**after.optimizer.slots, AVERAGE: average}
    return replace(
        after,
        weights=average if is_last else after.weights,
        change=None if is_last else after.change,
        optimizer=replace(after.optimizer, slots=slots),
    )


def _sides(study: StudyConfig, state: RoundState) -> tuple[ScoredSide, ...]:
    """Sides that the round after `state` scores."""
    if state.round % study.sites.evaluate_every:
        return ()
    return ("validation",) if study.curves_on == "validation" else ("validation", "test")


def _chosen(
    last: RoundState, judged: RoundState, best_weights: Callable[[], Mapping[str, Array]] | None
) -> ChosenWeights:
    """The weights that the selection has chosen; those of the last round if no round made better ones."""
    best = judged.best
    if best is None or best.round in (0, last.round):
        return ChosenWeights(last.round, last.weights)
    assert best_weights is not None, "a study with a selection keeps its best weights"
    return ChosenWeights(best.round, best_weights())


def _both_messages(first: Sequence[SiteRound], second: Sequence[SiteRound]) -> tuple[SiteRound, ...]:
    """Rows of the closing evaluation, in the order of sites: the second message decides, the costs are of both."""
    rows = {row.site: row for row in first}
    for row in second:
        before = rows.get(row.site)
        rows[row.site] = (
            row
            if before is None
            else replace(
                row,
                evaluate_s=before.evaluate_s + row.evaluate_s,
                answered_after_s=before.answered_after_s + row.answered_after_s,
                mib_down=before.mib_down + row.mib_down,
                mib_up=before.mib_up + row.mib_up,
            )
        )
    return tuple(rows[site] for site in sorted(rows))


def stops_early(study: StudyConfig, state: RoundState) -> bool:
    """True if no more rounds are run although more were planned."""
    return selection.reason_to_stop(study, state) is not None


def _readmitted(state: RoundState, sites: Collection[str]) -> RoundState:
    for site in sorted(sites):
        log.event(f"{site} is readmitted by the operator", site=site, round=state.round + 1)
    return participation.readmitted(state, sites)


def _collect(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    state: RoundState,
    *,
    train: bool,
    score: tuple[ScoredSide, ...],
    on_progress: ProgressCallback,
    pause: Callable[[float], None],
    mask_record: Path | None = None,
) -> tuple[RoundState, RoundCollector]:
    """The next state without its weights and optimizer, and the collector with the updates.

    Without a quorum the round is repeated as often as the study allows. Raises QuorumNotMet.
    """
    collector = RoundCollector(study, cohort, state, train=train, score=score, on_progress=on_progress)
    phase = wire.phase_of(train, score)
    masks = _prepared_masks(study, sites, collector, pause, mask_record, phase)
    required = max(study.sites.quorum, study.mask_threshold_of(phase))
    while True:
        collector.ask(sites)
        if collector.num_answered >= required:
            if masks is not None:
                updates = [collector.tally] if isinstance(collector.tally, MaskedMean) else []
                masks.open(collector.masked.sites, [*updates, collector.masked], collector.question)
                compare_with_census(cohort, collector)
                collector.open_scores()
            after = collector.after
            _log_set_aside(study, state, after)
            return after, collector
        after = collector.after
        lacking = (
            f"round {collector.number} has {collector.num_answered} usable answers of training sites, "
            f"{required} are required ({participation.lacking(collector.rows, after.absences)})"
        )
        if (
            not set(collector.unheard) & set(study.sites.train)
            or collector.attempts > study.deadlines.repeats
        ):
            tried = f" after {collector.attempts} attempts" if collector.attempts > 1 else ""
            raise QuorumNotMet(f"{lacking}{tried}. The weights after round {state.round} are kept.")
        log.warn(
            f"{lacking}; asking {', '.join(collector.unheard)} again in {study.deadlines.repeat_after_s:.0f} s "
            f"(repetition {collector.attempts} of {study.deadlines.repeats})",
            round=collector.number,
        )
        pause(study.deadlines.repeat_after_s)
        _wait_for_a_quorum(study, sites, collector, required, pause)


def compare_with_census(cohort: Cohort, collector: RoundCollector) -> None:
    """Log a number of images that is not that of the census: a site then has other images, or lies about its weight."""
    tally, totals = collector.tally, cohort.totals
    if not isinstance(tally, MaskedMean) or totals is None:
        return
    counted = sum(totals.train_counts)
    if tally.num_examples > counted or (tally.sites == totals.sites and tally.num_examples != counted):
        log.warn(
            f"round {collector.number}: the update is of {tally.num_examples} images of {', '.join(tally.sites)}, and "
            f"the census of {', '.join(totals.sites)} counted {counted}",
            round=collector.number,
        )


def _prepared_masks(
    study: StudyConfig,
    sites: Sites,
    collector: RoundCollector,
    pause: Callable[[float], None],
    record: Path | None,
    phase: MaskPhase,
) -> MaskedRound | None:
    """The masks of the collector's round; None in a study without them. Raises QuorumNotMet."""
    if study.secure_aggregation is None:
        return None
    masks = MaskedRound(study, sites, collector.number, pause, record, phase)
    masks.prepare(collector.trainers)
    collector.take_masks(masks.envelopes, masks.lacking)
    return masks


def _wait_for_a_quorum(
    study: StudyConfig,
    sites: Sites,
    collector: RoundCollector,
    required: int,
    pause: Callable[[float], None],
) -> None:
    """Wait until enough missing sites are connected: a repetition that reaches no site is of no use."""
    trainers = set(collector.unheard) & set(study.sites.train)

    def are_enough() -> bool:
        return collector.num_answered + len(trainers & sites.online()) >= required

    if not are_enough():
        log.event(
            f"waiting for {', '.join(sorted(trainers - sites.online()))} to connect", round=collector.number
        )
        wait_until(are_enough, study.deadlines.round_s, poll_s=SLOW_POLL_S, pause=pause)


def _log_set_aside(study: StudyConfig, before: RoundState, after: RoundState) -> None:
    limit = study.admission.set_aside_after
    for site in sorted(
        participation.set_aside(after.refusals, limit) - participation.set_aside(before.refusals, limit)
    ):
        log.warn(
            f"{site} is set aside and gets no more plans: {participation.summary(after.refusals[site])}",
            round=after.round, site=site, outcome="set_aside", refusals=after.refusals[site].in_a_row,
        )  # fmt: skip
