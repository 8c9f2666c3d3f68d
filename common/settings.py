"""Settings files: strict to read, and every mistake of a file is reported at once.

An unknown key is an error, because a mistyped `round:` that is silently ignored costs a
night of training. The report names the field, the value, what was expected and, for an
unknown key, the setting that was likely meant.
"""

import difflib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, ClassVar, NamedTuple, TypeVar, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import ErrorDetails

from common import setting_words
from common.errors import ConfigError
from common.formats import yaml_scalars, yaml_text

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
        text = yaml_text.decode(path.read_bytes())
    except (OSError, yaml_text.YamlError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise ConfigError(f"{path} cannot be read: {reason}. Give the path of a {what} YAML file.") from error
    return parse_settings(text, kind, what, name=path.name)


def parse_settings(text: str, kind: type[Settings], what: str, name: str) -> Settings:
    """Read YAML text as `kind`; `name` is the file's name for messages. Raises ConfigError."""
    try:
        document = yaml_text.read(text)
    except yaml_text.YamlError as error:
        problems = str(error).splitlines()
        listed = f" {problems[0]}" if len(problems) == 1 else "".join(f"\n  {line}" for line in problems)
        raise ConfigError(f"{name} is not valid YAML:{listed}") from error
    raw = document.values
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else _show(raw)
        raise ConfigError(f"{name} is not a valid {what}: found {found}, expected `setting: value` lines.")
    return validate_settings(raw, kind, what, name, document)


def validate_settings(
    values: Mapping[str, Any],
    kind: type[Settings],
    what: str,
    name: str,
    document: yaml_text.Document | None = None,
) -> Settings:
    """`values` as `kind`; `document` is the text that they are from. Raises ConfigError that lists every mistake."""
    if (other := setting_words.other_file(values.keys(), what)) is not None:
        marks = ", ".join(sorted(setting_words.FILES[other]))
        raise ConfigError(
            f"{name} is not a valid {what}: it has the settings of a {other} ({marks}). Give the file of a {what}."
        )
    lines, settings = _without_value(document), None
    try:
        settings = kind.model_validate(values)
    except ValidationError as error:
        lines += mistakes(error, kind, document)
    if lines or settings is None:
        raise ConfigError("\n".join([f"{name} is not a valid {what}:", *(f"  {line}" for line in lines)]))
    return settings


def _without_value(document: yaml_text.Document | None) -> list[str]:
    """A rule with nothing behind its colon would be no rule, without a word."""
    return [
        f"{way}: nothing stands after it (line {line}); write a value or null, {{}} for an empty section, "
        "or remove the line"
        for way, line in (document.without_value() if document else ())
    ]


def to_yaml(values: object) -> bytes:
    """Settings as YAML text, in the order in which they were given."""
    return yaml_text.dump(values).encode()


def mistakes(
    error: ValidationError, kind: type[BaseModel], document: yaml_text.Document | None = None
) -> list[str]:
    """All mistakes of one file, each with its field."""
    known = sorted(set(paths(kind)))
    details = [detail for detail in error.errors() if not _follows(detail, document)]
    return list(dict.fromkeys(_line(detail, kind, known, document) for detail in details))


def _follows(detail: ErrorDetails, document: yaml_text.Document | None) -> bool:
    """True for what another mistake says already: a missing value, or "too few" of a list with wrong items."""
    if detail["type"] == "too_short":
        return len(detail["input"]) >= int(detail["ctx"]["min_length"])
    place = document.place(detail["loc"]) if document is not None and detail["input"] is None else None
    return place is not None and place.is_nothing


_TEXT_EXPECTED = ("string_type", "path_type", "invalid_key")
_NUMBER_EXPECTED = ("int_type", "float_type", "bool_type", "time_type")


def _line(
    detail: ErrorDetails, kind: type[BaseModel], known: list[str], document: yaml_text.Document | None
) -> str:
    field = ".".join(_way(detail, kind, document)) or "(whole file)"
    match detail["type"]:
        case error if error in _TEXT_EXPECTED and _is_loose(detail["input"]):
            return _needs_quotes(detail, field, document)
        case error if error in _NUMBER_EXPECTED and isinstance(detail["input"], yaml_scalars.Unclear):
            word = detail["input"]
            return (
                f"{field}: {word.written} (line {word.line}) is another number to other programs; write it in "
                "decimal digits, without leading zeros or colons"
            )
        case "extra_forbidden" if renamed := _renamed(detail, kind):
            return f"{field}: {detail['loc'][-1]} is called {renamed.name} since version {renamed.since}; rename it"
        case "extra_forbidden":
            return _of_another_kind(detail, kind, field) or _unknown(field, str(detail["loc"][-1]), known)
        case "union_tag_invalid" | "union_tag_not_found":
            return _choice(detail, kind, field)
        case "model_attributes_type" if isinstance(detail["input"], str) and _tags(detail, kind):
            return f"{field}: {_bare_kind(detail['input'], _tags(detail, kind))}"
        case "missing":
            return f"{field}: missing; add it"
        case "value_error":
            return f"{field}: {detail['msg'].removeprefix('Value error, ')}"
        case _:
            expected = setting_words.plain(detail) or detail["msg"]
            return f"{field}: {expected}; found {_show(detail['input'])}"


def _of_another_kind(detail: ErrorDetails, kind: type[BaseModel], field: str) -> str | None:
    """A sentence on a setting that another kind of the section has; None if there is none."""
    *way, last = detail["loc"]
    if not way or not isinstance(tag := way[-1], str):
        return None
    section, here = _section(kind, way[:-1]), _section(kind, way)
    having = [str(_kinds(model)[0]) for model in section if _kinds(model) and last in model.model_fields]
    if not having or tag not in [name for model in here for name in _kinds(model)]:
        return None
    own = [name for model in here for name in model.model_fields if name != "kind"]
    close = difflib.get_close_matches(str(last), own, n=1, cutoff=0.7)
    ways = f"the settings of {tag} are {', '.join(own)}" if own else "remove it"
    ways = f"did you mean {close[0]}?" if close else ways
    *others, other = having
    others_too = f"{', '.join(others)} and " if others else ""
    return f"{field}: a setting of {others_too}{other}, not of {tag}; {ways}"


def _section(kind: type[BaseModel], way: Sequence[int | str]) -> list[type[BaseModel]]:
    """Models at a location; before a union's tag, all of its kinds."""
    here = [kind]
    for part in way:
        here = _below(here, part)
    return here


def _unknown(field: str, name: str, known: list[str]) -> str:
    """A sentence on a name that no setting has."""
    guess = suggest(field, known)
    *above, last = name.split(".")
    if above and guess is not None and guess.endswith(name):
        way = " ".join(f"`{part}:`, and indented below it" for part in above)
        return f"{field}: a dot does not lead into a section; write {way} `{last}:`"
    parts = [f"{setting_words.shown(field)}: no such setting"]
    if (why := setting_words.unlike(name)) is not None:
        parts.append(why)
    parts.append(f"did you mean {guess}?" if guess else "remove it")
    return "; ".join(parts)


def _choice(detail: ErrorDetails, kind: type[BaseModel], field: str) -> str:
    """A sentence on a `kind` that is missing, or that there is not."""
    tags = _tags(detail, kind)
    if detail["type"] == "union_tag_not_found":
        return f"{field}.kind: missing; add it, one of {', '.join(tags)}"
    found = str(detail["ctx"]["tag"])
    close = difflib.get_close_matches(found, tags, n=1, cutoff=0.7)
    return f"{field}.kind: {setting_words.choice(tags, found, close[0] if close else None)}"


def _bare_kind(found: str, tags: list[str]) -> str:
    """A kind that was written without its braces, or no kind."""
    if found in tags:
        return f"{found} is one of its kinds; write {{kind: {found}}}"
    return f"{setting_words.choice(tags, found, None)}, as {{kind: {tags[0]}}}"


def _tags(detail: ErrorDetails, kind: type[BaseModel]) -> list[str]:
    """The kinds of the setting at a location, none if it has no kinds."""
    return [str(tag) for model in _section(kind, detail["loc"]) for tag in _kinds(model)]


def _way(detail: ErrorDetails, kind: type[BaseModel], document: yaml_text.Document | None) -> tuple[str, ...]:
    """The setting's path: as the file has it, names of a site or a class included, where the file has one."""
    written = document.known(detail["loc"]) if document is not None else ()
    named = tuple(str(part) for part in _named(detail, kind))
    return written if len(written) > len(named) else named


def _is_loose(value: object) -> bool:
    """True for a word that YAML takes for something other than text."""
    return value is None or isinstance(value, bool | int | float | yaml_scalars.Unclear)


def _is_key(detail: ErrorDetails) -> bool:
    return detail["type"] == "invalid_key" or detail["loc"][-1:] == ("[key]",)


def _needs_quotes(detail: ErrorDetails, field: str, document: yaml_text.Document | None) -> str:
    """A sentence on a word that was meant as text, with its line where the text is known."""
    value, way, is_key = detail["input"], detail["loc"], _is_key(detail)
    if is_key and way[-1] == "[key]":
        way = way[:-1]
    place = None
    if document is not None:
        place = document.key_place(way) if is_key else document.place(way)
        field = ".".join(document.known(way[:-1] if is_key else way))
    written, where = str(yaml_scalars.as_written(value)), ""
    if place is not None and place.value == value and place.written:
        written, where = place.written, f" (line {place.line})"
    elif isinstance(value, yaml_scalars.Unclear):
        where = f" (line {value.line})"
    what = f"{field}{': ' if field else ''}{'the key ' if is_key else ''}{written}{where}"
    return f'{what} is read as {yaml_scalars.meaning(value)}; it needs quotes: "{written}"'


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
    here = _section(kind, way)
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
        if alike := setting_words.looks_like(leaf, list(leaves)):
            return leaves[alike]
        close = difflib.get_close_matches(leaf, leaves, n=1, cutoff=0.7)
        if close:
            return leaves[close[0]]
    return None


def paths(kind: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Dotted paths of all settings of a model; one that several kinds of a setting share comes several times."""
    for name, field in kind.model_fields.items():
        yield prefix + name
        below = f"{name}.NAME" if get_origin(field.annotation) is dict else name
        for inner in _models(field.annotation):
            yield from paths(inner, f"{prefix}{below}.")


def fields_of_kind(model: type[BaseModel], setting: str, kind: str) -> frozenset[str]:
    """Names of the settings below the dotted path `setting` of `model` if it is of this kind; none if it never is."""
    models = [model]
    for part in setting.split("."):
        models = _below(models, part)
    return frozenset(name for one in models if kind in _kinds(one) for name in one.model_fields)


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif get_origin(annotation) in (Annotated, Union, UnionType, list, tuple, dict):
        for inner in get_args(annotation):
            yield from _models(inner)


def _show(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
