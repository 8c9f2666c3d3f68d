"""Images a second of the training loop against a bare PyTorch loop, with the same model, batch and precision.

    python -m benchmarks trainer                       # on this machine's GPU, or else its CPU, and a page
    python -m benchmarks trainer --before DIR          # also the loop of an earlier version, from a checkout of it
    python -m benchmarks trainer --profile DIR         # where a CPU's seconds go in a round over the JPEGs of DIR

The bare loop slices ready float32 batches out of a tensor on the device. It draws nothing, copies nothing, looks at no
loss and computes in no deterministic way. Ours cuts, mirrors and normalises every image, follows a schedule and checks
that losses are finite. Both run alternately in one process; an earlier version runs in a process of its own, beside a
bare loop of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks._trainer_profile import profiled
from client.data.store import StoredImages
from client.model.build import build
from client.model.parameters import partition, shared_arrays
from client.training.evaluate import evaluate
from client.training.fit import StudyPosition, fit
from client.training.hardware.precision import autocast
from client.training.optimizers import build_optimizer
from common.config import AdamW, ClassifierConfig, LocalConfig
from common.weights import digest

CLASSES = 7
PEAK_BF16 = {"H100": 989e12, "H200": 989e12}
"""Multiplications and additions a second that NVIDIA states for dense bf16, by GPU (data sheets, SXM)."""


@dataclass(frozen=True)
class Case:
    """One encoder, and how much of it."""

    encoder: str
    size: int
    batch: int
    steps: int
    precision: str


ON_CPU = [Case("mobilenetv2_100", 64, 32, 12, "float32"), Case("convnext_atto", 64, 32, 12, "float32")]
ON_GPU = [
    Case("convnext_l", 224, 64, 20, "bf16"),
    Case("swin_b", 224, 64, 20, "bf16"),
    Case("vit_l_16", 224, 64, 20, "bf16"),
    Case("maxvit_t", 224, 64, 20, "bf16"),
    Case("mobilenetv2_100", 224, 128, 40, "bf16"),
]


class Measured:
    """One model on one device, its images, and the loops over them."""

    def __init__(self, case: Case, device: torch.device) -> None:
        self.case, self.device = case, device
        config = ClassifierConfig(encoder=case.encoder, image_size=case.size)
        built = build(config, CLASSES, seed=0, weights_dir=None)
        self.model, self.parts = built.model.to(device), partition(built.model, config)
        self.model.to(memory_format=torch.channels_last)
        preprocessing = built.preprocessing
        side, num = preprocessing.stored_size, case.batch * case.steps
        kept = min(num, 1024)
        draws = torch.Generator().manual_seed(0)
        pixels = torch.randint(0, 256, (kept, side, side, 3), dtype=torch.uint8, generator=draws)
        rows_N = torch.arange(num) % kept
        self.images = StoredImages(pixels, rows_N, rows_N % CLASSES, preprocessing, "paper")
        self.besides_s = 0.0
        """Seconds of the last round besides its steps: to set up, to check, to copy the optimizer's state."""
        self.ready = self.images.batch(torch.arange(min(num, 4 * case.batch)), None).to(device)
        self.ready = self.ready.contiguous(memory_format=torch.channels_last)

    def bare(self) -> float:
        """Images a second of a loop with nothing in it."""
        case, device = self.case, self.device
        self.model.train()
        parameters = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        fused = {"fused": True} if device.type == "cuda" else {}
        optimizer = torch.optim.AdamW(parameters, lr=1e-4, betas=(0.9, 0.98), **fused)  # type: ignore[arg-type]
        labels_N = self.images.labels_N.to(device)
        num_ready = len(self.ready) // case.batch
        with self._timed() as seconds:
            for step in range(case.steps):
                start = step % num_ready * case.batch
                with autocast(case.precision, device):  # type: ignore[arg-type]
                    logits = self.model(self.ready[start : start + case.batch])
                    loss = nn.functional.cross_entropy(logits, labels_N[start : start + case.batch])
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
        return case.batch * case.steps / seconds()

    def ours(self) -> float:
        """Images a second of the training loop, without what a round costs besides: the end of a longer round."""
        short, long = self._round(2), self._round(2 + self.case.steps)
        self.besides_s = short - (long - short) * 2 / self.case.steps
        return self.case.batch * self.case.steps / (long - short)

    def _round(self, num_steps: int) -> float:
        """Seconds of a round of so many steps."""
        case = self.case
        local = LocalConfig(
            steps=num_steps,
            batch_size=case.batch,
            optimizer=AdamW(lr=1e-4),
            precision=case.precision,  # type: ignore[arg-type]
        )
        with self._timed() as seconds:
            fit(
                self.model, self.images, local, parts=self.parts, progress=StudyPosition(round=1, rounds=1),
                penalty=None, device=self.device, seed=0, num_classes=CLASSES,
            )  # fmt: skip
        return seconds()

    def scoring(self) -> float:
        """Images a second of scoring."""
        with self._timed() as seconds:
            evaluate(
                self.model,
                self.images,
                num_classes=CLASSES,
                device=self.device,
                precision=self.case.precision,  # type: ignore[arg-type]
            )
        return len(self.images.labels_N) / seconds()

    def flops(self) -> float:
        """Multiplications and additions, each counted, of a training step on one image: three times scoring.

        torch counts the backward pass of grouped convolutions too high, so only its forward count is used.
        """
        from torch.utils.flop_counter import FlopCounterMode

        self.model.eval()
        with torch.no_grad(), FlopCounterMode(display=False) as counter:
            self.model(self.ready[:1])
        return 3.0 * counter.get_total_flops()

    def shares(self) -> dict[str, float]:
        """Seconds of each part of 10 steps when the device is waited for after each, of scoring, and of hashing."""
        from client.training.hardware.prefetch import on_host

        case, device, parts = self.case, self.device, dict[str, float]()
        self.model.train()
        optimizer = build_optimizer(self.model.parameters(), AdamW(lr=1e-4), device)
        labels_N, draws = self.images.labels_N.to(device), torch.Generator().manual_seed(0)

        def timed(name: str, work: Callable[[], Any]) -> Any:
            with self._timed() as seconds:
                result = work()
            parts[name] = parts.get(name, 0.0) + seconds()
            return result

        def forward(batch: torch.Tensor, start: int) -> torch.Tensor:
            with autocast(case.precision, device):  # type: ignore[arg-type]
                logits = self.model(batch)
            return nn.functional.cross_entropy(logits.float(), labels_N[start : start + case.batch])

        for step in range(10):
            start = step % case.steps * case.batch
            indices = torch.arange(start, start + case.batch)
            host = timed("cut", lambda: on_host(self.images, indices, draws, device))  # noqa: B023
            batch = timed(
                "copy and normalise",
                lambda: host.on_device((0, case.batch), device, torch.float32),  # noqa: B023
            )
            loss = timed("forward", lambda: forward(batch, start))  # noqa: B023
            timed("backward", loss.backward)
            timed("step", optimizer.step)
            optimizer.zero_grad()
        timed("hash the weights", lambda: digest(shared_arrays(self.model, self.parts)))
        return parts

    def _timed(self) -> "_Seconds":
        return _Seconds(self.device)


