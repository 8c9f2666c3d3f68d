"""From a study and a folder of sites to a run of the local federation."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import load_settings, validate_settings
from server.config import Federation, ServerConfig
from server.deployment.study_runner import Outcome
from server.report import write
from server.simulation.launch import LocalSite, run_local
from server.storage import checkpoint


@dataclass(frozen=True)
class Finished:
    """How a simulation ended, and what to tell the person who ran it."""

    finished: bool
    summary: str


def simulate(
    study: Path,
    sites_dir: Path,
    runs: Path,
    *,
    port: int | None,
    adopt: bool,
    leave_out: Collection[str] = (),
) -> Finished:
    """`simulate_study` for the command line."""
    run_dir, outcome = simulate_study(study, sites_dir, runs, port=port, adopt=adopt, leave_out=leave_out)
    return _told(outcome, run_dir, load_federation(sites_dir))


def simulate_study(
    study: StudyConfig | Path,
    sites_dir: Path,
    runs: Path,
    *,
    port: int | None,
    adopt: bool,
    leave_out: Collection[str] = (),
) -> tuple[Path, Outcome]:
    """Run the study with the sites of `sites_dir` to its end; returns the run's folder and how it ended.

    Raises ConfigError or LaunchError before it starts.
    """
    federation = load_federation(sites_dir)
    name = study.name
    if isinstance(study, Path):
        study = load_settings(study, StudyConfig, "study")
    if adopt:
        changes = {"classes": federation.classes, "sites": {"train": tuple(federation.sites)}}
        study = validate_settings(study.model_dump() | changes, StudyConfig, "study", name)
    run_dir = runs / study.name
    return run_dir, run_study(study, sites_dir, federation, run_dir, port=port, leave_out=leave_out)


def resume(run_dir: Path, sites_dir: Path, *, port: int | None) -> Finished:
    """`resume_run` for the command line."""
    return _told(resume_run(run_dir, sites_dir, port=port), run_dir, load_federation(sites_dir))


def resume_run(run_dir: Path, sites_dir: Path, *, port: int | None) -> Outcome:
    """Continue a run that broke off, from its last checkpoint. Raises ConfigError or LaunchError."""
    if checkpoint.latest(run_dir) is None:
        raise ConfigError(f"{run_dir} has no checkpoint to resume from; run the study with `simulate`")
    federation = load_federation(sites_dir)
    study = load_settings(run_dir / "study.yaml", StudyConfig, "study")
    return run_study(study, sites_dir, federation, run_dir, port=port, resume=True)


def _told(outcome: Outcome, run_dir: Path, federation: Federation) -> Finished:
    if not outcome.finished:
        return Finished(False, f"The study did NOT finish: {outcome.reason}\nLogs: {run_dir}")
    return Finished(
        True,
        f"Report: {run_dir / 'report.md'}\nWeights: {run_dir / 'weights.safetensors'}\n"
        f"Rounds: {run_dir / 'rounds.jsonl'}\nThe study as run: {run_dir / 'study.yaml'}"
        + (
            "\nThe images were SYNTHETIC: the figures say nothing about medicine."
            if federation.synthetic
            else ""
        ),
    )


def load_federation(sites_dir: Path) -> Federation:
    """What `consilium-site simulate` wrote about its sites. Raises ConfigError."""
    return load_settings(sites_dir / "federation.yaml", Federation, "federation")


def run_study(
    study: StudyConfig,
    sites_dir: Path,
    federation: Federation,
    run_dir: Path,
    *,
    port: int | None = None,
    leave_out: Collection[str] = (),
    resume: bool = False,
) -> Outcome:
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
    return run_local(
        study,
        sites,
        run_dir,
        port=port,
        synthetic=federation.synthetic,
        leave_out=leave_out,
        resume=resume,
    )


def rewrite_report(run_dir: Path) -> Path:
    """Write a run's report again from its rounds.jsonl."""
    study = load_settings(run_dir / "study.yaml", StudyConfig, "study")
    config = load_settings(run_dir / "server.yaml", ServerConfig, "server")
    return write.write_report(run_dir, study, synthetic=config.synthetic)
