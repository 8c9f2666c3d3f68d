"""What a bad YAML says: every mistake at once, with field, found, expected and what to do."""

from typing import Annotated, Literal

import pytest
from pydantic import Field

from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import Frozen, load_settings, parse_settings, to_yaml

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
rounds: -1
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
        "classes: expected at least 2 of them, not 1; found ['benign']",
        "sites: required=3 can never be met by 2 training site(s); lower the first or name more sites",
        "model.encoder: missing; add it",
        "model.encodr: no such setting; did you mean model.encoder?",
        "rounds: Input should be greater than or equal to 0; found -1",
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


def test_a_setting_of_another_kind_is_not_suggested_to_the_kind_that_lacks_it():
    assert mistakes(GOOD + "algorithm: {kind: fedavg, mu: 0.1}") == [
        "algorithm.mu: a setting of fedprox, not of fedavg; remove it"
    ]
    assert mistakes(GOOD + "local: {optimizer: {kind: sgd, betas: [0.9, 0.5]}}") == [
        "local.optimizer.betas: a setting of adam and adamw, not of sgd; the settings of sgd are lr, momentum, "
        "weight_decay"
    ]


def test_an_unknown_choice_lists_the_known_ones():
    (line,) = mistakes(GOOD + "algorithm: {kind: fedsgd}")
    assert line.startswith("algorithm.kind: found 'fedsgd', expected one of ")

    assert all(known in line for known in ("fedsgd", "fedavg", "fedprox", "fedadagrad"))


def test_a_value_that_is_long_is_shortened():
    (line,) = mistakes(GOOD.replace("rounds: 3", f"rounds: {'x' * 500}"))
    assert line.startswith("rounds: Input should be a valid integer")
    assert len(line) < 200


def test_infinity_is_not_a_setting():
    (line,) = mistakes(GOOD + "deadlines: {round_s: .inf}")
    assert line.startswith("deadlines.round_s: ")


@pytest.mark.parametrize(
    ("text", "found"), [("", "nothing"), ("# only this\n", "nothing"), ("- a\n- b", "['a', 'b']"), ("3", "3")]
)
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
        "  shapes.1.side: a setting of square, not of circle; the settings of circle are radius",
    ]


# --- loose words and keys that stand twice ---------------------------------------------------


@pytest.mark.parametrize(
    ("word", "meaning"),
    [
        ("NO", "the truth value false, not as text"),
        ("yes", "the truth value true, not as text"),
        ("on", "the truth value true, not as text"),
        ("~", "no value, not as text"),
        ("0", "a number, not as text"),
        ("1e3", "a number, not as text"),
        ("1_000", "a number, not as text"),
        ("1.10", "a number, not as text"),
        ("12:30", "a number or a date by some programs and as text by others"),
        ("007", "a number or a date by some programs and as text by others"),
        ("2020-01-01", "a number or a date by some programs and as text by others"),
    ],
)
def test_a_class_or_a_site_that_yaml_does_not_read_as_text_needs_quotes_and_says_where(word, meaning):
    said = f'{word} (line 4) is read as {meaning}; it needs quotes: "{word}"'
    assert mistakes(GOOD.replace("[benign, malignant]", f"\n  [{word}, nv]")) == [f"classes.0: {said}"]
    text = GOOD.replace("train: [north, south]", f"train: [north, south]\n  evaluate: [{word}]")
    assert mistakes(text) == [f"sites.evaluate.0: {said.replace('line 4', 'line 6')}"]
    assert mistakes(GOOD.replace("name: demo", f"\n\nname: {word}"))[0] == f"name: {said}"


def test_all_words_that_need_quotes_are_named_and_no_list_is_called_too_short_for_them():
    assert len(mistakes(GOOD.replace("[benign, malignant]", "[NO, 1]"))) == 2


def test_a_key_that_is_no_text_is_named_with_its_line():
    assert mistakes(GOOD + "on: 3\n") == [
        'the key on (line 9) is read as the truth value true, not as text; it needs quotes: "on"'
    ]


