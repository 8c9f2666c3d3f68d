"""The weights that a study starts from: found in a run or a file, compared with the study, and kept beside the runs.

The study names them by the hash of their tensors, so the sites can tell whether they are those that it says.
A copy lies in `.start` of the folder of runs, under that hash: a study that is resumed finds it there.
"""

import json
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from common.config import GivenWeights, StudyConfig
from common.errors import ConfigError, StorageError
from common.settings import validate_settings
from common.weights import Array, digest, load_file

_FOLDER = ".start"
_FIELDS = ("kind", "image_size", "tuning", "batch_norm")
"""Settings of the model that change what the tensors mean, beyond the encoder."""


@dataclass(frozen=True)
class Found:
    """A file of a study's weights."""

    path: Path
    metadata: Mapping[str, str]
    sha256: str
    """Hash of the tensors."""

    @property
    def name(self) -> str:
        """The study and the round that they are from."""
        return f"{self.metadata['study']}, round {self.metadata.get('round', '?')}"


def find(source: Path) -> Found:
    """The weights of a run's folder, the chosen ones if it chose; or those of a file that a study wrote.

    Raises ConfigError if there are none, or the file is none of a study's, StorageError if it is damaged.
    """
    path = _in_run(source) if source.is_dir() else source
    if not path.exists():
        raise ConfigError(
            f"there is no {path}; give the folder of a run that has finished, or a file of its weights"
        )
    arrays, metadata = load_file(path)
    if lacking := {"study", "encoder", "classes", "model", "sha256"} - metadata.keys():
        raise ConfigError(
            f"{path} does not say its {', '.join(sorted(lacking))}: it is no file of a study's weights. Give "
            "weights.safetensors of a run; weights of an encoder alone belong into model.weights"
        )
    found = digest(arrays)
    if found != metadata["sha256"]:
        raise StorageError(
            f"{path} was altered: its tensors have the hash {found[:12]}, the file says {metadata['sha256'][:12]}; "
            "copy it again from the run"
        )
    return Found(path, metadata, found)


def started_from(study: StudyConfig, source: Path, runs: Path) -> StudyConfig:
    """`study`, starting from the weights in `source`, of which a copy is kept for its runs in the folder `runs`.

    Raises ConfigError if the weights are of other classes or another network, StorageError if they are damaged.
    """
    found = find(source)
    problems = list(_problems(study, found))
    if problems:
        raise ConfigError(f"study {study.name} cannot start from {found.path}: {'; '.join(problems)}")
    place = _place(runs, found.sha256)
    if not place.exists():
        place.parent.mkdir(parents=True, exist_ok=True)
        partial = place.with_suffix(".partial")
        try:
            shutil.copyfile(found.path, partial)
            partial.replace(place)
        except OSError as error:
            raise StorageError(f"{found.path} cannot be copied to {place}: {error.strerror}") from error
    given = GivenWeights(name=found.name, sha256=found.sha256)
    # Checked, not copied: a rule of the settings may depend on it.
    return validate_settings(
        study.model_dump() | {"start_from": given.model_dump()}, StudyConfig, "study", study.name
    )


def place_of(study: StudyConfig, runs: Path) -> Path | None:
    """Where the copy of the study's first weights lies; None if sites build them. Raises ConfigError if it is gone."""
    if study.start_from is None:
        return None
    place = _place(runs, study.start_from.sha256)
    if not place.exists():
        raise ConfigError(
            f"study {study.name} starts from {study.start_from.name}, whose weights are not in {place.parent}; "
            "give them with --start-from"
        )
    return place


def load(study: StudyConfig, place: Path) -> Mapping[str, Array]:
    """The first weights of the study. Raises StorageError if they are others than it says."""
    arrays = load_file(place)[0]
    if study.start_from is not None and digest(arrays) != study.start_from.sha256:
        raise StorageError(
            f"{place} does not hold {study.start_from.name}, which study {study.name} starts from: another hash; "
            "give the weights again with --start-from"
        )
    return arrays


def _place(runs: Path, sha256: str) -> Path:
    return (runs / _FOLDER / f"{sha256}.safetensors").absolute()


def _in_run(folder: Path) -> Path:
    chosen = folder / "best.safetensors"
    return chosen if chosen.exists() else folder / "weights.safetensors"


def _problems(study: StudyConfig, found: Found) -> Iterator[str]:
    """What differs between the study and that of the weights."""
    classes = json.loads(found.metadata["classes"])
    if classes != list(study.classes):
        yield f"they know the classes {', '.join(classes)}, the study has {', '.join(study.classes)}, in this order"
    if found.metadata["encoder"] != study.model.encoder:
        yield f"they are of the encoder {found.metadata['encoder']}, the study has {study.model.encoder}"
        return
    theirs, ours = json.loads(found.metadata["model"]), study.model.model_dump(mode="json")
    for name in _FIELDS:
        if theirs.get(name) != ours.get(name):
            yield f"model.{name} was {theirs.get(name)}, the study has {ours.get(name)}"
    trains_all = ours["trainable"] == "all" and ours["tuning"] is None
    if not trains_all and theirs["weights"] == ours["weights"] == {"kind": "seed"}:
        if (seed := found.metadata.get("seed", "?")) != str(study.seed):
            yield f"layers that are not trained are drawn with the seed, which was {seed}; the study has {study.seed}"
    elif not trains_all and theirs["weights"] != ours["weights"]:
        yield (
            f"layers that are not trained were those of model.weights {theirs['weights']}, the study has "
            f"{ours['weights']}"
        )
    if theirs["trainable"] != ours["trainable"]:
        yield f"model.trainable was {theirs['trainable']}, the study has {ours['trainable']}"
