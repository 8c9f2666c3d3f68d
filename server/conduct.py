"""One study from its first question to its last report: enrols the sites, runs the rounds, saves and reports each.

A study ends `finished` only after all rounds and the closing evaluation, or when its selection stops it early. It
ends `finished, incomplete` if a site that was to score the final model did not. A foreseen error ends it as `failed`,
with a sentence in `status.json`. Any other error, a lost SuperLink included, is `crashed`: the study may go on from its
last checkpoint. The program that started the run reads the status, not the log.

Nothing here knows what carries the messages: the sites are behind `server.rounds.sites.Sites`.
"""

import logging
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from common import lock, log
from common.config import StudyConfig
from common.errors import ConsiliumError, StorageError
from common.settings import load_settings
from common.weights import Array
from server.config import ServerConfig
from server.enrolment import approvals, census, masked_census, overlap_check, validation_classes
from server.enrolment import cohort as enrolment
from server.heads import fit, outliers, record
from server.report import census_table, terminal, tracking
from server.report import write as report
from server.report.outcome import Ending
from server.rounds import scores, selection
from server.rounds.loop import run_rounds
from server.rounds.sites import Sites
from server.state import Cohort, RoundState
from server.storage import calibration, checkpoint, history, requests, start_weights
from server.storage.status import (
    INCOMPLETE,
    Stage,
    add_resumption,
    read_status,
    set_absent,
    set_approvals,
    set_progress,
    set_status,
)

OLD_SELF_S = 20.0
"""Time for an earlier server of this study to end before this one begins."""


def conduct(config: ServerConfig, sites: Sites, pause: Callable[[float], None] = time.sleep) -> None:
    """Run one study to its end. Raises ConsiliumError, and status.json then says `failed`.

    `pause` waits, in seconds, for sites to connect or to recover.
    """
    with lock.held(config.run_dir / "server.lock", "a study's server", wait_s=OLD_SELF_S):
        _conduct_with_status(config, sites, pause)


def _conduct_with_status(config: ServerConfig, sites: Sites, pause: Callable[[float], None]) -> None:
    run_dir = config.run_dir
    try:
        study = load_settings(config.study, StudyConfig, "study")
        study.require_vectors()
        set_status(run_dir, "running", f"study {study.name}")
        set_absent(run_dir, {})  # of an earlier start
        ending = _conduct(config, study, sites, pause)
    except (KeyboardInterrupt, SystemExit):  # asked to end, by a person or a supervisor
        log.warn("the server of the study was stopped; its next start goes on with the study")
        with suppress(StorageError):
            set_status(run_dir, "crashed", "the server was stopped")
        raise
    except BaseException as error:
        reason = str(error) if isinstance(error, ConsiliumError) else f"{type(error).__name__}: {error}"
        _warn_of_absent(run_dir)
        if isinstance(error, ConsiliumError):
            log.lines(f"the study failed: {reason}", level=logging.ERROR)
        else:
            log.logger.error("the study failed: %s", reason, exc_info=True)
        stage: Stage = "failed" if isinstance(error, ConsiliumError) else "crashed"
        if stage == "failed":
            _report_failure(config, reason)
        try:
            set_status(run_dir, stage, reason)
        except StorageError as full:  # a full disk must not hide why the study failed
            log.logger.error("%s", full)
        raise
    _warn_of_absent(run_dir)
    tell = log.event if ending.stage == "finished" else log.warn
    tell(f"study {study.name} {ending.stage} after {ending.reason}; everything is in {run_dir}")
    # last: a reader that waits for it stops reading the log
    set_status(run_dir, ending.stage, ending.reason)


def _warn_of_absent(run_dir: Path) -> None:
    """Name the sites that did not take part among the last lines of the log, where a person looks first."""
    with suppress(StorageError):
        now = read_status(run_dir)
        for site, reason in {} if now is None else now.absent.items():
            log.warn(f"{site} took no part: {reason}", site=site, outcome="absent")


def _report_failure(config: ServerConfig, reason: str) -> None:
    """Write the report of a failed study, if a round is on record.

    Whatever goes wrong is logged and no more: the status must still say why the study failed.
    """
    try:
        if history.read_rounds(config.run_dir):
            study = load_settings(config.study, StudyConfig, "study")
            _write_report(config, study, ending=Ending("failed", reason))
    except Exception as error:
        log.logger.error("the report could not be written: %s", error)


