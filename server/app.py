"""The ServerApp: enrols the sites, runs the rounds, saves and reports each of them.

A study ends `finished` only after all rounds and the closing evaluation, or when its selection stops it early.
A foreseen error ends it as `failed`, with a sentence in `status.json` and an exception that Flower turns into
a failed run. Any other error, a lost SuperLink included, is `crashed`: the study may go on from its last
checkpoint. The program that started the run reads the status, not the log.
"""

from functools import partial
from pathlib import Path

from flwr.app import Context
from flwr.serverapp import Grid, ServerApp

from common import lock, log
from common.config import StudyConfig
from common.errors import ConsiliumError, StorageError
from common.settings import load_settings
from common.weights import load_file
from server.config import ServerConfig
from server.enrolment import census, overlap_check
from server.enrolment import cohort as enrolment
from server.heads import fit, record
from server.report import census_table, terminal
from server.report import write as report
from server.rounds import selection
from server.rounds.flower_sites import FlowerSites
from server.rounds.loop import run_rounds
from server.rounds.sites import Sites
from server.state import Cohort, RoundState
from server.storage import checkpoint, requests
from server.storage.status import set_progress, set_status

app = ServerApp()

OLD_SELF_S = 20.0
"""Time for an earlier server of this study to end before this one begins."""


@app.main()
def main(grid: Grid, context: Context) -> None:
    """Flower's entry: run the study that the operator's server.yaml names."""
    config = load_settings(Path(str(context.run_config["server"])), ServerConfig, "server")
    conduct(config, FlowerSites(grid, config.node_ids))


def conduct(config: ServerConfig, sites: Sites) -> None:
    """Run one study to its end. Raises ConsiliumError, and status.json then says `failed`."""
    run_dir = config.run_dir
    log.start(config.log, run_dir / "server.log")
    with lock.held(run_dir / "server.lock", "a study's server", wait_s=OLD_SELF_S):
        _conduct_with_status(config, sites)


def _conduct_with_status(config: ServerConfig, sites: Sites) -> None:
    run_dir = config.run_dir
    try:
        study = load_settings(config.study, StudyConfig, "study")
        study.require_vectors()
        set_status(run_dir, "running", f"study {study.name}")
        done = _conduct(config, study, sites)
    except BaseException as error:
        reason = str(error) if isinstance(error, ConsiliumError) else f"{type(error).__name__}: {error}"
        log.logger.error("the study failed: %s", reason, exc_info=not isinstance(error, ConsiliumError))
        try:
            set_status(run_dir, "failed" if isinstance(error, ConsiliumError) else "crashed", reason)
        except StorageError as full:  # a full disk must not hide why the study failed
            log.logger.error("%s", full)
        raise
    log.event(f"study {study.name} finished after {done}; everything is in {run_dir}")
    set_status(run_dir, "finished", done)  # last: a reader that waits for it stops reading the log


def _conduct(config: ServerConfig, study: StudyConfig, sites: Sites) -> str:
    """Run the study. Returns how far it came, as a sentence for its status."""
    synthetic = "; SYNTHETIC images, the figures say nothing about medicine" if config.synthetic else ""
    log.event(
        f"study {study.name}: {study.model.encoder}, {len(study.classes)} classes, {study.rounds} rounds of "
        f"{study.algorithm.kind} with {', '.join(study.sites.train)}{synthetic}"
    )
    enrolment.wait_for_sites(study, sites)
    start, cohort = _begin(config, study, sites)
    counts = census.count(study, cohort.enrolments)
    log.event(census_table.table(study, counts))
    census.save(config.run_dir, counts)
    census.require_classes(study, counts)
    overlap_check.compare(study, sites, cohort, config.run_dir)
    readmit = partial(requests.take_readmitted, config.run_dir)
    on_progress = partial(set_progress, config.run_dir)
    for state in run_rounds(study, sites, cohort, start, readmit=readmit, on_progress=on_progress):
        log.event(terminal.round_table(study, state, synthetic=config.synthetic), round=state.round)
        report.append_round(config.run_dir, state, study)
        checkpoint.keep_best(config.run_dir, state)
        if not state.closing:
            checkpoint.save(config.run_dir, state, study)
            _fit_heads(config, study, sites, cohort, state)
    checkpoint.save_weights(config.run_dir / "weights.safetensors", state, study)
    if (best := checkpoint.best(config.run_dir)) is not None:
        checkpoint.save_weights(config.run_dir / "best.safetensors", checkpoint.load(best, study), study)
    write = partial(report.write_report, preprocessing=start.preprocessing, synthetic=config.synthetic)
    write(config.run_dir, study)
    if _fit_heads(config, study, sites, cohort, state):
        write(config.run_dir, study)
    early = selection.reason_to_stop(study, state)
    num_rounds = state.round - 1
    return f"{num_rounds} rounds" if early is None else f"{num_rounds} of {study.rounds} rounds: {early}"


def _fit_heads(
    config: ServerConfig, study: StudyConfig, sites: Sites, cohort: Cohort, state: RoundState
) -> bool:
    """Fit, score and keep the study's heads, if they are due. Raises QuorumNotMet."""
    if not fit.due(study, state):
        return False
    fitted = fit.fit(study, sites, cohort, state)
    record.keep(config.run_dir, fitted.record, fitted.heads, study, state)
    return True


def _begin(config: ServerConfig, study: StudyConfig, sites: Sites) -> tuple[RoundState, Cohort]:
    """The state to go on from: the last checkpoint of this run, or the first weights."""
    last = checkpoint.latest(config.run_dir)
    if last is not None:
        state = checkpoint.load(last, study)
        log.event(f"resuming after round {state.round} of {study.rounds}", round=state.round)
        return state, enrolment.enrol(study, sites, state.weights, first_round=state.round + 1)
    first = None if config.start_from is None else load_file(config.start_from)[0]
    cohort = enrolment.enrol(study, sites, first)
    reference = cohort.reference
    return RoundState(0, cohort.weights, reference.layout, reference.preprocessing), cohort
