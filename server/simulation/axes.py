"""Axes of a grid: lists of values for a setting, every combination of which is a study.

Four sources of settings meet in one study. Each overrides the ones before it: the base, the presets for
the values that the study ends up with, the named variant, and the axes. Of axes that meet, such as `local.optimizer`
and `local.optimizer.lr`, the one with the longer path wins, in whatever order they stand.
"""

import functools
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import fields_of_kind, paths, suggest

SEED, VARIANT, NAME = "seed", "variant", "name"
_KIND = "kind"

Axis = Mapping[str, Any]
"""Values of a setting by the label under which they stand in names and tables."""


@dataclass(frozen=True)
class Combination:
    """One combination of a variant and of a value from every axis."""

    variant: str
    labels: Mapping[str, str]
    """Label of the chosen value, by setting."""
    changes: Mapping[str, Any]
    """What the variant changes of the base."""
    values: Mapping[str, Any]
    """The chosen value, by setting; short paths first. A name where a setting has a `kind` is that kind."""

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
        return dict(values)
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
        axis[name] = value
    return axis


def require_setting(setting: str, where: str) -> None:
    """Raise ConfigError unless `setting` is the dotted path of a setting of a study."""
    if setting not in (known := _known()):
        meant = suggest(setting, list(known))
        hint = f"; did you mean {meant}?" if meant else ""
        raise ConfigError(f"{where}.{setting}: a study has no such setting{hint}")


def combinations(
    variants: Mapping[str, Mapping[str, Any]], axes: Mapping[str, Axis], exclude: Sequence[Mapping[str, Any]]
) -> tuple[list[Combination], int]:
    """Every combination that is not excluded, and how many are. Raises ConfigError for an exclusion without effect."""
    patterns = [_pattern(entry, variants, axes) for entry in exclude]
    every = [
        Combination(variant, labels, changes, _values(axes, labels))
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


@dataclass(frozen=True)
class Merged:
    """The settings of one combination."""

    settings: dict[str, Any]
    used: frozenset[tuple[str, str]]
    """Presets in it, as setting and label."""
    unfit: tuple[str, ...]
    """Settings of its presets and its variant that the chosen kind does not take, each with the kind."""


def with_presets(
    base: Mapping[str, Any], combination: Combination, presets: Mapping[str, Mapping[str, Mapping[str, Any]]]
) -> Merged:
    """The settings of a combination.

    A kind that an axis chooses by its name alone keeps what presets and the variant say of it, and nothing of the base.
    Raises ConfigError if a value of an axis is not in them, because another axis changes it.
    """
    chosen = merged(base, combination.changes)
    for setting, value in combination.values.items():
        chosen = merged(chosen, _nested(setting, _as_kind(setting, value)))
    used = {
        (setting, name)
        for setting, by_label in presets.items()
        if (name := label(value_at(chosen, setting))) is not None and name in by_label
    }
    settings, said, unfit = dict(base), dict[str, Any](), list[str]()
    for setting, by_label in presets.items():
        for name, changes in by_label.items():
            if (setting, name) in used:
                settings, said = merged(settings, changes), merged(said, changes)
    settings, said = merged(settings, combination.changes), merged(said, combination.changes)
    for setting, value in combination.values.items():
        if _names_a_kind(setting, value):
            kept, rest = _of_kind(setting, value, value_at(said, setting))
            unfit += rest
            value = {_KIND: value, **kept}
        settings = merged(settings, _nested(setting, value))
    _require_values(settings, combination)
    return Merged(settings, frozenset(used), tuple(unfit))


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


def _names_a_kind(setting: str, value: Any) -> bool:
    return isinstance(value, str) and f"{setting}.{_KIND}" in _known()


def _as_kind(setting: str, value: Any) -> Any:
    return {_KIND: value} if _names_a_kind(setting, value) else value


def _of_kind(setting: str, kind: str, said: Any) -> tuple[dict[str, Any], list[str]]:
    """What of `said`, which is for the setting, this kind takes; and what it does not, by path.

    What names another kind is meant for that one.
    """
    below = {key: value for key, value in said.items() if key != _KIND} if isinstance(said, Mapping) else {}
    fields = fields_of_kind(StudyConfig, setting, kind) if below else frozenset()
    if below and said.get(_KIND, kind) != kind:
        fields = frozenset()
    kept = {key: value for key, value in below.items() if key in fields}
    return kept, [f"{setting}.{key} with {kind}" for key in below if key not in kept]


def _require_values(settings: Mapping[str, Any], combination: Combination) -> None:
    for setting, value in combination.values.items():
        if _holds(value_at(settings, setting), _as_kind(setting, value)):
            continue
        longer = next(other for other in combination.values if other.startswith(f"{setting}."))
        raise ConfigError(
            f"axes.{setting}: study {combination.name} would not have the value {combination.labels[setting]}, because "
            f"axes.{longer} changes a part of it; leave {longer.removeprefix(f'{setting}.')} out of the values of "
            f"axes.{setting}, or remove one of the two axes"
        )


def _holds(found: Any, value: Any) -> bool:
    """True if all of `value` is in `found`."""
    if isinstance(value, Mapping):
        return isinstance(found, Mapping) and all(_holds(found.get(key), part) for key, part in value.items())
    return bool(found == value)


@functools.cache
def _known() -> tuple[str, ...]:
    return tuple(sorted(set(paths(StudyConfig))))


def _labels(axes: Mapping[str, Axis]) -> Iterator[dict[str, str]]:
    for names in itertools.product(*axes.values()):
        yield dict(zip(axes, names, strict=True))


def _values(axes: Mapping[str, Axis], labels: Mapping[str, str]) -> dict[str, Any]:
    by_depth = sorted(axes, key=lambda setting: setting.count("."))
    return {setting: axes[setting][labels[setting]] for setting in by_depth}


def _nested(setting: str, value: Any) -> dict[str, Any]:
    for part in reversed(setting.split(".")):
        value = {part: value}
    nested: dict[str, Any] = value
    return nested


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
