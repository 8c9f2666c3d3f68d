"""A federation in one process: the server's rounds call the trainers as functions.

The run's folder is that of a federation of processes, and a run that one engine began can be resumed with the other.
There are no gateways and no site keys, so no signed heads of audit logs are kept. A trainer that takes the process down
with it takes the whole study; `resume` goes on with it.
"""

from collections import OrderedDict
from collections.abc import Collection, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from common import log
from common.config import StudyConfig
from common.errors import ConsiliumError
from common.lock import held
from common.settings import load_settings
from server.conduct import conduct
from server.config import ServerConfig
from server.deployment.study_runner import StudyEnd, run_folder, write_server_settings
from server.rounds.sites import InProcessSites, Sites
from server.simulation import site_data
from server.simulation.engines import HostedTrainer, Inline
from server.simulation.launch import LocalSite, require_known
from server.storage import status

WARM_SITES = 16
"""Sites whose model and images stay in memory between two plans. Of more sites, those that waited longest let go."""


class Trainers:
    """The trainers of all sites, of which a few are warm."""

    def __init__(self, hosted: Mapping[str, HostedTrainer], most_warm: int) -> None:
        self._hosted, self._most_warm = hosted, most_warm
        self._warm: OrderedDict[str, None] = OrderedDict()

    def answer(self, site: str, request: bytes) -> bytes:
        """What the trainer of `site` answers."""
        self._warm[site] = None
        self._warm.move_to_end(site)
        if len(self._warm) > self._most_warm:
            longest_idle, _ = self._warm.popitem(last=False)
            self._hosted[longest_idle].rest()
        return self._hosted[site].answer(request)

    def rest(self) -> None:
        """Let go of every model and image."""
        for site in self._warm:
            self._hosted[site].rest()
        self._warm.clear()


def run_inline(
    study: StudyConfig,
    sites: list[LocalSite],
    run_dir: Path,
    engine: Inline,
    *,
    synthetic: bool = False,
    leave_out: Collection[str] = (),
    resume: bool = False,
    images: site_data.Digests | None = None,
) -> StudyEnd:
    """Run `study` with these sites in this process; returns when it finished or failed.

    `resume` goes on from the last checkpoint in `run_dir` instead of setting that run aside. `images` are kept in
    the folder of a new run. Raises LaunchError, and ConfigError for a site whose settings are wrong, before anything of
    an earlier run is moved.
    """
    known = require_known(study, sites, leave_out)
    logs = run_dir / "federation" / "logs"
    hosted = {
        name: engine.open_trainer(known[name].settings, logs / f"{name}-trainer.log", turn)
        for turn, name in enumerate(name for name in study.sites.all if name not in leave_out)
    }
    trainers = Trainers(hosted, WARM_SITES)
    reachable = InProcessSites({name: partial(trainers.answer, name) for name in hosted})
    try:
        return conducted(study, reachable, run_dir, synthetic=synthetic, resume=resume, images=images)
    finally:
        trainers.rest()


def conducted(
    study: StudyConfig,
    sites: Sites,
    run_dir: Path,
    *,
    synthetic: bool,
    resume: bool,
    images: site_data.Digests | None = None,
) -> StudyEnd:
    """Run `study` from this process, with the server's part in it. Raises LaunchError if the folder is in use."""
    with (
        held(
            run_dir.with_name(f".{run_dir.name}.lock"), "a launcher", otherwise="give this study another name"
        ),
        run_folder(run_dir, resume=resume),
        log.also_to(run_dir / "server.log"),
    ):
        if images is not None and not resume:
            site_data.keep(run_dir, images)
        numbers = {name: number for number, name in enumerate(study.sites.all, start=1)}
        settings = write_server_settings(study, run_dir, numbers, synthetic=synthetic)
        with suppress(ConsiliumError):  # its reason is in the status
            conduct(load_settings(settings, ServerConfig, "server"), sites, pause=_no_wait)
        now = status.read_status(run_dir)
        assert now is not None, "a study that was conducted has a status"
        return StudyEnd.of(now)


def _no_wait(_: float) -> None:
    """Who is not here now will not come, and an answer that failed fails in ten seconds as well."""
