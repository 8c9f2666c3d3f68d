"""Memory of a round: updates stay in their files, and beside the old and the new weights there is no third model."""

import tracemalloc
from pathlib import Path

import numpy as np
import pytest

from common.config import Aggregation, FedAvg, FedNova, Mean, Median
from common.formats import tensors
from common.lazy_arrays import Stored
from common.weights import TensorSpec, digest
from server.aggregation import server_optimizer
from server.aggregation.mean import RunningMean
from server.aggregation.tally import AdmittedUpdate, build_tally
from server.aggregation.update import pieces
from server.state import OptimizerState

NUM_TENSORS, SIZE, SITES = 16, 2**18, 8
MODEL_BYTES = 4 * NUM_TENSORS * SIZE  # 16 MiB


def in_file(path: Path, arrays: dict[str, np.ndarray]) -> Stored:
    with path.open("wb") as file:
        tensors.write(file, arrays)
    return Stored(path, dict(tensors.places(path, 2**20)))


@pytest.fixture(scope="module")
def updates(tmp_path_factory: pytest.TempPathFactory) -> list[AdmittedUpdate]:
    folder, rng = tmp_path_factory.mktemp("updates"), np.random.default_rng(0)
    return [
        AdmittedUpdate(
            f"site{number}",
            100 + number,
            in_file(
                folder / str(number),
                {f"w{n}": rng.normal(size=SIZE).astype(np.float32) for n in range(NUM_TENSORS)},
            ),
        )
        for number in range(SITES)
    ]


@pytest.mark.parametrize(
    ("rule", "algorithm", "most"),
    [
        (Mean(), FedAvg(), 1.5),
        (Mean(), FedNova(), 1.5),
        (Median(), FedAvg(), 1.75),  # two pieces of all 8 sites are 1/2
        (Mean(norm_clip=1.0), FedAvg(), 2.0),  # one scaled array of each of 8 sites is 1/2
    ],
)
def test_a_step_takes_the_memory_of_the_new_weights_and_little_more(
    updates: list[AdmittedUpdate], rule: Aggregation, algorithm: FedAvg | FedNova, most: float
) -> None:
    layout = {f"w{n}": TensorSpec(shape=(SIZE,), dtype="float32") for n in range(NUM_TENSORS)}
    weights = {name: np.zeros(SIZE, np.float32) for name in layout}
    way = float if isinstance(algorithm, FedNova) else None
    tally = build_tally(rule, side_by_side=True, way=way)
    tracemalloc.start()
    try:
        for update in updates:
            assert update.norm > 0
            tally.add(update)
        stepped, _ = server_optimizer.step(algorithm, weights, tally.result(), layout, OptimizerState())
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    # The new weights are 1.0. One array is 1/16, as float64 1/8.
    assert peak < most * MODEL_BYTES
    assert len(stepped) == NUM_TENSORS


def test_the_mean_of_updates_in_files_has_the_bits_of_a_running_sum(updates: list[AdmittedUpdate]) -> None:
    # Pieces have 2^17 entries, so each array has two.
    assert len(list(pieces(SIZE))) == 2
    running = RunningMean()
    for update in updates[::-1]:
        running.add(update)
    tally = build_tally(Mean(), side_by_side=True)
    for update in updates:
        tally.add(update)
    assert digest(tally.result()) == digest(running.result())


def test_pieces_cover_an_array_once() -> None:
    assert list(pieces(0)) == []
    assert list(pieces(2**17 + 1)) == [slice(0, 2**17), slice(2**17, 2**17 + 1)]
