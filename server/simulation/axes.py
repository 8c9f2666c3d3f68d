"""Axes of a grid: lists of values for a setting, every combination of which is a study.

Four sources of settings meet in one study. Each overrides the ones before it: the base, the presets for
the values that the study ends up with, the named variant, and the axes.
"""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import paths, suggest

SEED, VARIANT = "seed", "variant"

Axis = Mapping[str, Any]
"""Values of a setting by the label under which they stand in names and tables."""


@dataclass(frozen=True)
class Combination:
    """One combination of a variant and of a value from every axis."""

    variant: str
    labels: Mapping[str, str]
    """Label of the chosen value, by setting."""
    changes: dict[str, Any]
    """What the variant and the axes change of the base; the axes win."""

    @property
    def name(self) -> str:
        """The variant and the labels, as in the name of a run."""
        return "-".join([*([self.variant] if self.variant else []), *self.labels.values()])

    def is_one_of(self, patterns: Sequence[Mapping[str, Sequence[str]]]) -> bool:
        """True if every entry of one of the patterns fits this combination."""
        mine = {VARIANT: self.variant, **self.labels}
        return any(all(mine[key] in labels for key, labels in pattern.items()) for pattern in patterns)


def label(value: object) -> str | None:
    """The name of a value: a scalar as YAML writes it, or the `kind` of a mapping; None if it has neither."""
    if isinstance(value, Mapping):
        value = value.get("kind")
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, str | int | float) else None


def labelled(setting: str, values: Sequence[Any] | Mapping[str, Any]) -> Axis:
    """An axis by label. Raises ConfigError if two values have one label, or a value has none."""
    if isinstance(values, Mapping):
        return {name: _as_setting(setting, value) for name, value in values.items()}
    axis: dict[str, Any] = {}
    for value in values:
        name = label(value)
        if name is None:
            raise ConfigError(
                f"axes.{setting}: {value!r} has no name; write the axis as a mapping of names to values, as in "
                f"`{setting}: {{small: ..., large: ...}}`"
            )
        if name in axis:
            raise ConfigError(f"axes.{setting}: {name} stands twice; keep one, or give both a name")
        axis[name] = _as_setting(setting, value)
    return axis


def require_setting(setting: str, where: str) -> None:
    """Raise ConfigError unless `setting` is the dotted path of a setting of a study."""
    if setting not in (known := _known()):
        meant = suggest(setting, known)
        hint = f"; did you mean {meant}?" if meant else ""
        raise ConfigError(f"{where}.{setting}: a study has no such setting{hint}")


def combinations(
    variants: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Axis], exclude: Sequence[Mapping[str, Any]]
) -> tuple[list[Combination], int]:
    """Every combination that is not excluded, and how many are. Raises ConfigError for an exclusion without effect."""
    patterns = [_pattern(entry, variants, axes) for entry in exclude]
    every = [
        Combination(variant, labels, _combined(changes, axes, labels))
        for variant, changes in variants.items()
        for labels in _labels(axes)
    ]
    for entry, pattern in zip(exclude, patterns, strict=True):
        if not any(combination.is_one_of([pattern]) for combination in every):
            raise ConfigError(f"exclude: {entry} fits no study of the grid; correct or remove it")
    kept = [combination for combination in every if not combination.is_one_of(patterns)]
    if not kept:
        raise ConfigError("exclude: no study of the grid is left; exclude less")
    return kept, len(every) - len(kept)


def with_presets(
    base: Mapping[str, Any], combination: Combination, presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> tuple[dict[str, Any], set[tuple[str, str]]]:
    """The settings of a combination, and which presets they have, as setting and label."""
    chosen = merged(base, combination.changes)
    used = {
        (setting, name)
        for setting, by_label in presets.items()
        if (name := label(value_at(chosen, setting))) is not None and name in by_label
    }
    below: dict[str, Any] = dict(base)
    for setting, by_label in presets.items():
        for name, changes in by_label.items():
            if (setting, name) in used:
                below = merged(below, changes)
    return merged(below, combination.changes), used


def value_at(settings: Mapping[str, Any], setting: str) -> Any:
    """The value at a dotted path; None if it is not written there."""
    value: Any = settings
    for part in setting.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    return value


def merged(base: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with `changes`: a mapping is merged, one with a `kind` replaces the base's whole."""
    out = dict(base)
    for key, value in changes.items():
        former = out.get(key)
        part = isinstance(value, Mapping) and isinstance(former, Mapping) and "kind" not in value
        out[key] = merged(former or {}, value) if part else value
    return out


def _as_setting(setting: str, value: Any) -> Any:
    """A name where a mapping with a `kind` belongs stands for that kind with its defaults."""
    if isinstance(value, str) and f"{setting}.kind" in _known():
        return {"kind": value}
    return value


def _known() -> list[str]:
    return sorted(set(paths(StudyConfig)))


def _labels(axes: Mapping[str, Axis]) -> Iterator[dict[str, str]]:
    for names in itertools.product(*axes.values()):
        yield dict(zip(axes, names, strict=True))


def _combined(
    changes: Mapping[str, Any], axes: Mapping[str, Axis], labels: Mapping[str, str]
) -> dict[str, Any]:
    combined = dict(changes)
    for setting, name in labels.items():
        nested = axes[setting][name]
        for part in reversed(setting.split(".")):
            nested = {part: nested}
        combined = merged(combined, nested)
    return combined


def _pattern(
    entry: Mapping[str, Any], variants: Mapping[str, Any], axes: Mapping[str, Axis]
) -> Mapping[str, Sequence[str]]:
    pattern: dict[str, list[str]] = {}
    for key, value in entry.items():
        there = [*variants] if key == VARIANT else [*axes.get(key, ())]
        if not there:
            raise ConfigError(
                f"exclude: {key} is no axis of the grid; there are {', '.join([VARIANT, *axes])}"
            )
        wanted = [label(item) or repr(item) for item in (value if isinstance(value, list) else [value])]
        for name in wanted:
            if name not in there:
                raise ConfigError(f"exclude: {key} is never {name}; it is {', '.join(there)}")
        pattern[key] = wanted
    return pattern
