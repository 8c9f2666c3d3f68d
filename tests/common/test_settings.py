"""What a bad YAML says: every mistake at once, with field, found, expected and what to do."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import Frozen, load_settings, parse_settings

GOOD = """
name: demo
classes: [benign, malignant]
sites:
  train: [north, south]
model:
  encoder: convnext_t
rounds: 3
"""

FIVE_MISTAKES = """
name: demo
classes: [benign]
sites:
  train: [north, south]
  required: 3
model:
  encodr: convnext_t
rounds: 0
learning_rate: 0.1
"""


def mistakes(text: str) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, StudyConfig, "study", name="bad.yaml")
    first, *lines = str(caught.value).splitlines()
    assert first == "bad.yaml is not a valid study:"
    return [line.removeprefix("  ") for line in lines]


def test_a_good_study_is_read():
    study = parse_settings(GOOD, StudyConfig, "study", name="good.yaml")
    assert study.sites.train == ("north", "south")


def test_all_mistakes_of_a_file_are_reported_at_once():
    assert mistakes(FIVE_MISTAKES) == [
        "classes: Tuple should have at least 2 items after validation, not 1; found ['benign']",
        "sites: required=3 can never be met by 2 training site(s); lower the first or name more sites",
        "model.encoder: missing; add it",
        "model.encodr: no such setting; did you mean model.encoder?",
        "rounds: Input should be greater than or equal to 1; found 0",
        "learning_rate: no such setting; did you mean local.optimizer.lr?",
    ]


@pytest.mark.parametrize(
    ("line", "meant"),
    [
        ("round: 3", "rounds"),
        ("num_rounds: 3", "rounds"),
        ("strategy: fedavg", "algorithm"),
        ("sede: 1", "seed"),
        ("batch_size: 8", "local.batch_size"),
        ("local_epochs: 2", "local.epochs"),
        ("backbone: x", "model.encoder"),
        ("min_clients: 2", "sites.required"),
    ],
)
def test_a_mistyped_or_foreign_word_suggests_the_likely_setting(line, meant):
    assert mistakes(GOOD + line) == [f"{line.split(':')[0]}: no such setting; did you mean {meant}?"]


def test_a_word_like_no_setting_is_to_be_removed():
    assert mistakes(GOOD + "zzzzzz: 1") == ["zzzzzz: no such setting; remove it"]


def test_a_mistake_inside_a_choice_is_named_as_it_was_written():
    # pydantic's own location is algorithm.fedprox.squard
    assert mistakes(GOOD + "algorithm: {kind: fedprox, squard: true}") == [
        "algorithm.squard: no such setting; did you mean algorithm.squared?"
    ]
    assert mistakes(GOOD + "local: {optimizer: {kind: adam, betas: [0.9, 1.5]}}") == [
        "local.optimizer.betas.1: Input should be less than 1; found 1.5"
    ]


def test_an_unknown_choice_lists_the_known_ones():
    (line,) = mistakes(GOOD + "algorithm: {kind: fedsgd}")
    assert line.startswith("algorithm: ")
    assert all(known in line for known in ("fedsgd", "fedavg", "fedprox", "fedadagrad"))


def test_a_value_that_is_long_is_shortened():
    (line,) = mistakes(GOOD.replace("rounds: 3", f"rounds: {'x' * 500}"))
    assert line.startswith("rounds: Input should be a valid integer")
    assert len(line) < 200


def test_infinity_is_not_a_setting():
    (line,) = mistakes(GOOD + "deadlines: {round_s: .inf}")
    assert line.startswith("deadlines.round_s: ")


@pytest.mark.parametrize(("text", "found"), [("", "None"), ("- a\n- b", "['a', 'b']"), ("3", "3")])
def test_a_file_that_holds_no_settings_says_what_it_holds(text, found):
    with pytest.raises(ConfigError) as caught:
        parse_settings(text, StudyConfig, "study", name="bad.yaml")
    assert (
        str(caught.value) == f"bad.yaml is not a valid study: found {found}, expected `setting: value` lines."
    )


def test_text_that_is_not_yaml_says_where():
    with pytest.raises(ConfigError, match=r"bad.yaml is not valid YAML: .* line 1"):
        parse_settings("a: [1, 2", StudyConfig, "study", name="bad.yaml")


def test_yaml_that_would_run_code_is_refused():
    with pytest.raises(ConfigError, match="not valid YAML"):
        parse_settings("!!python/object/apply:os.getcwd []", StudyConfig, "study", name="bad.yaml")


def test_a_file_is_read_from_disk(tmp_path):
    path = tmp_path / "study.yaml"
    path.write_text(GOOD)
    assert load_settings(path, StudyConfig, "study").name == "demo"


def test_a_file_that_is_not_there_or_not_text_says_so(tmp_path):
    with pytest.raises(ConfigError, match=r"No such file.*Give the path of a study YAML file"):
        load_settings(tmp_path / "none.yaml", StudyConfig, "study")
    (tmp_path / "picture.yaml").write_bytes(b"\xff\xd8\xff\xe0")
    with pytest.raises(ConfigError, match="not UTF-8 text"):
        load_settings(tmp_path / "picture.yaml", StudyConfig, "study")


class Square(Frozen):
    kind: Literal["square"] = "square"
    side: Annotated[float, Field(gt=0)]


class Circle(Frozen):
    kind: Literal["circle"] = "circle"
    radius: Annotated[float, Field(gt=0)]


class Drawing(Frozen):
    shapes: tuple[Annotated[Square | Circle, Field(discriminator="kind")], ...]


def test_a_mistake_in_a_list_is_named_by_its_place():
    with pytest.raises(ConfigError) as caught:
        parse_settings(
            "shapes: [{kind: square, side: 1}, {kind: circle, side: 2}]", Drawing, "drawing", name="d.yaml"
        )
    assert str(caught.value).splitlines()[1:] == [
        "  shapes.1.radius: missing; add it",
        "  shapes.1.side: no such setting; did you mean shapes.side?",
    ]
