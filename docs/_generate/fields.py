"""Settings as people write them: path, type, limits, default, unit and meaning of every field.

A settings model becomes a list of sections. A section is a mapping in the YAML; where the setting
`kind` chooses among several models, each kind is a section of its own.
"""

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import time
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import annotated_types
from pydantic import BaseModel, BeforeValidator, StringConstraints
from pydantic.fields import FieldInfo

from client.config import Hours
from docs._generate.meanings import meaning
from docs._generate.units import unit

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$"
_SHA256 = r"^[0-9a-f]{64}$"
_TEXT = {_NAME: "name", _SHA256: "SHA-256, 64 hexadecimal digits"}


@dataclass(frozen=True)
class Setting:
    """One field of a settings model."""

    path: str
    """As in the YAML: `local.optimizer.lr`; `[]` stands for each item of a list, NAME for each key."""
    type: str
    """With its limits: `whole number, at least 1`."""
    default: str | None
    """None: the setting has to be given."""
    unit: str | None
    """None: it is no number, or a number without a unit."""
    meaning: str


@dataclass(frozen=True)
class Section:
    """The settings of one mapping in the YAML."""

    path: str
    """Empty for the file itself."""
    kind: str | None
    """The value of `kind` that chooses this model; None where there is no choice."""
    inside: tuple[str, ...]
    """Kinds of the mappings around it: `csv` for the `data.columns` that only tables have."""
    meaning: str
    settings: tuple[Setting, ...]
    shared: tuple[Setting, ...] = ()
    """For a choice: what every kind has. A section with these has no settings of its own."""

    @property
    def depth(self) -> int:
        """0 for the file, 1 for `local`, 2 for `local.optimizer` and for its kinds 3."""
        return len(self.path.split(".")) + (self.kind is not None) if self.path else 0


def sections(model: type[BaseModel]) -> tuple[Section, ...]:
    """Every section of a settings file, in the order of its fields, each before those inside it."""
    return tuple(_sections(model, ""))


def _sections(
    model: type[BaseModel],
    path: str,
    kind: str | None = None,
    inside: tuple[str, ...] = (),
    skip: frozenset[str] = frozenset(),
) -> Iterator[Section]:
    names = [name for name in model.model_fields if name not in skip and not (kind and name == "kind")]
    yield Section(path, kind, inside, _doc(model), tuple(_setting(model, name, path) for name in names))
    within = inside if kind is None else (*inside, kind)
    for name in names:
        yield from _of_field(model.model_fields[name].annotation, _join(path, name), within)


def _of_field(annotation: Any, path: str, inside: tuple[str, ...]) -> Iterator[Section]:
    """Sections of the models that a field can hold."""
    models = list(_models(annotation, path))
    if len(models) <= 1:
        for model, where in models:
            yield from _sections(model, where, inside=inside)
        return
    (first, where), *_ = models
    same = _in_all([model for model, _ in models])
    shared = [name for name in first.model_fields if name in same]
    yield Section(where, None, inside, "", (), tuple(_setting(first, name, where) for name in shared))
    for name in shared:
        yield from _of_field(first.model_fields[name].annotation, _join(where, name), inside)
    for model, _ in models:
        for kind in _kinds(model):
            yield from _sections(model, where, kind, inside, same)


def _in_all(models: Sequence[type[BaseModel]]) -> frozenset[str]:
    """Fields that are the same in all of `models`, but for `kind`."""
    first, *others = models
    return frozenset(
        name
        for name, field in first.model_fields.items()
        if name != "kind"
        and all(
            name in other.model_fields
            and repr(other.model_fields[name]) == repr(field)
            and meaning(other, name) == meaning(first, name)
            for other in others
        )
    )


def _kinds(model: type[BaseModel]) -> tuple[str, ...]:
    field = model.model_fields.get("kind")
    return get_args(field.annotation) if field is not None else (_mapping_of(model),)


def _mapping_of(model: type[BaseModel]) -> str:
    """What distinguishes a model without `kind`: its settings."""
    return "{" + ", ".join(f"{name}: ..." for name in model.model_fields) + "}"