def test_words_in_quotes_are_text():
    text = GOOD.replace("[benign, malignant]", "['NO', \"1e3\", '007', '2020-01-01']")
    assert parse_settings(text, StudyConfig, "study", name="good.yaml").classes == (
        "NO",
        "1e3",
        "007",
        "2020-01-01",
    )


@pytest.mark.parametrize("written", ["1e-3", "1E-3", "1.e-3", "0.001", "+1e-3", "10e-4"])
def test_a_number_with_an_exponent_is_a_number_wherever_one_is_meant(written):
    text = (
        GOOD
        + f"local: {{optimizer: {{kind: adam, lr: {written}}}}}\nheads: {{local: [{{kind: svm_rbf, c: {written}}}]}}\n"
    )
    study = parse_settings(text, StudyConfig, "study", name="good.yaml")
    assert study.local.optimizer.lr == 0.001
    assert study.heads is not None
    assert study.heads.local[0].c == (0.001,)  # type: ignore[union-attr]


def test_a_whole_number_may_be_written_with_an_exponent_or_underscores():
    text = GOOD.replace("rounds: 3", "rounds: 1e2") + "seed: 1_000\n"
    study = parse_settings(text, StudyConfig, "study", name="good.yaml")
    assert (study.rounds, study.seed) == (100, 1000)


@pytest.mark.parametrize("written", ["010", "1:30", "0b11", "0o17", "2020-01-01"])
def test_a_number_that_programs_read_differently_is_refused(written):
    # 010 would be 8 here and 10 elsewhere, 1:30 would be 90
    assert mistakes(GOOD + f"seed: {written}\n") == [
        f"seed: {written} (line 9) is another number to other programs; write it in decimal digits, without "
        "leading zeros or colons"
    ]


def test_a_key_that_stands_twice_is_an_error_with_its_lines():
    with pytest.raises(ConfigError) as caught:
        parse_settings(GOOD + "model: {encoder: x}\n", StudyConfig, "study", name="bad.yaml")
    assert str(caught.value) == (
        "bad.yaml is not valid YAML: model stands twice, in line 6 and line 9; keep one of them"
    )


def test_several_keys_that_stand_twice_are_one_a_line():
    with pytest.raises(ConfigError) as caught:
        parse_settings(GOOD + "rounds: 4\nname: x\n", StudyConfig, "study", name="bad.yaml")
    assert str(caught.value).splitlines() == [
        "bad.yaml is not valid YAML:",
        "  name stands twice, in line 2 and line 10; keep one of them",
        "  rounds stands twice, in line 8 and line 9; keep one of them",
    ]


def test_a_setting_with_nothing_behind_its_colon_is_no_default_without_a_word():
    assert mistakes(GOOD.replace("rounds: 3", "rounds: -1") + "heads:\n") == [
        "heads: nothing stands after it (line 9); write a value or null, {} for an empty section, or remove the line",
        "rounds: Input should be greater than or equal to 0; found -1",
    ]
    assert parse_settings(GOOD + "heads: null\n", StudyConfig, "study", name="good.yaml").heads is None


def test_a_file_in_another_encoding_says_how_to_save_it(tmp_path):
    path = tmp_path / "study.yaml"
    for encoding, said in (("utf-16", "it is UTF-16 text"), ("cp1252", "it is not UTF-8 text")):
        path.write_bytes(f"# für\n{GOOD}".encode(encoding))
        with pytest.raises(ConfigError, match=f"cannot be read: {said}.*save it as UTF-8"):
            load_settings(path, StudyConfig, "study")
    path.write_bytes(GOOD.replace("\n", "\r\n").encode("utf-8-sig"))
    assert load_settings(path, StudyConfig, "study").name == "demo"


def test_a_name_that_needs_quotes_gets_them_when_it_is_written():
    study = parse_settings(GOOD, StudyConfig, "study", name="good.yaml").model_copy(update={"name": "1e3"})
    text = to_yaml(study.model_dump(mode="json")).decode()
    assert parse_settings(text, StudyConfig, "study", name="again.yaml") == study


def test_a_section_with_nothing_in_it_is_one_mistake_not_two():
    assert mistakes(GOOD.replace("  encoder: convnext_t\n", "")) == [
        "model: nothing stands after it (line 6); write a value or null, {} for an empty section, or remove the line"
    ]
