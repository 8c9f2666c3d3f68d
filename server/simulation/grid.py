"""Grids of studies: one base, named variants, one table and one picture to compare them.

A comparison is only as honest as what its rows share. So a variant states what it changes
and nothing else, every variant is tested on the same images (the sites' own split), and a
run that did not finish is a row that says so, never a gap.
"""

import time
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Self

from pydantic import Field, model_validator

from common import log
from common.config import Name, StudyConfig
from common.errors import ConfigError, LaunchError
from common.settings import Frozen, load_settings, validate_settings
from server.config import SimulatedSites
from server.report.comparison import write_comparison
from server.report.comparison_row import Row
from server.report.text import counted
from server.simulation import axes as axes_module
from server.simulation import earlier, encoders, site_data
from server.simulation import jobs as side_by_side
from server.simulation.engines import Engine
from server.simulation.jobs import Ended, Outcome
from server.simulation.pace import Pace
from server.simulation.simulate import PROCESSES, load_federation, run_study
from server.simulation.site_data import Digests
from server.storage.history import read_rounds

BASE = "base"
"""Name of the only variant of a grid that has nothing but seeds."""


MOST_ROWS = 40
"""Names of rows that a plan lists."""


class Grid(Frozen):
    """Studies that differ only in what their variant and their place on the axes say."""

    name: Name
    """Of the grid and of its folder under runs/."""
    study: dict[str, Any]
    """The base: a study without its name."""
    variants: dict[Name, dict[str, Any]] = Field(default_factory=dict)
    """Settings that replace the base's, by name of the variant; a mapping is merged, one with
    a `kind` replaces the base's whole."""
    axes: dict[str, tuple[Any, ...] | dict[Name, Any]] = Field(default_factory=dict)
    """Values of a setting, by its dotted path (`model.encoder`). Every combination of a variant with one value of each
    axis is a study. A list, or a mapping that gives each value a name. A name where a setting has a `kind` means that
    kind (`local.optimizer: [sgd, adamw]`), with what presets and the variant say of it."""
    exclude: tuple[dict[str, Any], ...] = ()
    """Combinations to leave out: a value, or a list of values, by axis; `variant` names variants."""
    presets: dict[str, dict[str, dict[str, Any]]] = Field(default_factory=dict)
    """What a study changes because of the value that a setting has in it: changes by value, by dotted path
    (`model.encoder: {vit_l_16: {local: {batch_size: 8}}}`). Variants and axes override them."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)
    """Every variant is run once with each seed. An axis `seed` means the same. Without variants and axes the base
    is run with each."""

    @model_validator(mode="before")
    @classmethod
    def _seed_is_an_axis(cls, values: Any) -> Any:
        if (
            isinstance(values, dict)
            and isinstance(axes := values.get("axes"), dict)
            and axes_module.SEED in axes
        ):
            if "seeds" in values:
                raise ValueError("seeds stand both in `seeds` and in `axes.seed`; keep one")
            rest = {setting: labels for setting, labels in axes.items() if setting != axes_module.SEED}
            return values | {"axes": rest, "seeds": axes[axes_module.SEED]}
        return values

    @model_validator(mode="after")
    def _has_studies(self) -> Self:
        if not self.variants and not self.axes and "seeds" not in self.model_fields_set:
            raise ValueError("a grid needs `variants`, `axes`, or several `seeds`")
        if axes_module.NAME in self.axes:
            raise ValueError(
                "axes.name: a study is named by its variant and its values; remove the axis, and to choose the names, "
                "write another axis as a mapping, as in `local.batch_size: {small: 4, large: 8}`"
            )
        twice = [seed for seed in self.seeds if self.seeds.count(seed) > 1]
        if twice:
            raise ValueError(f"seed {twice[0]} stands twice; keep one")
        empty = [setting for setting, labels in self.axes.items() if not labels]
        if empty:
            raise ValueError(f"axes.{empty[0]} has no value; write at least one, or remove the axis")
        return self


@dataclass(frozen=True)
class Plan:
    """The studies of a grid, and what is left out of it."""

    studies: Mapping[tuple[str, int], StudyConfig]
    """By variant and seed; the variant's name has the labels of the axes."""
    num_excluded: int
    unused_presets: tuple[str, ...]
    """Presets for values that no study has."""
    unfit: tuple[str, ...] = ()
    """Settings of presets and variants that a kind of an axis does not take, each with the kind."""

    def describe(self, name: str, wanted: Mapping[tuple[str, int], StudyConfig], *, num_finished: int) -> str:
        """One line: how many studies and rounds, and what is left out, kept or not used."""
        left_out = len(self.studies) - len(wanted)
        rounds = sum(study.rounds for study in wanted.values())
        parts = [f"{name} has {counted(len(wanted), 'run')} of {counted(rounds, 'round')} together"]
        if num_finished:
            parts.append(f"{num_finished} finished before")
        if self.num_excluded:
            parts.append(f"{counted(self.num_excluded, 'combination')} excluded")
        if left_out:
            parts.append(f"{left_out} left out by --only")
        if self.unused_presets:
            parts.append(f"presets that no study uses: {', '.join(self.unused_presets)}")
        if self.unfit:
            parts.append(f"settings of presets and variants that do not fit a kind: {', '.join(self.unfit)}")
        return "; ".join(parts)