def _setting(model: type[BaseModel], name: str, path: str) -> Setting:
    field = model.model_fields[name]
    written = _join(path, name)
    return Setting(
        path=written,
        type=describe(field.annotation, field.metadata),
        default=None if field.is_required() else _default(field),
        unit=unit(model, name),
        meaning=meaning(model, name) or "",
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _doc(model: type[BaseModel]) -> str:
    return inspect.cleandoc(model.__doc__ or "")


# --- types in words --------------------------------------------------------------------------


def describe(annotation: Any, metadata: Sequence[object] = ()) -> str:
    """A type in words, with its limits: `whole number, at least 1`, `list of names`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        return describe(args[0], (*args[1:], *metadata))
    if origin in (Union, UnionType):
        return _choice(args)
    if origin is Literal:
        return _either([f"`{value}`" for value in args])
    if origin is tuple:
        return _list(args, metadata)
    if origin is dict:
        return f"mapping from {describe(args[0])} to {describe(args[1])}" + _limits(metadata, "entry")
    if annotation is Hours:
        return 'text such as "19:00-07:00"'
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return "mapping"
    return _scalar(annotation, metadata)


def _choice(args: tuple[Any, ...]) -> str:
    """Without `None`: a setting that may be left out shows the default `none`."""
    options = [arg for arg in args if arg is not NoneType]
    kinds = [kind for option in options for kind in _tags(option)]
    if kinds and len(kinds) >= len(options) > 1 and all(_tags(option) for option in options):
        words = ["mapping whose `kind` is " + _either([f"`{kind}`" for kind in kinds])]
    else:
        words = [describe(option) for option in options]
    return ", or ".join(words)


def _tags(option: Any) -> tuple[str, ...]:
    is_model = isinstance(option, type) and issubclass(option, BaseModel)
    return _kinds(option) if is_model and "kind" in option.model_fields else ()


def _either(words: Sequence[str]) -> str:
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words)


def _list(args: tuple[Any, ...], metadata: Sequence[object]) -> str:
    item = describe(args[0])
    if args[-1] is not Ellipsis:
        return f"list of {len(args)}, each: {item}"
    words = f"list, each item: {item}" + _limits(metadata, "item")
    return f"{item}, or a {words}" if any(isinstance(one, BeforeValidator) for one in metadata) else words


def _scalar(annotation: Any, metadata: Sequence[object]) -> str:
    for pattern in (found.pattern for found in metadata if isinstance(found, StringConstraints)):
        if pattern in _TEXT:
            return _TEXT[str(pattern)]
    words = {
        int: "whole number",
        float: "number",
        bool: "`true` or `false`",
        str: "text",
        Path: "path",
        time: "time of day",
        Any: "any value",
    }
    return words[annotation] + _limits(metadata, "character")


def _limits(metadata: Sequence[object], of: str) -> str:
    words = [word for limit in metadata for word in _limit(limit, of)]
    return "".join(f", {word}" for word in words)


def _limit(limit: object, of: str) -> Iterator[str]:
    match limit:
        case annotated_types.Ge(ge=least):
            yield f"at least {least:,}"
        case annotated_types.Gt(gt=least):
            yield f"more than {least:,}"
        case annotated_types.Le(le=most):
            yield f"at most {most:,}"
        case annotated_types.Lt(lt=most):
            yield f"less than {_power(most)}"
        case annotated_types.MinLen(min_length=least):
            yield f"at least {_count(least, of)}"
        case annotated_types.MaxLen(max_length=most):
            yield f"at most {_count(most, of)}"
        case FieldInfo(metadata=inner):
            for one in inner:
                yield from _limit(one, of)
        case StringConstraints(pattern=pattern, min_length=least, max_length=most):
            if least is not None and least > 1:
                yield f"at least {_count(least, of)}"
            if most is not None:
                yield f"at most {_count(most, of)}"
            if pattern is not None:
                yield f"matching `{pattern}`"
        case _ if (pattern := getattr(limit, "pattern", None)) is not None:
            yield f"matching `{pattern}`"


def _count(number: int, of: str) -> str:
    if number == 1:
        return f"1 {of}"
    return f"{number} {of[:-1]}ies" if of.endswith("y") else f"{number} {of}s"


def _power(number: Any) -> str:
    exponent = number.bit_length() - 1 if isinstance(number, int) else 0
    return f"2^{exponent}" if exponent >= 32 and number == 2**exponent else f"{number:,}"


# --- defaults --------------------------------------------------------------------------------


def _default(field: FieldInfo) -> str:
    return show(field.get_default(call_default_factory=True))


def show(value: object) -> str:
    """A value as it would stand in the YAML."""
    match value:
        case None:
            return "none"
        case bool():
            return str(value).lower()
        case Enum():
            return show(value.value)
        case BaseModel():
            given = {
                name: inner
                for name, inner in value
                if name == "kind" or type(value).model_fields[name].is_required()
            }
            if not given:
                return "those of its settings"
            return "{" + ", ".join(f"{name}: {show(inner)}" for name, inner in given.items()) + "}"
        case dict():
            return "{" + ", ".join(f"{name}: {show(inner)}" for name, inner in value.items()) + "}"
        case tuple() | list():
            return "[" + ", ".join(show(inner) for inner in value) + "]"
        case float():
            return re.sub(r"e([+-])0*", lambda found: "e" + found[1].strip("+"), f"{value:g}")
        case str():
            return value or '""'
        case _:
            return str(value)


def _models(annotation: Any, path: str) -> Iterator[tuple[type[BaseModel], str]]:
    """Models that a field can hold, each with its path: a list's items are `path[]`, a mapping's `path.NAME`."""
    origin, args = get_origin(annotation), get_args(annotation)
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation is not Hours:  # written as text
            yield annotation, path
    elif origin in (Annotated, Union, UnionType):
        for inner in args:
            yield from _models(inner, path)
    elif origin is tuple:
        for inner in args:
            yield from _models(inner, f"{path}[]")
    elif origin is dict:
        yield from _models(args[1], f"{path}.NAME")
