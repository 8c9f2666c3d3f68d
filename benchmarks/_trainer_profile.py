"""Where the CPU seconds of a round go: timers around the parts of the loop, and torch's profiler for the operators.

The profiler would make small operators twice as slow, so the shares are of timers, and a second round, with the
profiler, names the operators alone.
"""

import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, TypeVar
from unittest.mock import patch

import numpy as np
import torch
from torch.profiler import ProfilerActivity, profile

from client.data.decoding import decode
from client.data.references import PictureFile
from client.data.store import StoredImages
from client.model.build import build
from client.model.parameters import TensorNames, partition, shared_arrays
from client.training.evaluate import evaluate
from client.training.fit import StudyPosition, fit
from client.training.hardware.prefetch import Prepared
from common.config import AdamW, ClassifierConfig, LocalConfig
from common.weights import digest

CLASSES, CPU = 7, torch.device("cpu")
Result = TypeVar("Result")


class Timers:
    """CPU seconds by part, so that other work on the machine counts little; a part inside another counts for itself."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._inside: list[float] = []

    def around(self, name: str, work: Callable[..., Result]) -> Callable[..., Result]:
        """`work`, timed."""

        def timed(*arguments: Any, **named: Any) -> Result:
            self._inside.append(0.0)
            start = time.process_time()
            try:
                return work(*arguments, **named)
            finally:
                spent = time.process_time() - start
                self.seconds[name] += spent - self._inside.pop()
                if self._inside:
                    self._inside[-1] += spent

        return timed


@contextmanager
def timed_parts(timers: Timers, model: torch.nn.Module) -> Iterator[None]:
    """While it is entered, the parts of `fit` are timed."""
    with ExitStack() as stack:
        for owner, name, part in (
            (StoredImages, "batch", "cut"),
            (Prepared, "on_device", "copy"),
            (torch.autograd, "backward", "backward"),
            (torch.optim.AdamW, "step", "step"),
        ):
            stack.enter_context(patch.object(owner, name, timers.around(part, getattr(owner, name))))
        stack.enter_context(patch.object(model, "forward", timers.around("forward", model.forward)))
        yield


def profiled(folder: Path, encoder: str, size: int, num_images: int = 256, batch: int = 32) -> dict[str, Any]:
    """CPU seconds of the parts of a round over JPEGs of `folder`, a quarter as many scored; the longest operators."""
    config = ClassifierConfig(encoder=encoder, image_size=size)
    built = build(config, CLASSES, seed=0, weights_dir=None)
    model, parts = built.model.to(memory_format=torch.channels_last), partition(built.model, config)
    timers, preprocessing = Timers(), built.preprocessing
    paths = sorted(folder.glob("*.jpg"))[:num_images]
    decoded = timers.around("decode", decode.decode)
    squares = [
        decoded(PictureFile(path=path), preprocessing.stored_size, preprocessing.interpolation)
        for path in paths
    ]
    rows_N = torch.arange(len(squares))
    pixels_NRRC = torch.from_numpy(np.stack(squares))
    images = StoredImages(pixels_NRRC, rows_N, rows_N % CLASSES, preprocessing, "paper")
    scored = StoredImages(pixels_NRRC, rows_N[::4], rows_N[::4] % CLASSES, preprocessing, "none")
    local = LocalConfig(epochs=1, batch_size=batch, optimizer=AdamW(lr=1e-4), precision="float32")
    _train(model, images, parts, local.model_copy(update={"epochs": None, "steps": 2}))  # warms up
    with timed_parts(timers, model):
        timers.around("the rest of training", _train)(model, images, parts, local)
    timers.around("score", evaluate)(model, scored, num_classes=CLASSES, device=CPU, precision="float32")
    timers.around("hash", lambda: digest(shared_arrays(model, parts)))()
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        _train(model, images, parts, local.model_copy(update={"epochs": None, "steps": 2}))
    operators = profiler.key_averages()
    total_us = sum(event.self_cpu_time_total for event in operators)
    longest = sorted(operators, key=lambda event: event.self_cpu_time_total, reverse=True)[:6]
    return {
        "encoder": encoder, "size": size, "images": len(squares), "batch": batch,
        "seconds": dict(timers.seconds),
        "operators": {event.key: event.self_cpu_time_total / total_us for event in longest},
    }  # fmt: skip


def _train(model: torch.nn.Module, images: StoredImages, parts: TensorNames, local: LocalConfig) -> None:
    fit(
        model, images, local, parts=parts, progress=StudyPosition(round=1, rounds=1), penalty=None, device=CPU,
        seed=0, num_classes=CLASSES,
    )  # fmt: skip
