"""Figures of heads on record: one cell a head and site, pooled over training sites."""

import csv
import json

import numpy as np
import pytest

from common.errors import StorageError
from common.heads import FittedHead, HeadForm, identity
from common.heads.result import HeadResult
from common.metrics import count
from common.metrics.paired import pair
from common.weights import load_file
from server.heads.record import CSV, FILE, POOLED, HeadsRecord, cells, keep, read, titles
from server.state import RoundState

LABELS = np.array([0, 0, 1, 2])
SOFTMAX_RIGHT = np.array([True, False, True, True])
HEAD_RIGHT = np.array([True, True, True, True])


def result(title: str, right: np.ndarray) -> HeadResult:
    """A head that is sure of the right class or of the next one."""
    answers = np.where(right, LABELS, (LABELS + 1) % 3)
    paired = None
    if title != "softmax":
        paired = pair(SOFTMAX_RIGHT, right, LABELS, tuple("pqrs"), 3)
    return HeadResult(title=title, score=count(np.eye(3)[answers], LABELS, loss_sum=0.0), paired=paired)


BOTH = (result("softmax", SOFTMAX_RIGHT), result("federated.lda", HEAD_RIGHT))
STATE = RoundState(3, {"w": np.zeros(2, np.float32)}, {}, {})


@pytest.fixture
def study(make_study):
    return make_study(
        sites={"train": ("north", "south"), "evaluate": ("unseen",)}, heads={"federated": [{"kind": "lda"}]}
    )


def record(number: int = 3, **results: tuple[HeadResult, ...]) -> HeadsRecord:
    return HeadsRecord(number, results, {"south": "score: no answer within 60 s"}, {}, num_messages=3)


def test_a_cell_has_the_figures_of_its_counts_and_the_gain_over_the_softmax(study):
    row = cells(record(north=BOTH), study)["north"]
    # The softmax has 3 of 4 images right; by class 1 of 2, 1 of 1, 1 of 1: (0.5 + 1 + 1) / 3
    assert row["softmax"].accuracy == 0.75
    assert row["softmax"].balanced_accuracy == pytest.approx(2.5 / 3)
    assert row["softmax"].gain is None
    assert row["federated.lda"].gain == pytest.approx(0.5 / 3)
    # Weighted: a class of 2, 1 and 1 images; precisions 1, 1/2, 1 and recalls 1/2, 1, 1.
    assert row["softmax"].precision_weighted == pytest.approx((2 * 1 + 1 / 2 + 1) / 4)
    assert row["softmax"].recall_weighted == 0.75
    assert row["softmax"].f1_weighted == pytest.approx((2 * 2 / 3 + 2 / 3 + 1) / 4)
    five = (0.75 + 2.5 / 3 + 3.5 / 4 + 0.75 + 3 / 4) / 5
    assert row["softmax"].avg_acc_bacc_pre_rec_f1 == pytest.approx(five)
    # One image that only one of the two has right: p = 1
    assert row["federated.lda"].mcnemar_p == pytest.approx(1.0)


def test_the_pool_is_of_training_sites_only(study):
    table = cells(record(north=BOTH, south=BOTH, unseen=BOTH), study)
    assert table[POOLED]["federated.lda"].num_images == 8
    assert POOLED not in cells(record(north=BOTH, unseen=BOTH), study)


def test_a_head_that_one_site_could_not_score_has_its_problem_and_no_pooled_figure(study):
    missing = HeadResult(title="federated.lda", problem="too_slow")
    table = cells(record(north=BOTH, south=(BOTH[0], missing)), study)
    assert table["south"]["federated.lda"].problem == "too_slow"
    assert table["south"]["federated.lda"].accuracy is None
    assert set(table[POOLED]) == {"softmax"}


def test_every_figure_is_a_column_of_the_csv_file(study, tmp_path):
    keep(tmp_path, record(north=BOTH, unseen=BOTH), (), study, STATE)
    lines = list(csv.DictReader((tmp_path / CSV).read_text().splitlines()))
    assert [(line["site"], line["head"]) for line in lines] == [
        ("north", "softmax"), ("north", "federated.lda"), ("unseen", "softmax"), ("unseen", "federated.lda"),
    ]  # fmt: skip
    assert lines[0]["gain"] == ""
    assert float(lines[3]["f1_weighted"]) == 1.0


def test_the_last_table_comes_back_as_it_was_kept(study, tmp_path):
    assert read(tmp_path) is None
    keep(tmp_path, record(number=1, north=BOTH), (), study, STATE)
    keep(tmp_path, record(number=3, north=BOTH), (), study, STATE)
    table = read(tmp_path)
    assert table is not None
    assert table.round == 3
    assert table.cells == cells(record(north=BOTH), study)
    assert table.problems == {"south": "score: no answer within 60 s"}
    assert titles(table) == ["softmax", "federated.lda"]


def test_a_resumed_study_replaces_the_table_of_the_same_round_and_later_ones(study, tmp_path):
    for number in (1, 2, 3, 2):
        keep(tmp_path, record(number=number, north=BOTH), (), study, STATE)
    assert [entry["round"] for entry in json.loads((tmp_path / FILE).read_text())] == [1, 2]


def test_kept_heads_are_those_of_the_last_weights(study, tmp_path):
    for kind in ("lda", "ridge"):
        head = FittedHead(
            HeadForm(title=f"federated.{kind}", form="linear"), identity(1),
            {"weights": np.ones((1, 3)), "bias": np.zeros(3)},
        )  # fmt: skip
        keep(tmp_path, record(north=BOTH), (head,), study, STATE)
    assert [path.name for path in (tmp_path / "heads").iterdir()] == ["federated.ridge.safetensors"]
    _, label = load_file(tmp_path / "heads/federated.ridge.safetensors")
    assert (label["study"], label["round"]) == (study.name, "3")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is damaged"),
        ('[{"round": 1}]', "another version"),
        ('[{"round": 1, "cells": 3}]', "another version"),
    ],
)
def test_a_table_that_cannot_be_read_is_a_storage_error(tmp_path, text, message):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(StorageError, match=message):
        read(tmp_path)
