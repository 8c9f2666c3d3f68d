"""The sites of an experiment, written by `consilium-site simulate --join`, and its encoders' first weights."""

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from common import log
from common.config import FileWeights, SeedWeights, StudyConfig
from common.errors import ConfigError
from common.files import sha256_of, write_atomically
from common.settings import to_yaml
from server.config import SimulatedSites
from server.paper.experiment import Experiment
from server.simulation import site_command
from server.simulation.grid import Grid, Plan
from server.simulation.simulate import load_federation

RECORD = "made-from.json"
_ORIGIN = ".origin.json"


def sites(
    experiment: Experiment, places: Mapping[str, str], folder: Path, weights: Path | None, seed: int = 0
) -> Path:
    """The folder of the experiment's sites below `folder`; made once.

    Raises ConfigError if the data cannot be joined, if they lack a class of the studies, or if there are sites already
    that were made from other data.
    """
    out = folder / "sites"
    settings = {name: _filled(site.model_dump(), places) for name, site in experiment.sites.items()}
    made_from: dict[str, Any] = {
        "sites": settings,
        "drop_shared": experiment.drop_shared,
        "classes": _classes(experiment),
    }
    made_from |= {"weights": str(weights.absolute()) if weights else None, "seed": seed}
    record = json.dumps(made_from, indent=1, sort_keys=True).encode()
    if (folder / RECORD).exists():
        if (folder / RECORD).read_bytes() != record:
            raise ConfigError(
                f"the sites in {out} were made from other data or weights, and runs beside them are of those; give "
                "another folder with --runs, or remove this one"
            )
        log.event(f"the sites in {out} are kept")
        return out
    command = ["simulate", "--out", str(out), "--seed", str(seed)]
    for name, values in settings.items():
        path = folder / "joined" / f"{name}.yaml"
        values = {key: value for key, value in values.items() if value}
        write_atomically(path, to_yaml({"name": name, "state_dir": f"state/{name}", **values}))
        command += ["--join", f"{name}={path}"]
    command += ["--classes", *_classes(experiment)]
    if experiment.drop_shared:
        command += ["--drop-shared", *experiment.drop_shared]
    if weights is not None:
        command += ["--weights", str(weights)]
    log.event(f"preparing {len(settings)} site(s); images that several of them have are looked for")
    site_command.call_site(command)
    _require_classes(experiment, load_federation(out))
    write_atomically(folder / RECORD, record)
    return out


def first_weights(
    studies: Iterable[StudyConfig], weights: Path | None, *, random: bool
) -> Mapping[str, FileWeights]:
    """The file in `weights` that each encoder of these studies starts from, by encoder.

    It is ENCODER.safetensors, ENCODER.ANYTHING.safetensors, or what `consilium-site fetch-weights ENCODER` wrote.
    Raises ConfigError if an encoder has none and `random` weights were not asked for.
    """
    encoders = dict.fromkeys(study.model.encoder for study in studies if starts_from_random(study))
    files = {name: path for name in encoders if (path := _file(name, weights)) is not None}
    lacking = [name for name in encoders if name not in files]
    if lacking and not random:
        where = f"in {weights}" if weights else "without --weights DIR"
        raise ConfigError(
            f"no weights for {', '.join(lacking)} {where}: fetch them with `consilium-site fetch-weights`, put "
            "ENCODER.safetensors there (timm's key names), or let them start from random weights with "
            "--random-weights, which the results then say"
        )
    return {
        name: FileWeights(kind="file", name=path.name, sha256=sha256_of(path)) for name, path in files.items()
    }


def started_from(planned: Plan, files: Mapping[str, FileWeights]) -> Plan:
    """The plan whose studies start from these files. A study that names other weights keeps them.

    Not a grid's presets say so: a variant that names another kind of model replaces `model` as a whole.
    """
    return replace(planned, studies={key: _started(study, files) for key, study in planned.studies.items()})


def starts_from_random(study: StudyConfig) -> bool:
    """True if no file, no hub and no earlier run gives the first weights of the encoder."""
    return study.start_from is None and isinstance(study.model.weights, SeedWeights)


def with_vectors(grid: Grid, file: Path, weights: Path | None) -> Path:
    """A file of the grid, whose text towers were asked for the classes' vectors; once, until the grid changes.

    Raises ConfigError.
    """
    text = to_yaml({**grid.model_dump(mode="json", exclude_defaults=True), "seeds": list(grid.seeds)})
    out = file.with_stem(f"{file.stem}-with-vectors")
    if not file.exists() or file.read_bytes() != text:
        out.unlink(missing_ok=True)
        write_atomically(file, text)
    tower = grid.study.get("model", {}).get("text", {})
    if not tower or tower.get("kind") == "random" or tower.get("trainable"):
        return file
    if not out.exists():
        site_command.call_site(
            ["embed-prompts", str(file), "--out", str(out), *(["--weights", str(weights)] if weights else [])]
        )
    return out


def _require_classes(experiment: Experiment, joined: SimulatedSites) -> None:
    """Raises ConfigError that names every class that no site has, or none of the sites that train in the grid's study.

    Every run would find the same in its census.
    """
    study = experiment.grid["study"]
    needed = [name for name in _classes(experiment) if name not in study.get("untrained_classes", ())]
    trains = study["sites"]["train"]
    groups = {"no site has images of": list(joined.class_images), "no training site has images of": trains}
    for sentence, sites in groups.items():
        there = [joined.class_images[site] for site in sites if site in joined.class_images]
        lacking = [name for name in needed if there and not any(counts.get(name) for counts in there)]
        if lacking:
            raise ConfigError(
                f"{sentence} {', '.join(lacking)} ({', '.join(sites)}), which {experiment.name} learns: complete the "
                "data sets, or name the class in untrained_classes of a copy of the experiment; nothing was run"
            )


def _classes(experiment: Experiment) -> tuple[str, ...]:
    return tuple(experiment.grid["study"]["classes"])


def _filled(value: Any, places: Mapping[str, str]) -> Any:
    """`value` with the paths in place of `{ham10000}` and the like."""
    match value:
        case dict():
            return {key: _filled(inner, places) for key, inner in value.items()}
        case list() | tuple():
            return [_filled(inner, places) for inner in value]
        case str():
            for name, path in places.items():
                value = value.replace(f"{{{name}}}", path)
            return value
        case _:
            return value


def _started(study: StudyConfig, files: Mapping[str, FileWeights]) -> StudyConfig:
    if not starts_from_random(study) or study.model.encoder not in files:
        return study
    model = study.model.model_copy(update={"weights": files[study.model.encoder]})
    return study.model_copy(update={"model": model})


def _file(encoder: str, weights: Path | None) -> Path | None:
    if weights is None:
        return None
    plain = weights / f"{encoder}.safetensors"
    if plain.exists():
        return plain
    found = sorted({*weights.glob(f"{encoder}.*.safetensors"), *_fetched(encoder, weights)})
    if len(found) > 1:
        raise ConfigError(
            f"{weights} has several files for {encoder}: {', '.join(path.name for path in found)}; keep one, or call "
            f"it {plain.name}"
        )
    return found[0] if found else None


def _fetched(encoder: str, weights: Path) -> Iterator[Path]:
    """Files that `consilium-site fetch-weights` wrote for this encoder, which have the hub's names."""
    for origin in weights.glob(f"*{_ORIGIN}"):
        try:
            about = json.loads(origin.read_text())
        except (OSError, ValueError):
            continue
        if isinstance(about, dict) and about.get("encoder") == encoder:
            yield origin.with_name(origin.name.removesuffix(_ORIGIN))
