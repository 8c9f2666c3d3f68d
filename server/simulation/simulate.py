"""From a study and a folder of sites to a run of the local federation."""

from collections.abc import Collection
from pathlib import Path
from typing import assert_never

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import load_settings, validate_settings
from server.config import SimulatedSites
from server.deployment.study_runner import StudyEnd
from server.simulation import site_data
from server.simulation.engines import Engine, Inline, Processes, Ray
from server.simulation.inline import run_inline
from server.simulation.launch import LocalSite, run_local
from server.simulation.ray_workers import run_ray
from server.storage import checkpoint, start_weights

PROCESSES = Processes()


def simulate_study(
    study: StudyConfig | Path,
    sites_dir: Path,
    runs: Path,
    *,
    engine: Engine,
    adopt: bool,
    leave_out: Collection[str] = (),
    start_from: Path | None = None,
) -> tuple[Path, StudyEnd]:
    """Run the study with the sites of `sites_dir` to its end; returns the run's folder and how it ended.

    `start_from` is a run or a file with the first weights. Raises ConfigError or LaunchError before it starts.
    """
    federation = load_federation(sites_dir)
    name = study.name
    if isinstance(study, Path):
        study = load_settings(study, StudyConfig, "study")
    if adopt:
        changes = {"classes": federation.classes, "sites": {"train": tuple(federation.sites)}}
        study = validate_settings(study.model_dump() | changes, StudyConfig, "study", name)
    if start_from is not None:
        study = start_weights.started_from(study, start_from, runs)
    run_dir = runs / study.name
    return run_dir, run_study(study, sites_dir, federation, run_dir, engine=engine, leave_out=leave_out)


def resume_run(run_dir: Path, sites_dir: Path, *, engine: Engine) -> StudyEnd:
    """Continue a run that broke off, from its last checkpoint. Raises ConfigError or LaunchError."""
    if checkpoint.latest(run_dir) is None:
        raise ConfigError(f"{run_dir} has no checkpoint to resume from; run the study with `simulate`")
    federation = load_federation(sites_dir)
    study = load_settings(run_dir / "study.yaml", StudyConfig, "study")
    return run_study(study, sites_dir, federation, run_dir, engine=engine, resume=True)


def load_federation(sites_dir: Path) -> SimulatedSites:
    """What `consilium-site simulate` wrote about its sites. Raises ConfigError."""
    return load_settings(sites_dir / "federation.yaml", SimulatedSites, "federation")


def run_study(
    study: StudyConfig,
    sites_dir: Path,
    federation: SimulatedSites,
    run_dir: Path,
    *,
    engine: Engine = PROCESSES,
    leave_out: Collection[str] = (),
    resume: bool = False,
) -> StudyEnd:
    """Run one study to its end with these sites. Raises ConfigError or LaunchError."""
    study.require_vectors()
    if set(study.classes) != set(federation.classes):
        raise ConfigError(
            f"study {study.name} has the classes {', '.join(study.classes)}, the images of {sites_dir} have "
            f"{', '.join(federation.classes)}; change the study, or take the images' with --adopt"
        )
    sites = [
        LocalSite(path.stem, path) for path in sorted(sites_dir.glob("*.yaml")) if path.stem != "federation"
    ]
    synthetic = federation.synthetic
    images = site_data.digests(sites_dir, federation, study.sites.all)
    match engine:
        case Processes(port):
            return run_local(
                study, sites, run_dir, port=port, synthetic=synthetic, leave_out=leave_out, resume=resume,
                images=images,
            )  # fmt: skip
        case Inline():
            return run_inline(
                study, sites, run_dir, engine, synthetic=synthetic, leave_out=leave_out, resume=resume,
                images=images,
            )  # fmt: skip
        case Ray():
            return run_ray(
                study, sites, run_dir, engine, synthetic=synthetic, leave_out=leave_out, resume=resume,
                images=images,
            )  # fmt: skip
        case _:
            assert_never(engine)
