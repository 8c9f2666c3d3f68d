"""Checkpoints: the state of a study on disk after each round, so a kill loses the running round only.

A checkpoint is one file: weights, optimizer slots and every other field of the state. So weights and optimizer
can never disagree. It is written beside its final name and renamed; older files are removed only after that.
The best checkpoint by the study's selection is kept under a name of its own.

A study can only be resumed as the same study. The file holds the study's settings and a checksum over all its
content, and both are compared before anything is used.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Literal

from pydantic import ConfigDict, ValidationError

from common.config import StudyConfig
from common.errors import ConfigError, StorageError
from common.metrics import Score
from common.release import DISTRIBUTION
from common.settings import Frozen
from common.weights import Array, Arrays, TensorSpec, digest, load_file, save_file
from server.state import Absence, Best, OptimizerState, RefusalStreak, RoundState, SiteRound

FORMAT: Literal[3] = 3
"""Raised when a checkpoint changes its meaning."""

_FOLDER, _BEST = "checkpoints", "best.safetensors"
_NAME = re.compile(r"round-(\d{4,})\.safetensors")
_WEIGHTS, _OPTIMIZER = "weights", "optimizer"
_FIELDS, _SEAL = "consilium", "sha256"


class _Fields(Frozen):
    """Everything in a checkpoint that is not an array."""

    # A diverged study has losses that are not finite, and is still worth keeping.
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=True)

    format: Literal[3] = FORMAT
    versions: dict[str, str]
    fingerprint: str
    study: dict[str, Any]
    round: int
    layout: dict[str, TensorSpec]
    preprocessing: dict[str, Any]
    optimizer_step: int
    optimizer_slots: tuple[str, ...]
    counted: dict[str, int] = {}  # noqa: RUF012  (pydantic copies it)
    sites: tuple[SiteRound, ...]
    scores: dict[str, Score]
    test_scores: dict[str, Score]
    seconds: float
    refusals: dict[str, RefusalStreak]
    absences: dict[str, Absence]
    answer_times: tuple[float, ...]
    best: Best | None
    attempts: int


def save(run_dir: Path, state: RoundState, study: StudyConfig) -> Path:
    """Write the state; keep the last `keep_checkpoints` up to it, and the best.

    Raises StorageError if the disk is full; the checkpoints of earlier rounds are then still
    there.
    """
    path = run_dir / _FOLDER / f"round-{state.round:04d}.safetensors"
    arrays = {f"{_WEIGHTS}/{name}": array for name, array in state.weights.items()}
    for slot, slot_arrays in state.optimizer.slots.items():
        arrays |= {f"{_OPTIMIZER}/{slot}/{name}": array for name, array in slot_arrays.items()}
    fields = json.dumps(_describe(state, study).model_dump(mode="json"), allow_nan=True)
    save_file(path, arrays, {_FIELDS: fields, _SEAL: _seal(fields, arrays)})
    older = [number for number in _rounds(run_dir) if number < state.round]
    # The round before is judged by the scores of the next one: until then it may be the best.
    keep = max(study.keep_checkpoints, 1 if study.selection is None else 2)
    for number in older[: max(0, len(older) - (keep - 1))]:
        # One file too many does no harm; failing a study over it would.
        with contextlib.suppress(OSError):
            (path.parent / f"round-{number:04d}.safetensors").unlink()
    return path


def keep_best(run_dir: Path, state: RoundState) -> None:
    """Keep the checkpoint that is the best according to `state` under a name of its own. Raises StorageError.

    Nothing happens if an earlier one still is, or if it was the first weights, which no round made.
    """
    if state.best is None or state.best.round != state.round - 1 or state.best.round == 0:
        return
    folder = run_dir / _FOLDER
    kept, partial = folder / f"round-{state.best.round:04d}.safetensors", folder / f".{_BEST}.partial"
    try:
        partial.unlink(missing_ok=True)
        try:
            partial.hardlink_to(kept)  # no file of weights is ever written to again
        except OSError:  # a file system without links
            shutil.copyfile(kept, partial)
            with partial.open("rb") as file:
                os.fsync(file.fileno())
        partial.replace(folder / _BEST)
    except OSError as error:
        raise StorageError(
            f"{kept} could not be kept as {_BEST}: {error.strerror}; nothing written before is lost"
        ) from error


def best(run_dir: Path) -> Path | None:
    """The best checkpoint, or None."""
    path = run_dir / _FOLDER / _BEST
    return path if path.exists() else None


def load(path: Path, study: StudyConfig) -> RoundState:
    """The state in a checkpoint of `study`.

    Raises StorageError for a file that is cut short, altered or of another format, and
    ConfigError, naming the settings, for one of another study.
    """
    try:
        arrays, metadata = load_file(path)
    except StorageError as error:
        raise StorageError(
            f"{path} is cut short or damaged: it is not a whole safetensors file. Remove it to go on from the "
            "round before"
        ) from error
    if not {_FIELDS, _SEAL} <= metadata.keys():
        raise StorageError(
            f"{path} holds tensors but is not a checkpoint; expected a file that a study wrote to {_FOLDER}/"
        )
    if _seal(metadata[_FIELDS], arrays) != metadata[_SEAL]:
        raise StorageError(
            f"{path} was altered after it was written: its checksum does not match. "
            "Remove it to go on from the round before"
        )
    try:
        fields = _Fields.model_validate(json.loads(metadata[_FIELDS]))
    except ValidationError as error:
        raise StorageError(
            f"{path} was written by another version of Consilium ({error.error_count()} fields differ from "
            f"format {FORMAT}); resume with the version that wrote it"
        ) from error
    if fields.fingerprint != study.fingerprint:
        differences = "; ".join(_differences(fields.study, study.model_dump(mode="json")))
        raise ConfigError(
            f"{path} belongs to another study: {differences}. Resume with the study as it was run, "
            "or start this one in a new folder"
        )
    return RoundState(
        round=fields.round,
        weights=_below(f"{_WEIGHTS}/", arrays),
        layout=fields.layout,
        preprocessing=fields.preprocessing,
        optimizer=OptimizerState(
            step=fields.optimizer_step,
            slots={slot: _below(f"{_OPTIMIZER}/{slot}/", arrays) for slot in fields.optimizer_slots},
        ),
        counted=fields.counted,
        sites=fields.sites,
        scores=fields.scores,
        test_scores=fields.test_scores,
        seconds=fields.seconds,
        refusals=fields.refusals,
        absences=fields.absences,
        answer_times=fields.answer_times,
        best=fields.best,
        attempts=fields.attempts,
    )


def latest(run_dir: Path) -> Path | None:
    """The checkpoint of the highest round, or None."""
    rounds = _rounds(run_dir)
    return run_dir / _FOLDER / f"round-{rounds[-1]:04d}.safetensors" if rounds else None


def number_of(path: Path) -> int:
    """The round of a checkpoint, by its name."""
    name = _NAME.fullmatch(path.name)
    assert name is not None, f"{path} is none of ours"
    return int(name[1])


def save_weights(path: Path, state: RoundState, study: StudyConfig) -> Path:
    """Write the plain weights, under the encoder's own names, with what is needed to use them.

    Only trained tensors are in the file; `weights_start` says where the others come from.
    """
    metadata = {
        "format": "pt",  # what timm and transformers look for in a safetensors file
        "study": study.name,
        "study_fingerprint": study.fingerprint,
        "round": str(state.round - state.closing),
        "encoder": study.model.encoder,
        "classes": json.dumps(study.classes),
        "preprocessing": json.dumps(dict(state.preprocessing)),
        "trainable": json.dumps(study.model.model_dump(mode="json")["trainable"]),
        "seed": str(study.seed),
        "weights_start": study.model.weights.model_dump_json(),
        "model": study.model.model_dump_json(),
        "sha256": digest(state.weights),
    }
    save_file(path, state.weights, metadata)
    return path


def _describe(state: RoundState, study: StudyConfig) -> _Fields:
    return _Fields(
        versions=_versions(),
        fingerprint=study.fingerprint,
        study=study.model_dump(mode="json"),
        round=state.round,
        layout=dict(state.layout),
        preprocessing=dict(state.preprocessing),
        optimizer_step=state.optimizer.step,
        optimizer_slots=tuple(state.optimizer.slots),
        counted=dict(state.counted),
        sites=state.sites,
        scores=dict(state.scores),
        test_scores=dict(state.test_scores),
        seconds=state.seconds,
        refusals=dict(state.refusals),
        absences=dict(state.absences),
        answer_times=state.answer_times,
        best=state.best,
        attempts=state.attempts,
    )


def _seal(fields: str, arrays: Arrays) -> str:
    return hashlib.sha256(f"{fields}\x1e{digest(arrays)}".encode()).hexdigest()


def _below(prefix: str, arrays: Arrays) -> dict[str, Array]:
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}


def _rounds(run_dir: Path) -> list[int]:
    """Rounds that have a checkpoint, lowest first; a half-written file has another name."""
    names = [_NAME.fullmatch(path.name) for path in (run_dir / _FOLDER).glob("*.safetensors")]
    return sorted(int(name[1]) for name in names if name)


def _differences(there: Any, here: Any, at: str = "") -> list[str]:
    """Each setting that differs, as `local.epochs is 1 there, 2 here`."""
    if isinstance(there, dict) and isinstance(here, dict):
        keys = list(dict.fromkeys([*there, *here]))
        inner = [_differences(there.get(key), here.get(key), f"{at}.{key}".lstrip(".")) for key in keys]
        return [line for lines in inner for line in lines]
    return [] if there == here else [f"{at} is {there!r} there, {here!r} here"]


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version()}
    for package in (DISTRIBUTION, "flwr", "numpy", "pydantic", "safetensors"):
        # Inside Flower's app bundle the package runs without being installed.
        with contextlib.suppress(PackageNotFoundError):
            versions[package] = version(package)
    return versions
