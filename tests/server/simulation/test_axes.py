"""Axes of a grid: which studies they make, under which names, and which mistakes are named."""

from typing import Any

import pytest

from common.config import AdamW, FedProx, Sgd
from common.errors import ConfigError
from server.simulation.axes import label, merged
from server.simulation.grid import Grid, plan
from tests.server.simulation.test_grid import BASE


def grid(**changes: Any) -> Grid:
    return Grid.model_validate({"name": "paper", "study": BASE, **changes})


def names(**changes: Any) -> list[str]:
    return [study.name for study in plan(grid(**changes), "grid.yaml").studies.values()]


TWO_BY_TWO = {"model.encoder": ["convnext_t", "swin_t"], "local.batch_size": [4, 8]}


def test_every_combination_is_a_study_of_its_own_name() -> None:
    assert names(axes=TWO_BY_TWO) == ["convnext_t-4", "convnext_t-8", "swin_t-4", "swin_t-8"]


def test_a_study_has_the_values_in_its_name() -> None:
    study = plan(grid(axes=TWO_BY_TWO), "grid.yaml").studies["swin_t-4", 0]
    assert (study.model.encoder, study.local.batch_size) == ("swin_t", 4)
    assert study.local.optimizer == Sgd(lr=0.5, momentum=0.0)  # the base's
    assert study.model.image_size == 64


def test_a_name_where_a_setting_has_kinds_is_that_kind_with_its_defaults() -> None:
    found = plan(
        grid(axes={"local.optimizer": ["sgd", "adamw"], "algorithm": ["fedprox"]}), "grid.yaml"
    ).studies
    assert found["sgd-fedprox", 0].local.optimizer == Sgd()
    assert found["adamw-fedprox", 0].local.optimizer == AdamW()
    assert isinstance(found["adamw-fedprox", 0].algorithm, FedProx)


def test_values_with_a_kind_stand_under_it_and_others_under_the_name_that_the_grid_gives() -> None:
    axes = {
        "local.optimizer": [{"kind": "sgd", "lr": 0.1}, {"kind": "adamw", "lr": 0.2}],
        "untrained_classes": {"none": [], "two": ["mel", "nv"]},
    }
    found = plan(grid(axes=axes), "grid.yaml").studies
    assert [name for name, _ in found] == ["sgd-none", "sgd-two", "adamw-none", "adamw-two"]
    assert found["adamw-two", 0].local.optimizer == AdamW(lr=0.2)
    assert found["adamw-two", 0].untrained_classes == ("mel", "nv")


def test_variants_and_axes_are_combined_and_the_axes_win() -> None:
    found = plan(
        grid(
            variants={"a": {"rounds": 5}, "b": {"local": {"batch_size": 2}}},
            axes={"local.batch_size": [4, 8]},
        ),
        "grid.yaml",
    ).studies
    assert {name: (study.rounds, study.local.batch_size) for (name, _), study in found.items()} == {
        "a-4": (5, 4), "a-8": (5, 8), "b-4": (2, 4), "b-8": (2, 8),
    }  # fmt: skip


def test_an_axis_of_seeds_is_the_grids_seeds() -> None:
    assert names(axes={"local.batch_size": [4], "seed": [3, 5]}) == ["4-seed3", "4-seed5"]
    with pytest.raises(ValueError, match=r"both in `seeds` and in `axes\.seed`"):
        grid(axes={"seed": [1]}, seeds=[2])


@pytest.mark.parametrize("changes", [{"axes": {"seed": [0, 1]}}, {"seeds": [0, 1]}], ids=["axis", "seeds"])
def test_seeds_alone_are_runs_of_the_base(changes: dict[str, Any]) -> None:
    found = plan(grid(**changes), "grid.yaml").studies
    assert {key: study.name for key, study in found.items()} == {
        ("base", 0): "base-seed0",
        ("base", 1): "base-seed1",
    }
    assert [study.seed for study in found.values()] == [0, 1]


@pytest.mark.parametrize("longer_first", [True, False])
def test_an_axis_of_a_part_wins_over_that_of_the_whole_in_either_order(longer_first: bool) -> None:
    axes = {"local.optimizer.lr": [0.1, 0.01], "local.optimizer": ["sgd", "adamw"]}
    if not longer_first:
        axes = dict(reversed(axes.items()))
    found = plan(grid(axes=axes), "grid.yaml").studies
    assert {
        name: (study.local.optimizer.kind, study.local.optimizer.lr) for (name, _), study in found.items()
    } == (
        {
            "0.1-sgd": ("sgd", 0.1),
            "0.1-adamw": ("adamw", 0.1),
            "0.01-sgd": ("sgd", 0.01),
            "0.01-adamw": ("adamw", 0.01),
        }
        if longer_first
        else {
            "sgd-0.1": ("sgd", 0.1),
            "sgd-0.01": ("sgd", 0.01),
            "adamw-0.1": ("adamw", 0.1),
            "adamw-0.01": ("adamw", 0.01),
        }
    )