class _Seconds:
    """Seconds of a block, with the device's work that it began."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._spent = 0.0

    def __enter__(self) -> Callable[[], float]:
        self._wait()
        self._start = time.perf_counter()
        return lambda: self._spent

    def __exit__(self, *_: object) -> None:
        self._wait()
        self._spent = time.perf_counter() - self._start

    def _wait(self) -> None:
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)


def prepare_torch(how: str) -> None:
    """`exact` or `fast` as this version has them, `before` as 0.2 set torch up, `bare` as torch comes, but quick."""
    if how == "before":
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.backends.cudnn.benchmark = False
        return
    from client.training.hardware import determinism

    determinism.apply("exact" if how == "exact" else "fast")


def measure(case: Case, device: torch.device, ways: list[str], tries: int) -> Iterator[dict[str, Any]]:
    """The medians of each way, and what else is known of the case, as soon as each is known."""
    made = Measured(case, device)
    rates: dict[str, list[float]] = {way: [] for way in ways}
    is_new = "before" not in ways
    for attempt in range(tries + 1):
        for way in ways:
            if is_new:
                prepare_torch("fast" if way == "bare" else way.removesuffix(" scoring"))
            elif way == "bare":
                torch.use_deterministic_algorithms(False)
                torch.backends.cudnn.benchmark = True
            else:
                prepare_torch("before")
            rate = (
                made.bare() if way == "bare" else made.scoring() if way.endswith("scoring") else made.ours()
            )
            if attempt:  # the first try warms up
                rates[way].append(rate)
    found = {way: statistics.median(values) for way, values in rates.items()}
    yield asdict(case) | {"images_s": found, "range": {way: (min(v), max(v)) for way, v in rates.items()}}
    if is_new:
        yield {
            "encoder": case.encoder,
            "flops": made.flops(),
            "shares": made.shares(),
            "besides_s": made.besides_s,
        }


def main() -> None:
    """Measure, print a line of JSON per finding; `--page` writes docs/results/trainer.md from such lines."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks trainer")
    parser.add_argument("--before", type=Path, help="checkout of an earlier version")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--tries", type=int, default=3)
    parser.add_argument("--encoders", nargs="*", default=())
    parser.add_argument("--ways", nargs="*", default=["bare", "exact", "fast", "exact scoring"])
    parser.add_argument("--profile", type=Path, help="folder of JPEGs: where the seconds of a round go")
    parser.add_argument("--child", help=argparse.SUPPRESS)
    arguments = parser.parse_args([argument for argument in sys.argv[1:] if argument != "trainer"])
    device = torch.device(arguments.device)
    if arguments.child:
        for line in measure(Case(**json.loads(arguments.child)), device, arguments.ways, arguments.tries):
            print(json.dumps(line), flush=True)
        return
    if arguments.profile:
        for case in [*ON_CPU, Case("mobilenetv2_100", 224, 32, 8, "float32")]:
            found = profiled(arguments.profile, case.encoder, case.size)
            print(json.dumps(found | {"load": os.getloadavg()[0]}), flush=True)
        return
    cases = [
        case
        for case in (ON_GPU if device.type == "cuda" else ON_CPU)
        if not arguments.encoders or case.encoder in arguments.encoders
    ]
    for case in cases:
        for home, ways in (
            (Path.cwd(), arguments.ways),
            (arguments.before, ["bare", "before", "before scoring"]),
        ):
            if home is None:
                continue
            for line in _child(case, home, ways, arguments):
                print(json.dumps(line | {"load": os.getloadavg()[0]}), flush=True)


def _child(
    case: Case, home: Path, ways: list[str], arguments: argparse.Namespace
) -> Iterator[Mapping[str, Any]]:
    """The findings of a process whose code is that of `home`; this file is the same for both."""
    command = [
        sys.executable, __file__, "--child", json.dumps(asdict(case)), "--device", arguments.device,
        "--tries", str(arguments.tries), "--ways", *ways,
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env=os.environ
        | {"PYTHONPATH": os.pathsep.join([str(home.resolve()), os.environ.get("PYTHONPATH", "")])},
        stdout=subprocess.PIPE,
        text=True,
        timeout=300,
    )
    for line in done.stdout.splitlines():
        yield json.loads(line)
    if done.returncode:
        yield {"encoder": case.encoder, "ways": ways, "failed": done.returncode}


if __name__ == "__main__":
    main()
