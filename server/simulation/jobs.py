"""Runs of a grid side by side, each in a process of its own.

A run changes nothing that another one reads: its folder and its state at the sites carry its name. What all runs of a
site share is made for several processes: decoded images and the split are files that are written once, audit log
and privacy ledger are locked for each line. So the results are those of one run after the other, if a run has the
same number of threads. Runs at the same time share the cores (`places`), and on a CPU fewer threads may change the
last bits.

Each run has a new process, so that a crash takes this run with it and no other.
"""

import os
import re
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import assert_never

from common import log
from common.config import StudyConfig
from common.errors import ConfigError
from common.files import read_json, write_json
from common.log import LogFormat
from common.polling import POLL_S
from common.processes import flower, forked, watchdog
from common.processes.launcher import Processes
from common.settings import Frozen
from server.report.text import counted
from server.simulation import engines
from server.simulation.engines import Engine, EngineName
from server.simulation.local_federation import TEMPLATES, TRAINER_MODULES

_PROGRAM = "server.simulation.one_run"
_GPU_LIST_S = 20.0
"""Seconds that the driver has to list its GPUs."""
_RUNS = "runs"
_RUN_MODULES = (*TRAINER_MODULES, "client.hosted", "server.simulation.grid", "server.simulation.inline")
"""What a run in one process imports."""
_GRACE_S = 4 * watchdog.GRACE_S
"""For a run to end by itself. It grants its own processes `GRACE_S` by request, and as much again by force."""
_THREADS, _DEVICES = "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES"


class Request(Frozen):
    """What the process of one run is asked for."""

    study: StudyConfig
    sites: Path
    run_dir: Path
    engine: EngineName
    open_trainer: str | None
    """`module:name` of what opens a trainer, for the engine `inline`."""
    log: LogFormat


class Outcome(Frozen):
    """How one run ended."""

    failure: str | None
    """Why it failed; None if it did not."""
    lacking: str = ""
    """Why it is incomplete; empty if it is not."""


@dataclass(frozen=True)
class Ended:
    """A run that is over."""

    name: str
    outcome: Outcome
    seconds: float
    under_way: tuple[str, ...] = ()
    """Runs that have begun and are not over."""


@dataclass(frozen=True)
class Place:
    """One of the places that runs take: what a process there sees of the machine."""

    env: Mapping[str, str]


@dataclass(frozen=True)
class _Running:
    processes: Processes
    place: Place
    outcome: Path
    started: float


def require_usable(jobs: int, engine: Engine) -> None:
    """Raise ConfigError for a number of jobs that no grid has, or an engine that cannot be run side by side."""
    if jobs < 1:
        raise ConfigError(f"jobs is {jobs}; give the number of runs at the same time, 1 or more")
    if jobs == 1:
        return
    match engine:
        case engines.Ray():
            raise ConfigError(
                f"jobs is {jobs}, and the engine `ray` spreads the sites of one run over the cores already; leave "
                "one of them out"
            )
        case engines.Processes(int() as port):
            raise ConfigError(
                f"port {port} is for one run at a time, and jobs is {jobs}; leave the port out, and each run takes a "
                "free one"
            )
        case engines.Inline() | engines.Processes():
            return
        case _:
            assert_never(engine)


