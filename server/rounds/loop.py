"""The story of a study: send, gather, admit, aggregate, step, score; again.

Rounds are an iterator of states. Checkpoint, report and early stop are plain consumers of
it, and to resume is to start it from another state. A round is one message per site: the
site scores what it received, trains, and answers with a delta and counts. So the scores of
a state belong to the weights its round *started* from, and a last round that only evaluates
closes the study with the scores of the final weights.

Nothing here depends on the order in which sites answer, so the same study gives the same bits.
"""

import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace

from common import log
from common.config import StudyConfig
from common.errors import QuorumNotMet
from server.aggregation import server_optimizer
from server.rounds import participation, selection
from server.rounds.collect import ProgressCallback, RoundCollector
from server.rounds.sites import Sites
from server.state import Cohort, RoundState

_LOOK_S = 2.0


def nobody() -> Collection[str]:
    """No site is let back in."""
    return ()


def run_rounds(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    start: RoundState,
    *,
    readmit: Callable[[], Collection[str]] = nobody,
    tell: ProgressCallback = lambda _: None,
    pause: Callable[[float], None] = time.sleep,
) -> Iterator[RoundState]:
    """States after round start.round+1, ..., study.rounds, then the closing evaluation.

    Ends earlier if the study's selection has no more patience. The closing state carries the
    weights of the last round, their scores, and a round of one more. `readmit` is asked before
    every round which sites the operator lets back in; `tell` is told how far a round has come.
    Raises QuorumNotMet; every state yielded before is whole.
    """
    state = start
    while state.round < study.rounds and not stops_early(study, state):
        after, call = _hear(
            study, sites, cohort, _readmitted(state, readmit()), train=True, tell=tell, pause=pause
        )
        delta = call.tally.result(without=call.left_out)
        weights, slots = server_optimizer.step(
            study.algorithm, state.weights, delta, state.layout, state.optimizer
        )
        state = replace(selection.judged(study, after), weights=weights, optimizer=slots)
        yield state
    after, _ = _hear(study, sites, cohort, state, train=False, tell=tell, pause=pause)
    yield selection.judged(study, replace(after, closing=True))


def stops_early(study: StudyConfig, state: RoundState) -> bool:
    """True if no more rounds are run although more were planned."""
    return selection.reason_to_stop(study, state) is not None


def _readmitted(state: RoundState, sites: Collection[str]) -> RoundState:
    for site in sorted(sites):
        log.event(f"{site} is let back in by the operator", site=site, round=state.round + 1)
    return participation.readmitted(state, sites)


def _hear(
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    state: RoundState,
    *,
    train: bool,
    tell: ProgressCallback,
    pause: Callable[[float], None],
) -> tuple[RoundState, RoundCollector]:
    """The next state, but for weights and optimizer, and the call that led to it.

    Repeated without a quorum as often as the study allows. Raises QuorumNotMet.
    """
    call = RoundCollector(study, cohort, state, train=train, tell=tell)
    while True:
        call.ask(sites)
        after = call.after
        if call.num_answered >= study.sites.quorum:
            _say_set_aside(study, state, after)
            return after, call
        lacking = (
            f"round {call.number} has {call.num_answered} usable answers of training sites, {study.sites.quorum} "
            f"are required ({participation.lacking(call.rows, after.absences)})"
        )
        if not set(call.unheard) & set(study.sites.train) or call.attempts > study.deadlines.repeats:
            tried = f" after {call.attempts} attempts" if call.attempts > 1 else ""
            raise QuorumNotMet(f"{lacking}{tried}. The weights after round {state.round} are kept.")
        log.warn(
            f"{lacking}; asking {', '.join(call.unheard)} again in {study.deadlines.repeat_after_s:.0f} s "
            f"(repetition {call.attempts} of {study.deadlines.repeats})",
            round=call.number,
        )
        pause(study.deadlines.repeat_after_s)
        _wait_for_a_quorum(study, sites, call, pause)


def _wait_for_a_quorum(
    study: StudyConfig, sites: Sites, call: RoundCollector, pause: Callable[[float], None]
) -> None:
    """Wait until enough of those who lacked are connected: to ask nobody is no repetition."""
    trainers, waited_s = set(call.unheard) & set(study.sites.train), 0.0
    while call.num_answered + len(trainers & sites.online()) < study.sites.quorum:
        if waited_s >= study.deadlines.round_s:
            return
        if waited_s == 0:
            log.event(
                f"waiting for {', '.join(sorted(trainers - sites.online()))} to connect", round=call.number
            )
        pause(_LOOK_S)
        waited_s += _LOOK_S


def _say_set_aside(study: StudyConfig, before: RoundState, after: RoundState) -> None:
    limit = study.admission.set_aside_after
    for site in sorted(
        participation.set_aside(after.refusals, limit) - participation.set_aside(before.refusals, limit)
    ):
        log.warn(
            f"{site} is set aside and gets no more plans: {participation.summary(after.refusals[site])}",
            round=after.round, site=site, outcome="set_aside", refusals=after.refusals[site].in_a_row,
        )  # fmt: skip