def plan(grid: Grid, name: str) -> Plan:
    """Every study of the grid. Raises ConfigError that names the setting or the variant."""
    for setting in grid.axes:
        axes_module.require_setting(setting, f"{name}, axes")
    for setting in grid.presets:
        axes_module.require_setting(setting, f"{name}, presets")
    try:
        labelled = {setting: axes_module.labelled(setting, values) for setting, values in grid.axes.items()}
        combinations, num_excluded = axes_module.combinations(
            grid.variants or {"" if grid.axes else BASE: {}}, labelled, grid.exclude
        )
        made = [axes_module.with_presets(grid.study, one, grid.presets) for one in combinations]
    except ConfigError as error:
        raise ConfigError(f"{name}: {error}") from error
    studies = dict[tuple[str, int], StudyConfig]()
    for seed in grid.seeds:
        for combination, merged in zip(combinations, made, strict=True):
            key = (combination.name, seed)
            if key in studies:
                raise ConfigError(
                    f"{name}: two studies are called {combination.name}; rename a variant or a value of an axis"
                )
            settings = merged.settings | {"name": _run_name(combination.name, seed, grid.seeds), "seed": seed}
            try:
                studies[key] = validate_settings(
                    settings, StudyConfig, "study", f"{name}, variant {combination.name}"
                )
            except ConfigError as error:
                raise ConfigError(f"{error}{_hint(combination)}") from error
    used = {preset for one in made for preset in one.used}
    unused = tuple(
        f"{setting}: {value}"
        for setting, by_value in grid.presets.items()
        for value in by_value
        if (setting, value) not in used
    )
    unfit = tuple(dict.fromkeys(setting for one in made for setting in one.unfit))
    return Plan(studies, num_excluded, unused, unfit)


def studies(grid: Grid, name: str) -> Mapping[tuple[str, int], StudyConfig]:
    """Every study of the grid by variant and seed. Raises ConfigError that names the variant."""
    return plan(grid, name).studies


def run_grid(
    grid_file: Path,
    sites_dir: Path,
    runs: Path,
    only: tuple[str, ...] = (),
    engine: Engine = PROCESSES,
    jobs: int = 1,
    plan_only: bool = False,
) -> tuple[Path, tuple[Row, ...]]:
    """Run every study of the grid that has not finished yet; returns the folder and a row per study.

    Writes RUNS/NAME/comparison.md, .csv and .png after every study. A run of the same study that finished
    earlier is kept, and one that broke off goes on from its last checkpoint. A study that fails does not end the grid.
    With `plan_only` it says what would be run and the names of the rows, and runs and returns nothing.
    With `jobs` above 1 that many runs are under way at a time, each in a process of its own (`jobs.py`).
    A run of other data at the sites is set aside, as one of changed settings is.
    Raises ConfigError before the first study if the grid, an encoder, the sites, `only` or `jobs` cannot be used.
    """
    side_by_side.require_usable(jobs, engine)
    grid = load_settings(grid_file, Grid, "grid")
    planned = plan(grid, grid_file.name)
    wanted = wanted_studies(planned.studies, only, grid.name)
    # The sites come before the encoders, which take seconds.
    sites = _sites(wanted.values(), sites_dir, load_federation(sites_dir))
    encoders.require(unfinished(wanted.values(), runs / grid.name, sites), grid.name)
    return run(grid.name, planned, sites_dir, runs, only, engine, jobs=jobs, plan_only=plan_only)


def unfinished(studies: Iterable[StudyConfig], folder: Path, sites: Digests) -> tuple[StudyConfig, ...]:
    """The studies that have not finished yet in `folder` with these sites."""
    return tuple(study for study in studies if earlier.state(folder / study.name, study, sites) != "finished")


