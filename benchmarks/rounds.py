"""Seconds of a round beyond the sites' own work, and the memory that it takes, in federations on loopback.

    python -m benchmarks rounds [--mib 1 16 106] [--sites 2] [--version NAME=CHECKOUT ...] [--nvflare PYTHON]

The sites take one optimizer step a round on a handful of images, so a round is nearly all transport. Each CHECKOUT is
another version of this repository, such as a worktree of git. Stock Flower and, with the PYTHON that has it, NVFLARE
carry the same tensors and train nothing (`benchmarks/frameworks/`). All systems are measured in turn, size by size, so
that they meet the same load. Writes docs/results/rounds.md.
"""

import argparse
import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from benchmarks._one_study import ROUNDS
from benchmarks._page import RESULTS, ROOT, write_page
from benchmarks._peaks import Peaks

PAGE = RESULTS / "rounds.md"
ENCODERS = {1: "test_convnext", 16: "efficientnet_b0", 106: "convnext_t", 1024: "vit_large_patch16_224"}
"""By MiB of its tensors."""
LIMIT_S = 1800.0


@dataclass(frozen=True)
class System:
    """What is measured: a version of ours, or another framework."""

    name: str
    kind: str
    """"ours", "flower" or "nvflare"."""
    python: Path = Path(sys.executable)
    checkout: Path = ROOT


@dataclass(frozen=True)
class Measured:
    """One study of one system."""

    mib: float
    """Each way."""
    seconds: float
    """A round, median."""
    own: float | None
    """Of these at the slowest site; None where sites train nothing."""
    peaks: Sequence[float]
    """MiB of the SuperLink, of the process that aggregates, and of the largest site's process beside the trainer."""
    load: float
    """Runnable processes of the machine, mean of the last minute, at the end."""


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks rounds")
    parser.add_argument("--mib", type=int, nargs="+", choices=ENCODERS, default=[1, 16, 106])
    parser.add_argument("--sites", type=int, nargs="+", default=[2])
    parser.add_argument("--version", action="append", default=[], metavar="NAME=CHECKOUT")
    parser.add_argument("--flower", action="store_true", help="stock Flower, too")
    parser.add_argument("--nvflare", type=Path, metavar="PYTHON", help="NVFLARE, too")
    wanted = parser.parse_args(sys.argv[2:])
    systems = []
    for version in wanted.version:
        name, _, checkout = version.partition("=")
        systems.append(System(name, "ours", checkout=Path(checkout).resolve()))
    if wanted.flower:
        systems.append(System(f"Flower {_version(Path(sys.executable), 'flwr')} FedAvg", "flower"))
    if wanted.nvflare:
        name = f"NVFLARE {_version(wanted.nvflare, 'nvflare')}"
        systems.append(System(name, "nvflare", python=wanted.nvflare))
    systems.append(System("this version", "ours"))
    rows = []
    with tempfile.TemporaryDirectory(prefix="consilium-rounds-") as scratch:
        for mib in wanted.mib:
            for num_sites in wanted.sites:
                for system in systems:
                    folder = Path(scratch) / str(len(rows))
                    try:
                        row = _row(system, num_sites, measure(system, ENCODERS[mib], num_sites, folder))
                    except SystemExit as error:
                        print(error, flush=True)
                        row = f"| {system.name} | {num_sites} | {mib} | did not end | | | |"
                    rows.append(row)
                    print(row, flush=True)
    head = [
        "| system | sites | MiB each way | s a round | at a site | SuperLink, ServerApp, gateway, MiB | load |",
        "|---|---:|---:|---:|---:|---:|---:|",
    ]
    about = (
        f"{os.cpu_count()} CPUs, one thread a trainer, median of {ROUNDS - 2} rounds; load: runnable "
        "processes, mean of the last minute, at the end of each study. Other frameworks train nothing, and have "
        "neither TLS nor keys; of NVFLARE, the process of the server and the largest of a site."
    )
    write_page(PAGE, "Seconds of a round", [*head, *rows], "python -m benchmarks rounds ...", about)


def measure(system: System, encoder: str, num_sites: int, folder: Path) -> Measured:
    """One study, in processes of its own. Raises SystemExit if it does not end."""
    folder.mkdir(parents=True)
    shapes = _shapes(encoder)
    (folder / "shapes.json").write_text(json.dumps(shapes))
    env = os.environ | {
        "PYTHONPATH": str(system.checkout),
        "OMP_NUM_THREADS": "1",
        "ROUNDS_FOLDER": str(folder),
        "ROUNDS_SHAPES": str(folder / "shapes.json"),
        "ROUNDS_TIMES": str(folder / "times"),
        "ROUNDS_NUMBER": str(ROUNDS),
        "ROUNDS_SITES": str(num_sites),
    }
    command = {
        "ours": [str(Path(__file__).with_name("_one_study.py")), encoder, str(num_sites), str(folder)],
        "flower": ["-m", "benchmarks.frameworks.flower", str(folder)],
        "nvflare": ["-m", "benchmarks.frameworks.nvflare_job", str(folder)],
    }[system.kind]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            [str(system.python), *command],
            cwd=system.checkout if system.kind == "ours" else folder, env=env, stdout=log, stderr=log,
        )  # fmt: skip
    peaks = Peaks(folder, system.kind)
    peaks.start()
    try:
        process.wait(LIMIT_S)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        process.wait()
        peaks.stop()
    found = _result(folder, shapes)
    if found is None:
        said = (folder / "log").read_text(errors="replace")[-2000:]
        raise SystemExit(f"{system.name}: the study with {encoder} did not finish:\n{said}")
    return Measured(*found, peaks=peaks.mib, load=os.getloadavg()[0])


def _result(folder: Path, shapes: dict[str, list[int]]) -> tuple[float, float, float | None] | None:
    """MiB, seconds a round and at a site; None if not all rounds were run."""
    if (folder / "result.json").exists():
        found = json.loads((folder / "result.json").read_text())
        return found["mib"], found["seconds"], found["own"]
    times = (
        [float(line) for line in (folder / "times").read_text().split()]
        if (folder / "times").exists()
        else []
    )
    if len(times) < ROUNDS:
        return None
    seconds = [after - before for before, after in pairwise(times)]
    mib = sum(math.prod(shape) for shape in shapes.values()) * 4 / 2**20
    return mib, statistics.median(seconds[1 : ROUNDS - 1]), None


def _shapes(encoder: str) -> dict[str, list[int]]:
    """Shapes of the floating-point tensors of an encoder with three classes."""
    import timm
    import torch

    from client.model.encoders import timm_name

    with torch.device("meta"):
        state = timm.create_model(timm_name(encoder), num_classes=3).state_dict()
    return {name: list(tensor.shape) for name, tensor in state.items() if tensor.is_floating_point()}


def _version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run([python, "-c", code], capture_output=True, text=True, check=True).stdout.strip()


def _row(system: System, num_sites: int, found: Measured) -> str:
    peaks = " / ".join(f"{mib:,.0f}" if mib else "-" for mib in found.peaks)
    own = "-" if found.own is None else f"{found.own:.2f}"
    figures = f"{found.mib:.1f} | {found.seconds:.2f} | {own} | {peaks} | {found.load:.1f}"
    return f"| {system.name} | {num_sites} | {figures} |"