def test_a_value_that_another_axis_changes_is_named() -> None:
    axes = {
        "local.optimizer": [{"kind": "sgd", "lr": 0.5}, {"kind": "adamw"}],
        "local.optimizer.lr": [0.5, 0.1],
    }
    message = (
        r"grid\.yaml: axes\.local\.optimizer: study sgd-0\.1 would not have the value sgd, because "
        r"axes\.local\.optimizer\.lr changes a part of it; leave lr out of the values"
    )
    with pytest.raises(ConfigError, match=message):
        plan(grid(axes=axes), "grid.yaml")


# --- what is left out, and what depends on a value --------------------------------------------


def test_an_excluded_combination_is_not_run_and_is_counted() -> None:
    made = grid(axes=TWO_BY_TWO, exclude=[{"model.encoder": "swin_t", "local.batch_size": 8}])
    planned = plan(made, "grid.yaml")
    assert [name for name, _ in planned.studies] == ["convnext_t-4", "convnext_t-8", "swin_t-4"]
    assert planned.num_excluded == 1


def test_an_exclusion_may_list_values_and_name_variants() -> None:
    variants = {"a": {}, "b": {"rounds": 3}}
    left = names(axes=TWO_BY_TWO, variants=variants, exclude=[{"variant": "b", "local.batch_size": [4, 8]}])
    assert left == ["a-convnext_t-4", "a-convnext_t-8", "a-swin_t-4", "a-swin_t-8"]


def test_a_preset_goes_with_its_value_wherever_the_value_comes_from() -> None:
    presets = {"model.encoder": {"swin_t": {"local": {"batch_size": 2}, "model": {"image_size": 224}}}}
    found = plan(grid(axes={"model.encoder": ["convnext_t", "swin_t"]}, presets=presets), "grid.yaml").studies
    assert [(study.local.batch_size, study.model.image_size) for study in found.values()] == [
        (8, 64),
        (2, 224),
    ]
    found = plan(grid(variants={"v": {"model": {"encoder": "swin_t"}}}, presets=presets), "grid.yaml").studies
    assert found["v", 0].local.batch_size == 2


def test_variants_and_axes_override_a_preset() -> None:
    presets = {"model.encoder": {"convnext_t": {"local": {"batch_size": 2}}}}
    found = plan(grid(axes={"local.batch_size": [16]}, presets=presets), "grid.yaml").studies
    assert found["16", 0].local.batch_size == 16


def test_a_kind_by_its_name_keeps_what_presets_say_of_it_and_nothing_of_the_base() -> None:
    presets = {
        "model.encoder": {"swin_t": {"local": {"optimizer": {"lr": 0.003}}}},
        "local.optimizer": {"adamw": {"local": {"optimizer": {"weight_decay": 0.2}}}},
    }
    axes = {"model.encoder": ["convnext_t", "swin_t"], "local.optimizer": ["sgd", "adamw"]}
    planned = plan(grid(axes=axes, presets=presets), "grid.yaml")
    assert {name: study.local.optimizer for (name, _), study in planned.studies.items()} == {
        "convnext_t-sgd": Sgd(),
        "convnext_t-adamw": AdamW(weight_decay=0.2),
        "swin_t-sgd": Sgd(lr=0.003),
        "swin_t-adamw": AdamW(lr=0.003, weight_decay=0.2),
    }
    assert planned.unfit == ()


def test_a_kind_by_its_name_keeps_what_the_variant_says_of_it() -> None:
    variants = {"slow": {"local": {"optimizer": {"lr": 0.003}}}}
    found = plan(grid(variants=variants, axes={"local.optimizer": ["sgd", "adamw"]}), "grid.yaml").studies
    assert found["slow-sgd", 0].local.optimizer == Sgd(lr=0.003)
    assert found["slow-adamw", 0].local.optimizer == AdamW(lr=0.003)


def test_settings_of_a_preset_that_a_kind_does_not_take_are_named() -> None:
    """SGD has a momentum and no betas, AdamW the other way round; what is for a kind by name is for no other."""
    presets = {
        "model.encoder": {
            "convnext_t": {"local": {"optimizer": {"lr": 0.003, "momentum": 0.5}}},
            "swin_t": {"local": {"optimizer": {"kind": "adamw", "lr": 0.004}}},
        }
    }
    axes = {"model.encoder": ["convnext_t", "swin_t"], "local.optimizer": ["sgd", "adamw"]}
    planned = plan(grid(axes=axes, presets=presets, seeds=[0, 1]), "grid.yaml")
    optimizers = {name: study.local.optimizer for (name, _), study in planned.studies.items()}
    assert optimizers["convnext_t-sgd"] == Sgd(lr=0.003, momentum=0.5)
    assert optimizers["convnext_t-adamw"] == AdamW(lr=0.003)
    assert optimizers["swin_t-sgd"] == Sgd()
    assert optimizers["swin_t-adamw"] == AdamW(lr=0.004)
    assert planned.describe("paper", planned.studies, num_finished=0).endswith(
        "; settings of presets and variants that do not fit a kind: local.optimizer.momentum with adamw, "
        "local.optimizer.lr with sgd"
    )


