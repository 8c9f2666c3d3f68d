"""Class vectors of a study's text tower, written into the study's file.

Computed once, by a person who has the tower; after that no site needs the tower. Works on the
file of a study and on a grid's, whose studies are under `study` and `variants`.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from client.model import text
from common.config import ClipConfig, HuggingFaceText, OpenClipText, SeedWeights, StudyConfig, prompts
from common.errors import ConfigError
from common.files import write_atomically
from common.formats import yaml_text
from common.settings import to_yaml, validate_settings


@dataclass(frozen=True)
class Embedded:
    """Class vectors of one study."""

    place: str
    """Which study of the file; empty for the only one."""
    classes: tuple[str, ...]
    vectors_CW: npt.NDArray[np.float32]
    is_random: bool
    """The tower has random weights."""

    def describe(self) -> str:
        """One sentence; it names the two classes that the tower separates least."""
        cosines_CC = self.vectors_CW @ self.vectors_CW.T - 2 * np.eye(len(self.classes))
        one, other = np.unravel_index(int(cosines_CC.argmax()), cosines_CC.shape)
        closest = f"{self.classes[one]} and {self.classes[other]}, cosine {cosines_CC[one, other]:.2f}"
        num_classes, width = self.vectors_CW.shape
        where = f"{self.place}: " if self.place else ""
        random = (
            "; the tower is RANDOM, its vectors do not depend on the meaning of the words"
            if self.is_random
            else ""
        )
        return f"{where}{num_classes} classes x {width} numbers; closest: {closest}{random}"


def embed_file(source: Path, out: Path, weights_dir: Path | None) -> list[Embedded]:
    """Write `source` with its class vectors to `out`. Raises ConfigError and SiteDataError."""
    try:
        raw = yaml_text.load(source.read_bytes())
    except (OSError, yaml_text.YamlError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{source} cannot be read as YAML: {reason}; give a study's file") from error
    if not isinstance(raw, dict):
        raise ConfigError(f"{source} holds no settings; give a study's or a grid's file")
    raw = _unshared(raw)
    done, known = [], dict[str, npt.NDArray[np.float32]]()
    for place, settings, model in _studies(raw):
        model.pop("vectors", None)
        study = validate_settings(settings, StudyConfig, "study", f"{source.name}{place and f', {place}'}")
        if not study.lacks_vectors:
            continue
        assert isinstance(study.model, ClipConfig)  # lacks_vectors says so
        tower = study.model.text
        assert isinstance(tower, OpenClipText | HuggingFaceText)
        if study.asked not in known:
            known[study.asked] = text.embed(tower, study.class_prompts, weights_dir, study.seed)
        vectors_CW = known[study.asked]
        model["vectors"] = {"asked": study.asked, "float32": prompts.pack(vectors_CW)}
        done.append(Embedded(place, study.classes, vectors_CW, isinstance(tower.weights, SeedWeights)))
    if not done:
        raise ConfigError(
            f"{source.name} has no text tower to ask; expected model.kind: clip with a text side of kind "
            "open_clip or hugging_face that is not trained"
        )
    write_atomically(out, to_yaml(raw))
    return done


def _unshared(value: Any) -> Any:
    """A copy in which what YAML's anchors made one thing is written out at every place: each gets its own vectors."""
    match value:
        case dict():
            return {key: _unshared(inner) for key, inner in value.items()}
        case list():
            return [_unshared(inner) for inner in value]
        case _:
            return value


def _studies(raw: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    """Where it stands, a whole study, and the mapping of its model inside `raw`."""
    if not isinstance(raw.get("variants"), dict):
        if isinstance(raw.get("model"), dict):
            yield "", raw, raw["model"]
        return
    base: dict[str, Any] = raw["study"] if isinstance(raw.get("study"), dict) else {}
    for name, changes in [("study", {}), *raw["variants"].items()]:
        place = base if name == "study" else changes
        if isinstance(place, dict) and isinstance(place.get("model"), dict) and "text" in place["model"]:
            # Of a variant, only what decides the prompts; the rest is checked when the grid is run.
            decides = {key: changes[key] for key in ("classes", "class_names") if key in changes}
            yield (
                f"variant {name}" if changes else name,
                base
                | decides
                | {
                    "name": raw.get("name"),
                    "model": place["model"],
                },
                place["model"],
            )