def run(
    name: str,
    planned: Plan,
    sites_dir: Path,
    runs: Path,
    only: tuple[str, ...] = (),
    engine: Engine = PROCESSES,
    on_rows: Callable[[Sequence[Row]], object] = lambda _: None,
    jobs: int = 1,
    plan_only: bool = False,
) -> tuple[Path, tuple[Row, ...]]:
    """`run_grid` for studies that were planned; they lie in RUNS/`name`. `on_rows` is called with the rows so far after
    every study.
    """
    side_by_side.require_usable(jobs, engine)
    federation = load_federation(sites_dir)
    wanted = wanted_studies(planned.studies, only, name)
    sites = _sites(wanted.values(), sites_dir, federation)
    folder = runs / name
    waiting = {study.name: study for study in unfinished(wanted.values(), folder, sites)}
    log.event(planned.describe(name, wanted, num_finished=len(wanted) - len(waiting)))
    earlier.warn_of_other_sites(folder, wanted.values(), sites)
    if plan_only:
        say_rows(wanted)
        return folder, ()
    rows = dict[str, Row]()

    def add(variant: str, study: StudyConfig, outcome: Outcome) -> None:
        run_dir = folder / study.name
        rounds = read_rounds(run_dir) if run_dir.exists() else ()
        rows[study.name] = Row(variant, study.seed, rounds, outcome.failure, run_dir, outcome.lacking)

    def so_far() -> tuple[Row, ...]:
        return tuple(rows[study.name] for study in wanted.values() if study.name in rows)

    def write() -> None:
        write_comparison(folder, list(so_far()), federation)
        on_rows(so_far())

    variants = {study.name: variant for (variant, _), study in wanted.items()}
    for study in wanted.values():
        if study.name not in waiting:
            log.event(f"{study.name} has finished before; it is kept")
            add(variants[study.name], study, Outcome(failure=None))
    if rows:
        write()
    pace = Pace(folder, waiting, jobs)
    ends = _ends(tuple(waiting.values()), sites_dir, federation, folder, engine, jobs)
    with closing(ends):
        for ended in ends:
            study = waiting.pop(ended.name)
            add(variants[study.name], study, ended.outcome)
            pace.add(study, ended)
            write()
    return folder, so_far()


def _ends(
    studies: Sequence[StudyConfig],
    sites_dir: Path,
    federation: SimulatedSites,
    folder: Path,
    engine: Engine,
    jobs: int,
) -> Generator[Ended]:
    """Run `studies`; yields each when it is over."""
    if jobs > 1 and studies:
        places = side_by_side.places(len(studies), jobs, sites_dir)
        log.event(side_by_side.describe(places, jobs, folder))
        yield from side_by_side.side_by_side(studies, sites_dir, folder, engine, places)
        return
    for study in studies:
        started = time.monotonic()
        outcome = run_one(study, sites_dir, federation, folder / study.name, engine)
        yield Ended(study.name, outcome, time.monotonic() - started)


def say_rows(studies: Mapping[tuple[str, int], StudyConfig]) -> None:
    """Log the names of the rows, of which `--only` takes any."""
    names = list(dict.fromkeys(variant for variant, _ in studies))
    rest = len(names) - MOST_ROWS
    more = [f"and {rest} more"] if rest > 0 else []
    log.event(
        f"{counted(len(names), 'row')}, by the names that --only takes:",
        below="\n".join([*names[:MOST_ROWS], *more]),
    )


def wanted_studies(
    studies: Mapping[tuple[str, int], StudyConfig], only: tuple[str, ...], name: str
) -> Mapping[tuple[str, int], StudyConfig]:
    """The studies of the variants in `only`; all if it is empty. Raises ConfigError for a variant that is not there."""
    variants = list(dict.fromkeys(variant for variant, _ in studies))
    if unknown := [variant for variant in only if variant not in variants]:
        raise ConfigError(f"--only: {name} has no variant {', '.join(unknown)}; it has {', '.join(variants)}")
    return {key: study for key, study in studies.items() if not only or key[0] in only}


def run_one(
    study: StudyConfig, sites_dir: Path, federation: SimulatedSites, run_dir: Path, engine: Engine
) -> Outcome:
    """Run one study of a grid in this process, from its last checkpoint if it broke off."""
    try:
        sites = site_data.digests(sites_dir, federation, study.sites.all)
        if earlier.state(run_dir, study, sites) in ("incomplete", "broke off"):
            end = run_study(study, sites_dir, federation, run_dir, engine=engine, resume=True)
        else:
            end = run_study(study, sites_dir, federation, run_dir, engine=engine)
    except (LaunchError, ConfigError) as error:
        log.warn(f"{study.name} failed: {error}")
        return Outcome(failure=str(error))
    failure = None if end.finished or end.incomplete else end.reason
    return Outcome(failure=failure, lacking=end.reason if end.incomplete else "")


def _sites(studies: Iterable[StudyConfig], sites_dir: Path, federation: SimulatedSites) -> Digests:
    """What the sites of these studies have, as far as they have settings."""
    names = dict.fromkeys(name for study in studies for name in study.sites.all)
    return site_data.digests(sites_dir, federation, names)


def _hint(combination: axes_module.Combination) -> str:
    """What to do where a grid cannot do what the message says."""
    if combination.values.get("rounds") == 0:
        return (
            "\n  In a grid: take 0 out of axes.rounds; studies that train nothing are a grid of their own, without "
            "settings of training"
        )
    return ""


def _run_name(variant: str, seed: int, seeds: tuple[int, ...]) -> str:
    return variant if len(seeds) == 1 else f"{variant}-seed{seed}"
