"""Figures of the rounds for the operator's own TensorBoard or MLflow.

Nothing is tracked unless the operator's settings say so, and no site knows of it. What is written are lines of
`rounds.jsonl`, each once: a resumed study goes on in the same run, and a round that it repeats is the same figure.
A tracker that fails is named in the log and left out. It never stops a study.
"""

import math
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol, assert_never

from pydantic import BaseModel

from common import log
from common.config import StudyConfig
from common.errors import ConfigError
from common.files import read_json, write_json
from server.config import MlflowTracking, ServerConfig, TensorBoardTracking, Tracking
from server.storage import history
from server.storage.history import RoundRecord, ScoredModel

FILE = "tracking.json"
"""In the run's folder: the run at each MLflow server, and the last round that it has."""
_FIGURES = ("accuracy", "balanced_accuracy", "f1_macro", "auroc_macro", "ece", "loss")
_SUFFIX = ".consilium"
"""Ends the names of event files, so that no other program's are removed."""


@dataclass(frozen=True)
class Value:
    """One figure of one round."""

    tag: str
    step: int
    """The round after which the scored model stood, or the round that a site trained in."""
    value: float


def values(record: RoundRecord) -> list[Value]:
    """Every figure of a line of `rounds.jsonl` that is a finite number."""
    found = [Value("round/seconds", record.round, record.seconds)]
    for site in record.sites:
        if site.train_loss is not None and site.outcome == "ok":
            found.append(Value(f"train/{site.site}/loss", record.round, site.train_loss))
    for model in (record.validation, record.test):
        found += [] if model is None else _of_model(model)
    return [value for value in found if math.isfinite(value.value)]


def _of_model(model: ScoredModel) -> Iterator[Value]:
    for name, scored in {"pooled": model.pooled, **model.sites}.items():
        for figure in _FIGURES:
            value = float(getattr(scored.figures, figure))
            yield Value(f"{model.side}/{name}/{figure}", model.after_round, value)


class _Tracker(Protocol):
    def add(self, record: RoundRecord) -> None: ...

    def end(self, *, finished: bool) -> None: ...


def require_libraries(config: ServerConfig) -> None:
    """Raise ConfigError if a tracker's library is not installed."""
    for one in config.tracking:
        package = "tensorboard" if one.kind == "tensorboard" else "mlflow"
        if find_spec(package) is None:
            raise ConfigError(
                f"tracking: {one.kind} needs the package {package}, which is not installed; install consilium-fl with "
                "the extra `tracking`"
            )


@contextmanager
def following(config: ServerConfig, study: StudyConfig, after: int) -> Iterator[Callable[[], None]]:
    """A function to call when a round is on record, for a study that goes on after round `after`.

    Trackers get the rounds up to there first, if they do not have them.
    """
    run_dir = config.run_dir
    trackers = [tracker for one in config.tracking if (tracker := _started(one, study, run_dir)) is not None]
    finished = False

    def add(records: Sequence[RoundRecord]) -> None:
        for tracker in list(trackers):
            try:
                for record in records:
                    tracker.add(record)
            except Exception as error:  # of a library, a disk or a server of the operator's
                _warn(error)
                trackers.remove(tracker)

    try:
        if trackers:
            add([record for record in history.read_rounds(run_dir) if record.round <= after])
        yield lambda: add(history.read_rounds(run_dir)[-1:]) if trackers else None
        finished = True
    finally:
        for tracker in trackers:
            try:
                tracker.end(finished=finished)
            except Exception as error:
                _warn(error)


def _started(one: Tracking, study: StudyConfig, run_dir: Path) -> _Tracker | None:
    try:
        match one:
            case TensorBoardTracking():
                return _TensorBoard(one.dir / study.name)
            case MlflowTracking():
                return _Mlflow(one, study, run_dir)
            case _:
                assert_never(one)
    except Exception as error:
        _warn(error)
    return None


def _warn(error: Exception) -> None:
    first = str(error).splitlines()[:1]
    log.warn(f"tracking: {type(error).__name__}: {' '.join(first)[:200]}; the study goes on without it")


class _TensorBoard:
    """One folder per study; its event file is written again at each start, from what is on record."""

    def __init__(self, folder: Path) -> None:
        from tensorboard.summary.writer.event_file_writer import EventFileWriter

        for old in folder.glob(f"events.out.tfevents.*{_SUFFIX}"):
            old.unlink()
        self._writer = EventFileWriter(str(folder), filename_suffix=_SUFFIX)

    def add(self, record: RoundRecord) -> None:
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        for one in values(record):
            summary = Summary(value=[Summary.Value(tag=one.tag, simple_value=one.value)])
            self._writer.add_event(Event(wall_time=time.time(), step=one.step, summary=summary))
        self._writer.flush()

    def end(self, *, finished: bool) -> None:  # noqa: ARG002
        self._writer.close()


class _Known(BaseModel):
    """The run of a study at one MLflow server."""

    uri: str
    run_id: str
    last_round: int = 0


class _Mlflow:
    """One run per study; its id is kept, so that a resumed study goes on in it."""

    def __init__(self, config: MlflowTracking, study: StudyConfig, run_dir: Path) -> None:
        os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # before it is imported
        from mlflow import MlflowClient

        self._client: Any = MlflowClient(tracking_uri=config.uri)
        self._path = run_dir / FILE
        known = read_json(self._path, _Known)
        if known is None or known.uri != config.uri:
            known = _Known(uri=config.uri, run_id=self._created(config.experiment, study))
            write_json(self._path, known)
        else:
            self._client.set_terminated(known.run_id, "RUNNING")
        self._known = known

    def _created(self, name: str, study: StudyConfig) -> str:
        experiment = self._client.get_experiment_by_name(name)
        number = self._client.create_experiment(name) if experiment is None else experiment.experiment_id
        run = self._client.create_run(number, run_name=study.name)
        settings = {
            "fingerprint": study.fingerprint,
            "seed": study.seed,
            "rounds": study.rounds,
            "encoder": study.model.encoder,
            "algorithm": study.algorithm.kind,
        }
        for key, value in settings.items():
            self._client.log_param(run.info.run_id, key, value)
        return str(run.info.run_id)

    def add(self, record: RoundRecord) -> None:
        from mlflow.entities import Metric

        if record.round <= self._known.last_round:
            return
        now = int(1000 * time.time())
        found = values(record)
        for at in range(0, len(found), 500):  # a batch has at most 1000
            metrics = [Metric(one.tag, one.value, now, one.step) for one in found[at : at + 500]]
            self._client.log_batch(self._known.run_id, metrics=metrics)
        self._known = self._known.model_copy(update={"last_round": record.round})
        write_json(self._path, self._known)

    def end(self, *, finished: bool) -> None:
        self._client.set_terminated(self._known.run_id, "FINISHED" if finished else "FAILED")