def _conduct(
    config: ServerConfig, study: StudyConfig, sites: Sites, pause: Callable[[float], None]
) -> Ending:
    """Run the study. Returns how it ended and how far it came, as a sentence for its status."""
    synthetic = "; SYNTHETIC images, the figures say nothing about medicine" if config.synthetic else ""
    log.event(
        f"study {study.name}: {study.model.encoder}, {len(study.classes)} classes, "
        + (f"{study.rounds} rounds of {study.algorithm.kind} with " if study.rounds else "only scores, with ")
        + f"{', '.join(study.sites.train if study.rounds else study.sites.all)}{synthetic}"
    )
    if study.start_from is not None:
        log.event(f"it starts from {study.start_from.name} (hash {study.start_from.sha256[:12]})")
    tracking.require_libraries(config)
    enrolment.wait_for_sites(study, sites, pause)
    start, cohort = _begin(config, study, sites)
    cohort = masked_census.counted(study, sites, cohort, config.run_dir, pause)
    cohort = replace(cohort, absent={site: _why(config, site, why) for site, why in cohort.absent.items()})
    set_absent(config.run_dir, cohort.absent)
    counts = census.count(study, cohort.enrolments, cohort.totals)
    log.lines(census_table.table(study, counts))
    census.save(config.run_dir, census.with_earlier(study, counts, config.run_dir, start.round))
    census.require_classes(study, counts)
    selection.require_validation(study, cohort)
    validation_classes.require(study, counts, selection.deciding(study, cohort))
    overlap_check.compare(study, sites, cohort, config.run_dir)
    readmit = partial(requests.take_readmitted, config.run_dir)
    on_progress = partial(set_progress, config.run_dir)
    best_weights = partial(_best_weights, config, study)
    preprocessing = start.preprocessing
    states = run_rounds(
        study, sites, cohort, start,
        readmit=readmit, best_weights=best_weights, on_progress=on_progress, pause=pause,
        mask_record=config.run_dir / "opening.json",
    )  # fmt: skip
    done = start.round
    del start  # its weights are needed for one round only
    with tracking.following(config, study, done) as track:
        for state in states:
            log.lines(terminal.round_table(study, state, synthetic=config.synthetic), round=state.round)
            report.append_round(config.run_dir, state, study)
            checkpoint.keep_best(config.run_dir, state)
            track()
            if not state.closing:
                checkpoint.save(config.run_dir, state, study)
                scores.require_heard(study, state)
                _fit_heads(config, study, sites, cohort, state, pause)
    checkpoint.save_weights(config.run_dir / "weights.safetensors", state, study)
    calibration.keep(config.run_dir, state, study)
    if (best := checkpoint.best(config.run_dir)) is not None:
        checkpoint.save_weights(config.run_dir / "best.safetensors", checkpoint.load(best, study), study)
    _write_report(config, study, preprocessing)
    if _fit_heads(config, study, sites, cohort, state, pause):
        _write_report(config, study, preprocessing)
    scores.require_heard(study, state)
    return _ending(study, state, cohort)


def _best_weights(config: ServerConfig, study: StudyConfig) -> Mapping[str, Array]:
    """Weights of the best round so far. Raises StorageError."""
    best = checkpoint.best(config.run_dir)
    if best is None:
        raise StorageError(
            f"the weights of the best round are no longer in {config.run_dir}; put best.safetensors back into its "
            "folder `checkpoints`"
        )
    return checkpoint.load(best, study).weights


def _why(config: ServerConfig, site: str, reason: str) -> str:
    """Why a site is absent. A site without a key can never connect, however long the server waits."""
    return reason if site in config.node_ids else f"{reason}; no key of it is enrolled at the server"


def _ending(study: StudyConfig, state: RoundState, cohort: Cohort) -> Ending:
    """How a study ended whose closing evaluation is done."""
    num_rounds, early = state.round - 1, selection.reason_to_stop(study, state)
    done = f"{num_rounds} rounds" if early is None else f"{num_rounds} of {study.rounds} rounds: {early}"
    lacking = scores.unscored_in(study, state)
    left = [f"{site} took no part: {cohort.absent[site]}" for site in cohort.absent if site not in lacking]
    done = done if study.rounds else "scoring, without rounds"
    parts = [done, *([scores.sentence(lacking)] if lacking else []), *left]
    incomplete = lacking and study.sites.evaluate_missing == "incomplete"
    if incomplete:
        parts.append("start what is missing, and `resume` repeats the closing evaluation")
    return Ending(INCOMPLETE if incomplete else "finished", "; ".join(parts))


def _write_report(
    config: ServerConfig,
    study: StudyConfig,
    preprocessing: Mapping[str, Any] | None = None,
    ending: Ending | None = None,
) -> None:
    """Write the report. Raises StorageError."""
    report.write_report(
        config.run_dir,
        study,
        preprocessing=preprocessing,
        synthetic=config.synthetic,
        start_from=config.start_from,
        ending=ending,
    )


def _fit_heads(
    config: ServerConfig,
    study: StudyConfig,
    sites: Sites,
    cohort: Cohort,
    state: RoundState,
    pause: Callable[[float], None],
) -> bool:
    """Fit, score and keep the study's heads, if they are due. Raises QuorumNotMet."""
    if not fit.due(study, state):
        return False
    if state.chosen is not None:  # of the weights that the study has chosen, which its test figures are of
        state = replace(state, round=state.chosen.round + 1, weights=state.chosen.weights)
    fitted = fit.fit(study, sites, cohort, state, pause, config.run_dir / "opening.json")
    record.keep(config.run_dir, fitted.record, fitted.heads, study, state)
    if state.closing and study.out_of_distribution is not None:
        outliers.keep(config.run_dir, fitted.outliers, study, state)
    return True


def _begin(config: ServerConfig, study: StudyConfig, sites: Sites) -> tuple[RoundState, Cohort]:
    """The state to go on from, the last checkpoint of this run or the first weights; and the cohort without weights."""
    last = checkpoint.latest(config.run_dir)
    now = read_status(config.run_dir)
    people = approvals.WaitingRecord(
        None if now is None else now.approvals, partial(set_approvals, config.run_dir)
    )
    if last is not None:
        state = checkpoint.load(last, study)
        log.event(f"resuming after round {state.round} of {study.rounds}", round=state.round)
        add_resumption(config.run_dir, state.round)
        cohort = enrolment.enrol(study, sites, state.weights, first_round=state.round + 1, people=people)
        return state, replace(cohort, weights={})
    first = None if config.start_from is None else start_weights.load(study, config.start_from)
    cohort = enrolment.enrol(study, sites, first, people=people)
    reference = cohort.reference
    start = RoundState(0, cohort.weights, reference.layout, reference.preprocessing)
    return start, replace(cohort, weights={})
