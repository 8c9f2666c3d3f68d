"""The models that one study is compared with: each site's own, the federated, the pooled, and those without one site.

Every model is a study of its own with the same settings, so `run` of the grid keeps those that have finished. All are
scored on the same test images, the sites' own.
"""

from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import load_settings, validate_settings
from server.report.comparison_row import Row
from server.simulation import grid as grids
from server.simulation import models_table as tables
from server.simulation.engines import Engine
from server.simulation.models_table import FEDERATED, POOLED
from server.simulation.simulate import load_federation


def local(site: str) -> str:
    """Name of the model that a site trains alone."""
    return f"local-{site}"


def without(site: str) -> str:
    """Name of the model that the others train."""
    return f"without-{site}"


def models(study: StudyConfig, *, pooled: bool) -> dict[str, StudyConfig]:
    """Each site's own model, the federated one, and the pooled one of a site `pooled` with all training images."""
    sites = study.sites
    alone = {
        local(site): _alone(study, local(site), site, [other for other in sites.all if other != site])
        for site in sites.train
    }
    together = {FEDERATED: _changed(study, FEDERATED, {})}
    return alone | together | ({POOLED: _alone(study, POOLED, POOLED, sites.all)} if pooled else {})


def left_out(study: StudyConfig) -> dict[str, StudyConfig]:
    """The federated model, and for each training site the model of the others. Raises ConfigError."""
    trained = study.sites.train
    if len(trained) < 3:
        raise ConfigError(
            f"study {study.name} has {len(trained)} training site(s), and leaving one out takes 3 or more; "
            "`matrix` compares models of single sites"
        )
    if study.sites.required is not None or study.sites.per_round is not None:
        raise ConfigError(
            f"study {study.name} sets sites.required or sites.per_round, which would mean another thing with one site "
            "fewer; leave both out"
        )
    found = {FEDERATED: _changed(study, FEDERATED, {})}
    for site in trained:
        others = tuple(other for other in trained if other != site)
        sites = study.sites.model_dump() | {"train": others, "evaluate": (site, *study.sites.evaluate)}
        changes = {"sites": sites, "untrained_classes": study.classes} | _selecting(study, others)
        found[without(site)] = _changed(study, without(site), changes)
    return found


def run_models(
    studies: Mapping[str, StudyConfig], name: str, sites_dir: Path, runs: Path, engine: Engine, jobs: int = 1
) -> tuple[Path, tuple[Row, ...]]:
    """Run every study that has not finished yet, `jobs` of them at a time; returns the folder and a row a model.

    Raises ConfigError.
    """
    _require_sites(studies, sites_dir)
    planned = grids.Plan({(model, study.seed): study for model, study in studies.items()}, 0, ())
    return grids.run(name, planned, sites_dir, runs, engine=engine, jobs=jobs)


def run_matrix(
    study: StudyConfig | Path, sites_dir: Path, runs: Path, engine: Engine, jobs: int = 1
) -> tables.Table:
    """Run the models of `models` and write matrix.md and .csv. Raises ConfigError before the first."""
    study = _loaded(study)
    has_pooled = (sites_dir / f"{POOLED}.yaml").exists()
    folder, rows = run_models(
        models(study, pooled=has_pooled), f"{study.name}-matrix", sites_dir, runs, engine, jobs
    )
    pairs: list[tuple[str, str, tuple[str, ...]]]
    pairs = [(FEDERATED, local(site), (site,)) for site in study.sites.train]
    pairs += [(FEDERATED, local(site), ()) for site in study.sites.train]
    pairs += [(FEDERATED, POOLED, ())] if has_pooled else []
    synthetic = load_federation(sites_dir).synthetic
    return tables.write("matrix", f"{study.name}: models by site", folder, rows, pairs, synthetic=synthetic)


def run_left_out(
    study: StudyConfig | Path, sites_dir: Path, runs: Path, engine: Engine, jobs: int = 1
) -> tables.Table:
    """Run the models of `left_out` and write leave-one-site-out.md and .csv. Raises ConfigError before the first."""
    study = _loaded(study)
    name = f"{study.name}-leave-one-site-out"
    folder, rows = run_models(left_out(study), name, sites_dir, runs, engine, jobs)
    pairs = [(FEDERATED, without(site), (site,)) for site in study.sites.train]
    title = f"{study.name}: without one site"
    synthetic = load_federation(sites_dir).synthetic
    return tables.write("leave-one-site-out", title, folder, rows, pairs, synthetic=synthetic)


def _loaded(study: StudyConfig | Path) -> StudyConfig:
    loaded = study if isinstance(study, StudyConfig) else load_settings(study, StudyConfig, "study")
    if loaded.start_from is not None or not loaded.rounds:
        raise ConfigError(
            f"study {loaded.name} starts from given weights, or trains nothing, and every model of the table is "
            "trained from the same first weights; leave start_from out and set rounds to 1 or more"
        )
    return loaded


def _require_sites(studies: Mapping[str, StudyConfig], sites_dir: Path) -> None:
    """Raise ConfigError if a site has no settings, because nearly every model would fail of it."""
    load_federation(sites_dir)
    known = sorted(path.stem for path in sites_dir.glob("*.yaml") if path.stem != "federation")
    for model, study in studies.items():
        if missing := [name for name in study.sites.all if name not in known]:
            raise ConfigError(
                f"model {model} names {', '.join(missing)}, and {sites_dir} has settings only for {', '.join(known)}; "
                "change the study's sites, or give another folder with --sites"
            )


def _alone(study: StudyConfig, name: str, site: str, others: Collection[str]) -> StudyConfig:
    """Training at one site: what is between sites has no meaning there."""
    sites = {
        "train": (site,),
        "evaluate": tuple(others),
        "evaluate_every": study.sites.evaluate_every,
        "evaluate_missing": study.sites.evaluate_missing,
    }
    plain = {
        "algorithm": {"kind": "fedavg"},
        "aggregation": {"kind": "mean"},
        "personalisation": {"kind": "none"},
    }
    rest = {"secure_aggregation": None, "overlap": None, "untrained_classes": study.classes}
    return _changed(study, name, {"sites": sites, **plain, **rest, **_selecting(study, (site,))})


def _selecting(study: StudyConfig, trained: Collection[str]) -> dict[str, Any]:
    """The study's selection, by the sites among those that decide that train here; all of them if none does."""
    if study.selection is None or study.selection.sites is None:
        return {}
    kept = tuple(site for site in study.selection.sites if site in trained or site in study.sites.evaluate)
    return {"selection": study.selection.model_dump() | {"sites": kept or None}}


def _changed(study: StudyConfig, name: str, changes: Mapping[str, Any]) -> StudyConfig:
    settings = {**study.model_dump(), "name": name, **changes}
    return validate_settings(settings, StudyConfig, "study", f"{study.name}, model {name}")