def places(num_runs: int, jobs: int, sites_dir: Path) -> tuple[Place, ...]:
    """As many places as runs at the same time, which share cores and GPUs of this machine.

    The cores are divided by OMP_NUM_THREADS, unless it is set; a site's `threads` has precedence. GPUs are dealt out in
    turn, unless a site names one by its number.
    """
    num_places = min(num_runs, jobs)
    shared: dict[str, str] = {}
    if _THREADS not in os.environ:
        shared[_THREADS] = str(max(1, _num_cores() // max(1, num_places)))
    gpus = () if _names_a_gpu(sites_dir) else _gpus()
    return tuple(
        Place(shared | ({_DEVICES: gpus[number % len(gpus)]} if len(gpus) > 1 else {}))
        for number in range(num_places)
    )


def describe(taken: Sequence[Place], jobs: int, folder: Path) -> str:
    """One line: how many runs at a time, and what each has of the machine."""
    threads = taken[0].env.get(_THREADS)
    gpus = {place.env[_DEVICES] for place in taken if _DEVICES in place.env}
    parts = [f"{counted(len(taken), 'run')} at a time"]
    if len(taken) < jobs:
        parts[0] += f", not {jobs}: there are no more"
    if threads is not None:
        parts.append(f"each with {counted(int(threads), 'CPU thread')} unless its sites say another number")
    if gpus:
        parts.append(f"they take turns over {counted(len(gpus), 'GPU')}")
    return "; ".join([*parts, f"each writes to {folder / 'RUN.log'}"])


def side_by_side(
    studies: Sequence[StudyConfig],
    sites_dir: Path,
    folder: Path,
    engine: Engine,
    taken: Sequence[Place],
) -> Iterator[Ended]:
    """Run `studies` in processes of their own, one on each place at a time; yields each run when it is over.

    They begin in their order. What a run prints is appended to FOLDER/RUN.log. Every process has ended when
    this is closed, on an error and on Ctrl-C.
    """
    waiting, free = deque(studies), deque(taken)
    running: dict[str, _Running] = {}
    with (
        tempfile.TemporaryDirectory(prefix="consilium-runs-") as scratch,
        _templates(len(studies), engine, taken, Path(scratch)) as shared,
    ):
        try:
            while waiting or running:
                while waiting and free:
                    study = waiting.popleft()
                    request = _request(study, sites_dir, folder / study.name, engine)
                    running[study.name] = _start(request, free.popleft(), folder, Path(scratch), shared)
                for name, run in list(running.items()):
                    if (code := run.processes.ended().get(name)) is None:
                        continue
                    seconds = time.monotonic() - run.started
                    outcome = read_json(run.outcome, Outcome) or _without_outcome(code, folder, name)
                    run.processes.stop()
                    del running[name]
                    free.append(run.place)
                    yield Ended(name, outcome, seconds, tuple(running))
                time.sleep(POLL_S)
        finally:
            _stop(list(running.values()))


def load_trainer(place: str) -> engines.OpenTrainer:
    """What `module:name` stands for. It is loaded by name, because the server's side knows no trainer."""
    module, _, name = place.partition(":")
    opened: engines.OpenTrainer = getattr(__import__(module, fromlist=[name]), name)
    return opened


def _request(study: StudyConfig, sites_dir: Path, run_dir: Path, engine: Engine) -> Request:
    name: EngineName = "processes"
    opened = None
    if isinstance(engine, engines.Inline):
        trainer = engine.open_trainer
        name, opened = "inline", f"{trainer.__module__}:{getattr(trainer, '__qualname__', '')}"
    return Request(
        study=study, sites=sites_dir.absolute(), run_dir=run_dir.absolute(), engine=name, open_trainer=opened,
        log=log.form(),
    )  # fmt: skip


@contextmanager
def _templates(
    num_runs: int, engine: Engine, taken: Sequence[Place], scratch: Path
) -> Iterator[Mapping[str, str]]:
    """What several runs import, imported once for all; yields what their environment needs (decision 0050).

    Runs of one process are forks; those that launch a federation share the templates of their sites.
    """
    alike = all(place == taken[0] for place in taken)
    if num_runs == 1 or not alike or isinstance(engine, engines.Ray):
        yield {}
        return
    templates: Mapping[str, Sequence[str]] = {_RUNS: _RUN_MODULES}
    env = _environment(taken[0])
    if isinstance(engine, engines.Processes):
        templates, env = TEMPLATES, flower.environment(scratch, env)
    with forked.sharing(templates, env, scratch, Path.cwd()) as shared:
        yield shared


def _environment(place: Place) -> dict[str, str]:
    path = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
    return {**os.environ, "PYTHONPATH": path, **place.env}


def _start(
    request: Request, place: Place, folder: Path, scratch: Path, shared: Mapping[str, str]
) -> _Running:
    name = request.study.name
    asked, outcome = scratch / f"{name}.json", scratch / f"{name}.outcome.json"
    write_json(asked, request)
    # Of each run its own, so that its log is closed and its children are ended as soon as it is over.
    processes = Processes(folder, {**_environment(place), **shared}, (scratch,), _GRACE_S)
    try:
        processes.share(_RUNS)
        processes.start(name, [sys.executable, "-m", _PROGRAM, asked, outcome], template=_RUNS)
    except BaseException:
        processes.stop()
        raise
    return _Running(processes, place, outcome, time.monotonic())


def _without_outcome(code: int, folder: Path, name: str) -> Outcome:
    ended = f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return Outcome(failure=f"its process {ended}; {folder / f'{name}.log'} tells why")


def _stop(running: Sequence[_Running]) -> None:
    """End all at once: one after the other would take each one's grace period."""
    if running:
        with ThreadPoolExecutor(len(running), "stop") as pool:
            list(pool.map(lambda run: run.processes.stop(), running))


def _num_cores() -> int:
    """Cores that this process may use; all of the machine's where the system does not say, as on macOS."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _names_a_gpu(sites_dir: Path) -> bool:
    """True if a site has a GPU by its number, which means another one where only some are seen."""
    return any(
        re.search(r"\bcuda:\d", path.read_text(encoding="utf-8", errors="replace"))
        for path in sites_dir.glob("*.yaml")
    )


def _gpus() -> tuple[str, ...]:
    """The GPUs that this process may see, as CUDA_VISIBLE_DEVICES names them; empty without a driver."""
    if (shown := os.environ.get(_DEVICES)) is not None:
        return tuple(part.strip() for part in shown.split(",") if part.strip())
    with suppress(OSError, subprocess.SubprocessError):
        listed = subprocess.run(
            ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"],
            capture_output=True, text=True, timeout=_GPU_LIST_S, check=True,
        )  # fmt: skip
        return tuple(line.strip() for line in listed.stdout.splitlines() if line.strip())
    return ()
