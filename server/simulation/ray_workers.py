"""A federation whose trainers are spread over Ray's workers: tens to hundreds of sites, on one machine or many.

The server's part is in this process. Ray places the workers and gives each a core and a share of a GPU. A site always
has the same worker, so its model and images stay warm there, as far as there is memory. On several machines every
folder that a site.yaml names, its `state_dir` too, must be the same on all of them.

A worker that dies is started again by Ray and gets its plan again, three times in all, as a trainer of the engine
`processes` does. Then the answer is a failure of that round. The next plan finds the site as it was: what a site must
remember is on its disk.
"""

import os
import sys
import time
from collections.abc import Collection, Iterator, Mapping, Set
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from common import wire
from common.config import StudyConfig
from common.errors import ConfigError, WireError
from common.wire import codec
from server.deployment.study_runner import StudyEnd
from server.rounds.failures import noticed
from server.rounds.sites import Deadline, Reply
from server.simulation import site_data
from server.simulation.engines import OpenTrainer, Ray
from server.simulation.inline import WARM_SITES, Trainers, conducted
from server.simulation.launch import LocalSite, require_known

TRIES = 3
"""Times that a worker gets a plan at which it dies."""
_WAIT_S = 0.5
"""Between two looks at the deadline, which may be shortened meanwhile."""


class Worker:
    """The trainers of some sites, in a process of Ray's."""

    def __init__(self, open_trainer: OpenTrainer, sites: Mapping[str, tuple[Path, Path, int]]) -> None:
        self._open_trainer, self._sites = open_trainer, sites
        self._trainers: Trainers | None = None

    def open(self) -> int:
        """Read the settings of every site; returns this process's number. Raises ConfigError."""
        self._opened()
        return os.getpid()

    def answer(self, site: str, request: bytes) -> bytes:
        """What the trainer of `site` answers."""
        return self._opened().answer(site, request)

    def _opened(self) -> Trainers:
        if self._trainers is None:  # at first, and in a process that Ray started again
            hosted = {name: self._open_trainer(*where) for name, where in self._sites.items()}
            self._trainers = Trainers(hosted, WARM_SITES)
        return self._trainers


@dataclass(frozen=True)
class RaySites:
    """Sites behind Ray's workers, all of them asked at the same time."""

    ray: Any
    """The package."""
    workers: Mapping[str, Any]
    """Handle of the worker, by site."""

    def online(self) -> Set[str]:
        """All of them."""
        return set(self.workers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        """Replies in the order of arrival; a site that has not answered by the deadline is left alone."""
        started = time.monotonic()
        awaited = {
            self.workers[site].answer.remote(site, codec.to_bytes(plan)): site for site, plan in plans.items()
        }
        while awaited and (left_s := deadline.seconds - (time.monotonic() - started)) > 0:
            ready, _ = self.ray.wait(list(awaited), timeout=min(_WAIT_S, left_s))
            for done in ready:
                site = awaited.pop(done)
                yield Reply(site, self._read(done, plans[site]), time.monotonic() - started)

    def _read(self, done: Any, plan: wire.Plan) -> wire.Answer:
        try:
            answer = codec.from_bytes(self.ray.get(done))
        except WireError as error:
            return noticed(plan, "message", str(error))
        except self.ray.exceptions.RayError as error:
            return noticed(
                plan,
                "unreachable",
                f"the site's worker ended {TRIES} times while it worked on a plan ({type(error).__name__}); "
                "read its log",
            )
        if isinstance(answer, wire.Plan):
            raise TypeError(f"{plan.site} answered with a plan")
        return answer


def run_ray(
    study: StudyConfig,
    sites: list[LocalSite],
    run_dir: Path,
    engine: Ray,
    *,
    synthetic: bool = False,
    leave_out: Collection[str] = (),
    resume: bool = False,
    images: site_data.Digests | None = None,
) -> StudyEnd:
    """Run `study` with these sites on Ray's workers; returns when it finished or failed.

    Raises LaunchError, and ConfigError if Ray is not installed or the settings of a site are wrong.
    """
    known = require_known(study, sites, leave_out)
    logs = (run_dir / "federation" / "logs").absolute()
    names = [name for name in study.sites.all if name not in leave_out]
    opened = {
        name: (known[name].settings.absolute(), logs / f"{name}-trainer.log", turn)
        for turn, name in enumerate(names)
    }
    with _started(engine) as ray:
        remote = ray.remote(
            num_cpus=1, num_gpus=engine.gpu_share, max_restarts=-1, max_task_retries=TRIES - 1
        )(Worker)
        num_workers = min(engine.workers, len(names))
        shares = [names[first::num_workers] for first in range(num_workers)]
        handles = [
            remote.remote(engine.open_trainer, {name: opened[name] for name in share}) for share in shares
        ]
        ray.get([handle.open.remote() for handle in handles])
        workers = {name: handle for handle, share in zip(handles, shares, strict=True) for name in share}
        return conducted(
            study, RaySites(ray, workers), run_dir, synthetic=synthetic, resume=resume, images=images
        )


@contextmanager
def _started(engine: Ray) -> Iterator[Any]:
    """Ray, connected to the cluster that RAY_ADDRESS names or started on this machine, until the end."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # it reports to its makers otherwise
    try:
        import ray
    except ModuleNotFoundError as error:
        raise ConfigError(
            "engine ray: the package ray is not installed; install it, or install Consilium with its extra `ray`"
        ) from error
    local = {} if "RAY_ADDRESS" in os.environ else {"num_cpus": engine.workers, "include_dashboard": False}
    path = os.pathsep.join(part or str(Path.cwd()) for part in sys.path)
    ray.init(
        runtime_env={"env_vars": {"PYTHONPATH": path}}, log_to_driver=False, configure_logging=False, **local
    )
    try:
        yield ray
    finally:
        ray.shutdown()