def test_presets_that_no_study_uses_are_named() -> None:
    presets = {"model.encoder": {"convnext_t": {"rounds": 1}, "vit_b_16": {"rounds": 9}}}
    planned = plan(grid(variants={"v": {}}, presets=presets), "grid.yaml")
    assert planned.unused_presets == ("model.encoder: vit_b_16",)
    line = planned.describe("paper", planned.studies, num_finished=0)
    assert line == "paper has 1 run of 1 round together; presets that no study uses: model.encoder: vit_b_16"


def test_the_plan_counts_runs_rounds_and_what_is_left_out() -> None:
    made = grid(axes=TWO_BY_TWO, exclude=[{"local.batch_size": 8, "model.encoder": "swin_t"}], seeds=[0, 1])
    planned = plan(made, "grid.yaml")
    wanted = {key: study for key, study in planned.studies.items() if key[0] == "swin_t-4"}
    assert planned.describe("paper", wanted, num_finished=1) == (
        "paper has 2 runs of 4 rounds together; 1 finished before; 1 combination excluded; 4 left out by --only"
    )


# --- mistakes ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"axes": {"model.encodr": ["swin_t"]}}, r"axes\.model\.encodr: .* did you mean model\.encoder\?"),
        ({"axes": {"local.batch_size": [4, 4]}}, r"axes\.local\.batch_size: 4 stands twice"),
        ({"axes": {"rounds": [0, 1]}}, r"(?s)leave that out, or .*In a grid: take 0 out of axes\.rounds"),
        ({"axes": {"untrained_classes": [["mel"]]}}, r"axes\.untrained_classes: \['mel'\] has no name; write"),
        ({"axes": {"local.batch_size": [0]}}, r"variant 0 is not a valid study:\n  local\.batch_size"),
        ({"axes": {"model.encoder": ["a b"]}}, r"variant a b is not a valid study:\n  name"),
        ({"axes": TWO_BY_TWO, "exclude": [{"rounds": 3}]}, r"exclude: rounds is no axis .* variant, model\.encoder"),
        ({"axes": TWO_BY_TWO, "exclude": [{"model.encoder": "vit"}]}, r"model\.encoder is never vit; it is convnext_t"),
        ({"axes": TWO_BY_TWO, "exclude": [{"local.batch_size": [4, 8]}]}, "no study of the grid is left"),
        ({"variants": {"v": {}}, "presets": {"modle": {"x": {}}}}, r"presets\.modle: a study has no such setting"),
        ({"variants": {"a-4": {}, "a": {}}, "axes": {"local.batch_size": {"4": 4, "4-4": 8}}}, "are called a-4-4"),
    ],
)  # fmt: skip
def test_a_mistake_is_named_with_what_was_expected(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        plan(grid(**changes), "grid.yaml")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "needs `variants`, `axes`, or several `seeds`"),
        ({"axes": {"rounds": []}}, r"axes\.rounds has no value"),
        ({"axes": {"seed": [0, 0]}}, "seed 0 stands twice; keep one"),
        ({"variants": {"a": {}}, "seeds": [1, 1]}, "seed 1 stands twice; keep one"),
        (
            {"axes": {"name": ["x", "y"]}},
            r"axes\.name: a study is named by its variant and its values; remove the axis",
        ),
    ],
)
def test_a_grid_without_studies_of_their_own_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        grid(**changes)


@pytest.mark.parametrize(
    ("value", "name"),
    [
        ("adam", "adam"),
        (True, "true"),
        (0.001, "0.001"),
        (8, "8"),
        ({"kind": "sgd"}, "sgd"),
        ([1], None),
        ({}, None),
    ],
)
def test_a_value_is_labelled_as_yaml_writes_it(value: object, name: str | None) -> None:
    assert label(value) == name


def test_a_mapping_is_merged_and_one_with_a_kind_replaces_the_former() -> None:
    base = {"a": {"x": 1, "y": 2}, "b": {"kind": "p", "x": 1}}
    assert merged(base, {"a": {"y": 3}, "b": {"kind": "q"}}) == {"a": {"x": 1, "y": 3}, "b": {"kind": "q"}}
    assert base == {"a": {"x": 1, "y": 2}, "b": {"kind": "p", "x": 1}}
