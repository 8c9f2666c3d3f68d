"""The JSON Schemas under configs/schema are those of the models, and accept what the models accept."""

import copy
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator

from docs._generate import schemas
from docs._generate.files import FILES

CONFIGS = Path(__file__).parents[2] / "configs"
SHIPPED = [
    (path, name) for name, file in FILES.items() for path in sorted(CONFIGS.glob(f"{file.shipped_in}/*.yaml"))
]


def validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(schemas.schema(name))


def demo() -> dict[str, Any]:
    loaded: dict[str, Any] = yaml.safe_load((CONFIGS / "study" / "demo.yaml").read_text(encoding="utf-8"))
    return loaded


@pytest.mark.parametrize("name", FILES)
def test_a_schema_is_up_to_date(name: str) -> None:
    kept = schemas.path_of(name).read_text(encoding="utf-8")
    assert kept == schemas.text(name), "run `make schemas`"


@pytest.mark.parametrize("name", FILES)
def test_a_schema_is_valid_itself(name: str) -> None:
    Draft202012Validator.check_schema(schemas.schema(name))


def test_every_yaml_that_ships_is_of_a_kind_with_a_schema() -> None:
    assert {path for path, _ in SHIPPED} == set(CONFIGS.rglob("*.yaml"))


@pytest.mark.parametrize(("path", "name"), SHIPPED, ids=lambda value: getattr(value, "name", value))
def test_a_yaml_that_ships_fits_its_schema(path: Path, name: str) -> None:
    values = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert [error.message for error in validator(name).iter_errors(values)] == []


@pytest.mark.parametrize(("path", "name"), SHIPPED, ids=lambda value: getattr(value, "name", value))
def test_a_yaml_that_ships_names_its_schema_in_the_first_line(path: Path, name: str) -> None:
    first = path.read_text(encoding="utf-8").splitlines()[0]
    assert first.startswith("# yaml-language-server: $schema=")
    assert (path.parent / first.partition("=")[2]).resolve() == schemas.path_of(name)


@pytest.mark.parametrize(
    "change",
    [
        {"rouns": 3},
        {"rounds": -1},
        {"local": {"optimizer": {"kind": "sdg"}}},
        {"local": {"optimizer": {"lr": 0.1}}},
        {"classes": ["nv"]},
    ],
    ids=["unknown setting", "too small", "unknown kind", "no kind", "one class"],
)
def test_a_mistake_does_not_fit(change: dict[str, Any]) -> None:
    assert not validator("study").is_valid(copy.deepcopy(demo()) | change)


def test_a_model_without_a_kind_is_a_classifier() -> None:
    model = demo()["model"]
    assert "kind" not in model
    assert validator("study").is_valid(demo())
    assert not validator("study").is_valid(demo() | {"model": {**model, "kind": "clip"}})  # no text tower


@pytest.mark.parametrize("values", [0.5, [0.5, 1]], ids=["one", "several"])
def test_one_value_or_several_are_given_for_a_head(values: object) -> None:
    heads = {"local": [{"kind": "svm_rbf", "c": values}]}
    assert validator("study").is_valid(demo() | {"heads": heads})


def test_hours_are_written_as_text() -> None:
    site = yaml.safe_load((CONFIGS / "site" / "example.yaml").read_text(encoding="utf-8"))
    assert site["policy"]["hours"] == "19:00-07:00"
    site["policy"]["hours"] = {"opens": "19:00", "closes": "07:00"}
    assert not validator("site").is_valid(site)


def test_a_number_in_a_csv_is_written_with_or_without_quotes() -> None:
    site = yaml.safe_load((CONFIGS / "site" / "example.yaml").read_text(encoding="utf-8"))
    site["data"]["row_filter"] = {"column": "center", "values": [3, "4"]}
    assert validator("site").is_valid(site)


def test_each_setting_has_its_meaning_in_the_schema() -> None:
    rounds = schemas.schema("study")["properties"]["rounds"]
    assert "closing evaluation" in rounds["description"]
