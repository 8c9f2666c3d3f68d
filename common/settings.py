"""Settings files: strict to read, and every mistake of a file is reported at once.

An unknown key is an error, because a mistyped `round:` that is silently ignored costs a
night of training. The report names the field, the value, what was expected and, for an
unknown key, the setting that was likely meant.
"""

import difflib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from common.errors import ConfigError

# What people call a setting that has another name here.
_SYNONYMS = {
    "learning_rate": "lr",
    "num_rounds": "rounds",
    "num_epochs": "epochs",
    "local_epochs": "epochs",
    "strategy": "algorithm",
    "backbone": "encoder",
    "architecture": "encoder",
    "labels": "classes",
    "num_classes": "classes",
    "min_clients": "required",
    "sites_required": "required",
    "clients": "sites",
}


class Renamed(NamedTuple):
    """Today's name of a setting, and the version that renamed it."""

    name: str
    since: str


class Frozen(BaseModel):
    """Base for settings: immutable, and an unknown key is an error."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    RENAMED: ClassVar[Mapping[str, Renamed]] = {}
    """Settings with another name in earlier versions, by that name; the error for it says what to write."""


Settings = TypeVar("Settings", bound=BaseModel)


def load_settings(path: Path, kind: type[Settings], what: str) -> Settings:
    """Read a YAML file as `kind`; `what` names it in messages ("study", "site").

    Raises ConfigError that lists every mistake, one a line.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "not UTF-8 text"
        raise ConfigError(f"{path} cannot be read: {reason}. Give the path of a {what} YAML file.") from error
    return parse_settings(text, kind, what, name=path.name)


def parse_settings(text: str, kind: type[Settings], what: str, name: str) -> Settings:
    """Read YAML text as `kind`; `name` is the file's name for messages. Raises ConfigError."""
    try:
        raw = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{name} is not valid YAML: {' '.join(str(error).split())}") from error
    if not isinstance(raw, dict):
        raise ConfigError(
            f"{name} is not a valid {what}: found {_show(raw)}, expected `setting: value` lines."
        )
    return validate_settings(raw, kind, what, name)


def validate_settings(values: Mapping[str, Any], kind: type[Settings], what: str, name: str) -> Settings:
    """`values` as `kind`. Raises ConfigError that lists every mistake."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        raise ConfigError(describe(error, kind, what, name)) from error


def to_yaml(values: object) -> bytes:
    """Settings as YAML text, in the order in which they were given."""
    text: str = yaml.safe_dump(values, sort_keys=False, allow_unicode=True)
    return text.encode()


def describe(error: ValidationError, kind: type[BaseModel], what: str, name: str) -> str:
    """All mistakes of one file, one a line, each with its field."""
    known = sorted(set(_paths(kind)))
    lines = [f"  {line}" for line in dict.fromkeys(_line(detail, kind, known) for detail in error.errors())]
    return "\n".join([f"{name} is not a valid {what}:", *lines])


def _line(detail: ErrorDetails, kind: type[BaseModel], known: list[str]) -> str:
    field = ".".join(str(part) for part in _named(detail, kind)) or "(whole file)"
    match detail["type"]:
        case "extra_forbidden" if renamed := _renamed(detail, kind):
            return f"{field}: {detail['loc'][-1]} is called {renamed.name} since version {renamed.since}; rename it"
        case "extra_forbidden":
            guess = suggest(field, known)
            return f"{field}: no such setting" + (f"; did you mean {guess}?" if guess else "; remove it")
        case "missing":
            return f"{field}: missing; add it"
        case "value_error":
            return f"{field}: {detail['msg'].removeprefix('Value error, ')}"
        case _:
            return f"{field}: {detail['msg']}; found {_show(detail['input'])}"


def _named(detail: ErrorDetails, kind: type[BaseModel]) -> Iterator[int | str]:
    """The location as a person wrote it: without the tags that pydantic adds for unions."""
    *way, last = detail["loc"] or ("",)
    here = [kind]
    for part in way:
        if isinstance(part, int) or _fields(here, part):
            yield part
        here = _below(here, part)
    is_tag = isinstance(last, str) and not any(last in model.model_fields for model in here)
    if last != "" and (detail["type"] == "extra_forbidden" or not is_tag):
        yield last


def _renamed(detail: ErrorDetails, kind: type[BaseModel]) -> Renamed | None:
    """Today's name of the setting at a location, if an earlier version had it under that one."""
    *way, last = detail["loc"]
    here = [kind]
    for part in way:
        here = _below(here, part)
    names = (model.RENAMED.get(str(last)) for model in here if issubclass(model, Frozen))
    return next((renamed for renamed in names if renamed), None)


def _below(models: list[type[BaseModel]], part: int | str) -> list[type[BaseModel]]:
    """Models one step down: of a setting, or those of `models` that a union's tag means; a list's place keeps all."""
    inner = [model for field in _fields(models, part) for model in _models(field.annotation)]
    return inner or [model for model in models if part in _kinds(model)] or models


def _kinds(model: type[BaseModel]) -> tuple[object, ...]:
    """Tags by which a union chooses the model."""
    return get_args(model.model_fields["kind"].annotation) if "kind" in model.model_fields else ()


def _fields(models: list[type[BaseModel]], part: int | str) -> list[FieldInfo]:
    return [model.model_fields[part] for model in models if part in model.model_fields]


def suggest(field: str, known: list[str]) -> str | None:
    """The setting most likely meant by `field`, as a dotted path, or None."""
    *parent, leaf = field.split(".")
    leaf = _SYNONYMS.get(leaf, leaf)
    home = ".".join(part for part in parent if not part.isdigit())  # an item of a list has no path of its own
    near = [path for path in known if path.rpartition(".")[0] == home]
    for pool in (near, known):
        exact = [path for path in pool if path.rpartition(".")[2] == leaf]
        if exact:
            return min(exact, key=len)
        leaves = {path.rpartition(".")[2]: path for path in reversed(pool)}
        close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
        if close:
            return leaves[close[0]]
    return None


def _paths(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    for name, field in kind.model_fields.items():
        yield prefix + name
        for inner in _models(field.annotation):
            yield from _paths(inner, f"{prefix}{name}.")


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, list, tuple):
        for inner in get_args(annotation):
            yield from _models(inner)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
