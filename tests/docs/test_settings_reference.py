"""The settings reference: every field of every YAML file has a type, a default, a unit and a meaning."""

from typing import Annotated, Any, Literal

import pytest
from pydantic import Field

from common.config import Name, StudyConfig
from common.settings import Frozen
from docs._generate.fields import Section, Setting, describe, sections, show
from docs._generate.files import FILES
from docs._generate.meanings import meaning


class Shape(Frozen):
    """What every shape has."""

    label: str = ""
    """What it is called."""


class Square(Shape):
    """Four equal sides."""

    kind: Literal["square"] = "square"
    side_mib: Annotated[float, Field(gt=0)]
    """Length of a side."""


class Circle(Shape):
    """One curved side."""

    kind: Literal["circle"] = "circle"
    radius: int | None = None
    nothing_said: int = 3


class Drawing(Frozen):
    """Some shapes."""

    first: Annotated[Square | Circle, Field(discriminator="kind")]
    """The shape at the bottom."""
    others: tuple[Square, ...] = ()


def every_setting() -> list[tuple[str, Setting]]:
    return [
        (file.name, setting)
        for file in FILES.values()
        for section in sections(file.model)
        for setting in (*section.settings, *section.shared)
    ]


def of_study(path: str, kind: str | None = None) -> Section:
    return next(one for one in sections(StudyConfig) if (one.path, one.kind) == (path, kind))


def test_every_field_has_a_meaning() -> None:
    assert not [f"{file}: {setting.path}" for file, setting in every_setting() if not setting.meaning]


def test_every_number_has_a_unit_or_is_known_to_have_none() -> None:
    numbers = [one for one in every_setting() if "number" in one[1].type]
    assert len(numbers) > 100
    assert not [f"{file}: {setting.path}" for file, setting in numbers if setting.unit is None]


def test_a_field_is_described_as_it_is_written_in_the_yaml() -> None:
    rate = next(one for one in of_study("local.optimizer", "adam").settings if one.path.endswith(".lr"))
    assert (rate.path, rate.type, rate.default) == ("local.optimizer.lr", "number, more than 0", "0.001")
    rounds = next(one for one in of_study("").settings if one.path == "rounds")
    assert (rounds.type, rounds.default, rounds.unit) == (
        "whole number, at least 0, at most 999,999,999",
        None,
        "rounds",
    )


def test_each_kind_of_a_choice_is_a_section_and_what_all_share_stands_once() -> None:
    top, choice, square, circle, others = sections(Drawing)
    assert [one.path for one in (*top.settings, *choice.shared)] == ["first", "others", "first.label"]
    assert top.settings[0].type == "mapping whose `kind` is `square` or `circle`"
    assert (square.kind, [one.path for one in square.settings]) == ("square", ["first.side_mib"])
    assert (circle.kind, [one.path for one in circle.settings]) == (
        "circle",
        ["first.radius", "first.nothing_said"],
    )
    assert others.path == "others[]"
    assert [one.path for one in others.settings] == ["others[].label", "others[].kind", "others[].side_mib"]


def test_a_unit_follows_from_the_end_of_a_name() -> None:
    *_, square, _circle, _others = sections(Drawing)
    assert square.settings[0].unit == "MiB (2^20 bytes)"


def test_a_meaning_is_the_string_under_the_field_also_of_a_base() -> None:
    assert meaning(Square, "side_mib") == "Length of a side."
    assert meaning(Square, "label") == "What it is called."
    assert meaning(Circle, "nothing_said") is None


@pytest.mark.parametrize(
    ("annotation", "words"),
    [
        (int | None, "whole number"),
        (Name, "name"),
        (tuple[Name, ...], "list, each item: name"),
        (tuple[float, float], "list of 2, each: number"),
        (dict[Name, int], "mapping from name to whole number"),
        (Literal["a", "b", "c"], "`a`, `b` or `c`"),
        (Annotated[int, Field(ge=1)] | Literal["all"], "whole number, at least 1, or `all`"),
        (Annotated[tuple[int, ...], Field(min_length=1, max_length=8)],
         "list, each item: whole number, at least 1 item, at most 8 items"),
    ],
)  # fmt: skip
def test_types_are_described_in_words(annotation: Any, words: str) -> None:
    assert describe(annotation) == words


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "none"),
        (True, "true"),
        (1e-6, "1e-6"),
        (0.0005, "0.0005"),
        ((0.9, 0.98), "[0.9, 0.98]"),
        ("", '""'),
    ],
)
def test_defaults_are_shown_as_in_yaml(value: object, text: str) -> None:
    assert show(value) == text
