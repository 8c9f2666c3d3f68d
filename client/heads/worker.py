"""Head worker: a process that fits one classical head, so that a fit can be stopped.

scikit-learn cannot be interrupted, and a support vector machine on a large site may take days. A process can
be ended at its time limit, and the trainer keeps its network and images. The folder that the two share lies in
the site's `state_dir` and is removed afterwards, because features are as private as images.

    python -m client.heads.worker FOLDER    job.json, features.safetensors -> result.safetensors, head.skops
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
from pydantic import Field, TypeAdapter

from common.config.heads import HeadProblem, LocalHead, Vote
from common.errors import StorageError
from common.heads.view import under
from common.settings import Frozen
from common.weights import Array, load_file, save_file


class Job(Frozen):
    """One fit: what the worker gets as job.json."""

    config: Annotated[LocalHead | Vote, Field(union_mode="left_to_right")]
    num_classes: int
    seed: int
    threads: int
    label: dict[str, Any] | None = None
    """Fields of a HeadLabel: keep the head."""
    travels: bool = False
    """True: the result has the head's arrays, under `head/`."""


class HeadUnavailable(Exception):
    """A head could not be fitted; `problem` is the reason that may go to the server."""

    def __init__(self, problem: HeadProblem, message: str) -> None:
        super().__init__(message)
        self.problem = problem


def run(
    job: Job,
    train_ND: npt.NDArray[np.floating],
    labels_N: npt.NDArray[np.int64],
    groups_N: Sequence[str],
    test_ND: npt.NDArray[np.floating],
    *,
    validation: tuple[npt.NDArray[np.floating], npt.NDArray[np.int64]] | None = None,
    state_dir: Path,
    keep: Path | None = None,
) -> Mapping[str, Array]:
    """Fit in a worker process: a head's `probabilities` of the test rows, or a vote's `weights` and `bias`.

    Values of a setting are chosen on `validation`, features and labels, if there are any. `keep` is where the head
    goes. Raises HeadUnavailable if there is none, StorageError if the disk is full.
    """
    if len(np.unique(labels_N)) < 2:
        raise HeadUnavailable(
            "one_class", f"{len(np.unique(labels_N))} class(es) among the training images, a head needs two"
        )
    numbers = {group: number for number, group in enumerate(dict.fromkeys(groups_N))}
    state_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=state_dir, prefix="head-") as scratch:
        folder = Path(scratch)
        groups = np.array([numbers[group] for group in groups_N], np.int64)
        arrays = {"train": train_ND, "labels": labels_N, "groups": groups, "test": test_ND}
        if validation is not None and len(validation[1]):
            arrays |= {"validation": validation[0], "validation_labels": validation[1]}
        save_file(folder / "features.safetensors", arrays, {})
        (folder / "job.json").write_text(job.model_dump_json(), encoding="utf-8")
        _work(folder, job)
        if keep is not None:
            _move(folder / "head", keep)
        return load_file(folder / "result.safetensors")[0]


def _work(folder: Path, job: Job) -> None:
    home = str(Path(__file__).parents[2])
    path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
    threads = {
        name: str(job.threads) for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")
    }
    try:
        done = subprocess.run(
            [sys.executable, "-W", "ignore", "-m", "client.heads.worker", str(folder)],
            env={**os.environ, **threads, "PYTHONPATH": path},
            timeout=job.config.time_limit_s,
            capture_output=True,
            text=True,
        )
    except subprocess.TimeoutExpired as late:
        raise HeadUnavailable(
            "too_slow", f"not fitted within the time limit of {job.config.time_limit_s:g} s"
        ) from late
    if done.returncode != 0:
        raise HeadUnavailable("failed", f"the fit ended with {done.returncode}:\n{done.stderr[-4000:]}")


def _move(source: Path, target: Path) -> None:
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for ending in (".skops", ".json"):
            source.with_name(source.name + ending).replace(target.with_name(target.name + ending))
    except OSError as error:
        raise StorageError(f"a head cannot be written to {target.parent}: {error.strerror}") from error


def main(folder: Path) -> None:
    """Fit the job in `folder` and write its result there; runs in the worker process."""
    from client.heads import as_arrays, sklearn_heads

    job = TypeAdapter(Job).validate_json((folder / "job.json").read_bytes())
    arrays, _ = load_file(folder / "features.safetensors")
    train_ND, labels_N, config = arrays["train"], arrays["labels"], job.config
    result: dict[str, Array]
    if isinstance(config, Vote):
        result = {**sklearn_heads.coefficients(config, train_ND, labels_N, job.num_classes, job.seed)}
    else:
        pipeline = sklearn_heads.fit(
            config, train_ND, labels_N, arrays["groups"].tolist(), seed=job.seed, threads=job.threads,
            validation=(arrays["validation"], arrays["validation_labels"]) if "validation" in arrays else None,
        )  # fmt: skip
        result = {"probabilities": sklearn_heads.probabilities(pipeline, arrays["test"], job.num_classes)}
        if job.travels:
            result |= under("head", as_arrays.arrays_of(pipeline, train_ND.shape[1], job.num_classes))
        if job.label is not None:
            sklearn_heads.save(folder / "head", pipeline, sklearn_heads.HeadLabel.model_validate(job.label))
    save_file(folder / "result.safetensors", result, {})


if __name__ == "__main__":
    main(Path(sys.argv[1]))
