"""Seconds of a round beyond the sites' own work, and the memory that it takes, in real federations on loopback.

    python -m benchmarks rounds [NAME=CHECKOUT ...]

Two sites take one optimizer step a round on a handful of images, so a round is nearly all transport. Each CHECKOUT is
another version of this repository, such as a worktree of git; it is measured in turn with this one, model by model, so
that all meet the same load. Writes docs/results/rounds.md.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks._page import RESULTS, ROOT, write_page

PAGE = RESULTS / "rounds.md"
ENCODERS = ("test_convnext", "efficientnet_b0", "convnext_t")
ROUNDS = 8
PROGRAMS = {
    "SuperLink": ("flower_superlink", "access_log"),
    "ServerApp": ("serverapp",),
    "gateway": ("supernode", "clientapp", "superexec", "gateway"),
}
"""By what is shown: parts of command lines. A SuperExec beside the SuperLink is counted nowhere."""
LIMIT_S = 1800.0


@dataclass(frozen=True)
class Measured:
    """One study of one version."""

    mib: float
    """Each way."""
    seconds: float
    """A round, median."""
    own: float
    """Of these at the slowest site."""
    peaks: Mapping[str, float]
    """MiB by program; of gateways the largest."""
    load: float
    """Runnable processes of the machine, mean of the last minute, at the end."""


def main() -> None:
    versions = {"this version": ROOT}
    for argument in sys.argv[2:]:
        name, _, checkout = argument.partition("=")
        versions = {name: Path(checkout).resolve()} | versions
    rows = []
    with tempfile.TemporaryDirectory(prefix="consilium-rounds-") as scratch:
        for encoder in ENCODERS:
            for name, checkout in versions.items():
                folder = Path(scratch) / f"{encoder}-{len(rows)}"
                rows.append(_row(name, encoder, measure(encoder, checkout, folder)))
                print(rows[-1], flush=True)
    head = [
        f"| version | encoder | MiB each way | s a round | at a site | {', '.join(PROGRAMS)}, MiB | load |",
        "|---|---|---:|---:|---:|---:|---:|",
    ]
    about = (
        f"2 sites, {os.cpu_count()} CPUs, one thread a trainer, median of {ROUNDS - 2} rounds; load: runnable "
        "processes, mean of the last minute, at the end of each study."
    )
    command = " ".join(
        ["python -m benchmarks rounds", *(f"{name}=..." for name in versions if versions[name] != ROOT)]
    )
    write_page(PAGE, "Seconds of a round", [*head, *rows], command, about)


def measure(encoder: str, checkout: Path, folder: Path) -> Measured:
    """One study of `encoder` with the code of `checkout`, in a process of its own."""
    folder.mkdir(parents=True)
    env = os.environ | {"PYTHONPATH": str(checkout), "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__)), "study", encoder, str(folder)],
        cwd=checkout, env=env, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    peaks = _Peaks(folder)
    peaks.start()
    try:
        _, said = process.communicate(timeout=LIMIT_S)
    finally:
        process.kill()
        peaks.stop()
    result = folder / "result.json"
    if not result.exists():
        raise SystemExit(f"{checkout}: the study with {encoder} did not finish:\n{said[-2000:]}")
    found = json.loads(result.read_text())
    return Measured(**found, peaks=peaks.mib, load=os.getloadavg()[0])


def study(encoder: str, folder: Path) -> None:
    """Run in the checkout that is measured: only names that all versions have."""
    from client.cli.main import main as site
    from common.config import StudyConfig
    from server.simulation.simulate import load_federation, run_study
    from server.storage.history import read_rounds

    sites = folder / "sites"
    site(["simulate", "--out", str(sites), "--images", "40", "--threads", "1"])
    federation = load_federation(sites)
    wanted = StudyConfig.model_validate(
        {
            "name": "rounds",
            "classes": federation.classes,
            "sites": {"train": tuple(federation.sites)[:2]},
            "model": {"encoder": encoder, "image_size": 32},
            "rounds": ROUNDS,
            "local": {"steps": 1, "batch_size": 8},
        }
    )
    outcome = run_study(wanted, sites, federation, folder / "run")
    if not outcome.finished:
        raise SystemExit(outcome.reason)
    rounds = read_rounds(folder / "run")[1 : ROUNDS - 1]  # the first one decodes, the last ones score
    found = {
        "mib": rounds[0].sites[0].mib_down,
        "seconds": statistics.median(record.seconds for record in rounds),
        "own": statistics.median(
            max(row.train_s + row.evaluate_s for row in record.sites) for record in rounds
        ),
    }
    (folder / "result.json").write_text(json.dumps(found))


class _Peaks(threading.Thread):
    """The largest resident memory of each program whose environment or command line names a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self._folder, self._over = str(folder).encode(), threading.Event()
        self.mib: dict[str, float] = dict.fromkeys(PROGRAMS, 0.0)

    def run(self) -> None:
        while not self._over.wait(0.2):
            now: dict[tuple[str, str], float] = {}
            for process in Path("/proc").glob("[0-9]*"):
                if (found := self._look(process)) is not None:
                    program, owner, mib = found
                    now[program, owner] = now.get((program, owner), 0.0) + mib
            for (program, _), mib in now.items():
                self.mib[program] = max(self.mib[program], mib)

    def _look(self, process: Path) -> tuple[str, str, float] | None:
        """Program, process of the launch that it belongs to, MiB."""
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
            pages = int((process / "statm").read_text().split()[1])
        except (OSError, IndexError):
            return None
        if self._folder not in command + environment:
            return None
        entries = [e for e in environment.split(b"\0") if e.startswith(b"CONSILIUM_PROCESS=")]
        owner = entries[0].decode(errors="replace").rpartition("/")[2] if entries else ""
        if owner.endswith("trainer") or not owner:
            return None
        wanted = ("gateway",) if owner.endswith("gateway") else ("SuperLink", "ServerApp")
        program = next((name for name in wanted if _names(command, PROGRAMS[name])), None)
        return None if program is None else (program, owner, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)

    def stop(self) -> None:
        self._over.set()


def _names(command: bytes, parts: Iterable[str]) -> bool:
    return any(part.encode() in command for part in parts)


def _row(name: str, encoder: str, found: Measured) -> str:
    peaks = " / ".join(f"{mib:,.0f}" for mib in found.peaks.values())
    figures = f"{found.mib:.1f} | {found.seconds:.2f} | {found.own:.2f} | {peaks} | {found.load:.1f}"
    return f"| {name} | {encoder} | {figures} |"


if __name__ == "__main__":
    if sys.argv[1:2] == ["study"]:
        sys.path.insert(0, os.environ["PYTHONPATH"])
        study(sys.argv[2], Path(sys.argv[3]))
    else:
        started = time.monotonic()
        main()
        print(f"{time.monotonic() - started:.0f} s")
