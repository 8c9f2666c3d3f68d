"""Rounds on record, one JSON line a round."""

import json
import math
import re
from dataclasses import asdict, replace

import numpy as np
import pytest

from common.errors import StorageError
from common.metrics import count, empty, figures
from common.metrics.pooling import interval, pooled
from server.state import Best, ChosenWeights, RoundState, SiteRound
from server.storage.history import FILE, append_round, curves, read_rounds


def score(num_right: int, num_images: int = 4):
    """Images of class 0, of which so many are taken for class 0 and the others for class 1."""
    answers = np.array([0] * num_right + [1] * (num_images - num_right))
    return count(np.eye(3)[answers], np.zeros(num_images, np.int64), loss_sum=2.0)


def lines_of(run_dir) -> list[dict]:
    return [json.loads(line) for line in (run_dir / FILE).read_text().splitlines()]


def state(number: int, **changes) -> RoundState:
    rows = (
        SiteRound("north", "ok", num_examples=8, train_loss=0.5),
        SiteRound("south", "failed", "no memory"),
    )
    return replace(RoundState(number, {}, {}, {}, sites=rows, seconds=7.5, attempts=2), **changes)


def test_a_folder_without_rounds_has_none_on_record(tmp_path):
    assert read_rounds(tmp_path) == ()


def test_a_round_comes_back_as_it_was(tmp_path):
    append_round(tmp_path, state(1, best=Best(0, 0.5), scores={"north": score(3)}))
    (record,) = read_rounds(tmp_path)
    assert (record.round, record.seconds, record.attempts, record.closing) == (1, 7.5, 2, False)
    assert record.sites == state(1).sites
    assert record.best == Best(0, 0.5)
    assert record.validation is not None
    assert record.validation.sites["north"].figures.accuracy == 0.75
    assert record.validation.sites["north"].confusion_CC == ((3, 1, 0), (0, 0, 0), (0, 0, 0))


def test_images_that_are_left_out_come_back_and_add_up(tmp_path):
    some = score(3).model_copy(update={"left_out_C": (5, 0, 0)})
    append_round(tmp_path, state(1, scores={"north": some, "south": score(2), "west": some}))
    (record,) = read_rounds(tmp_path)
    model = record.validation
    assert model is not None
    assert model.sites["north"].left_out_C == (5, 0, 0)
    assert model.sites["south"].left_out_C == ()
    assert model.pooled.left_out_C == (10, 0, 0)
    assert model.pooled.figures.num_images == 12


def test_a_round_is_one_line_with_the_scores_of_the_weights_it_started_from(tmp_path, random_state, study):
    state = random_state(2)
    append_round(tmp_path, state, study.sites.evaluate)
    (line,) = lines_of(tmp_path)
    assert line["round"] == 2
    assert line["seconds"] == 4.25
    assert line["sites"] == [asdict(site) for site in state.sites]
    assert line["test"] is None
    assert line["validation"]["model_after_round"] == 1
    assert list(line["validation"]["sites"]) == ["north", "south", "unseen", "west"]
    assert line["validation"]["pooled"]["accuracy"] == pooled(state.scores).accuracy
    assert line["validation"]["sites"]["west"]["confusion_CC"] == state.scores["west"].confusion_CC.tolist()


def test_figures_that_do_not_exist_are_null_and_the_file_is_strict_json(tmp_path, study):
    state = RoundState(
        round=1,
        weights={},
        layout={},
        preprocessing={},
        sites=(SiteRound("north", "refused", "loss", train_loss=math.inf),),
        scores={"north": score(1).model_copy(update={"loss_sum": math.nan})},
    )
    append_round(tmp_path, state, study.sites.evaluate)
    text = (tmp_path / "rounds.jsonl").read_text()
    assert not re.search(r"NaN|Infinity", text)
    (line,) = lines_of(tmp_path)
    assert line["validation"]["pooled"]["loss"] is None
    assert line["validation"]["pooled"]["recall_C"] == [0.25, None, None]
    assert line["sites"][0]["train_loss"] is None


def test_what_is_written_is_what_is_read(tmp_path, random_state, study):
    state = random_state(3)
    one_class = score(2)
    append_round(tmp_path, replace(state, scores=state.scores | {"west": one_class}), study.sites.evaluate)
    (record,) = read_rounds(tmp_path)
    assert record.sites == state.sites
    assert record.validation is not None
    sites = record.validation.sites
    assert sites["north"].figures == figures(state.scores["north"])
    assert repr(sites["west"].figures) == repr(figures(one_class))  # NaN equals nothing
    north = state.scores["north"]
    num_right = int(north.confusion_CC.trace())
    assert sites["north"].accuracy_interval == interval(num_right, north.num_images)


def test_a_resumed_study_leaves_the_lines_of_an_uninterrupted_one(tmp_path, random_state, study):
    straight, resumed = tmp_path / "straight", tmp_path / "resumed"
    for number in (1, 2, 3):
        append_round(straight, random_state(number), study.sites.evaluate)
    for number in (1, 2, 3, 2, 3):  # went back to the checkpoint of round 1
        append_round(resumed, random_state(number), study.sites.evaluate)
    assert (resumed / "rounds.jsonl").read_bytes() == (straight / "rounds.jsonl").read_bytes()


def test_pooled_figures_are_of_all_images_and_of_those_of_training_sites(tmp_path):
    scores = {"north": score(1), "south": score(4), "unseen": score(0, num_images=2)}
    append_round(tmp_path, state(1, scores=scores), evaluate=("unseen",))
    (record,) = read_rounds(tmp_path)
    assert record.validation is not None
    assert record.validation.pooled.figures.accuracy == pytest.approx(5 / 10)
    assert record.validation.pooled_training is not None
    assert record.validation.pooled_training.figures.accuracy == pytest.approx(5 / 8)


@pytest.mark.parametrize("evaluate", [(), ("north",)])
def test_without_a_difference_there_is_no_pool_of_training_sites(tmp_path, evaluate):
    append_round(tmp_path, state(1, scores={"north": score(1)}), evaluate)
    (record,) = read_rounds(tmp_path)
    assert record.validation is not None
    assert record.validation.pooled_training is None


def test_a_round_without_scores_has_no_pooled_figures(tmp_path):
    append_round(tmp_path, state(1))
    (record,) = read_rounds(tmp_path)
    assert (record.validation, record.test) == (None, None)


def test_a_site_without_images_on_a_side_has_no_scores_on_it(tmp_path):
    append_round(tmp_path, state(1, scores={"north": score(3), "south": empty(3)}))
    (record,) = read_rounds(tmp_path)
    assert record.validation is not None
    assert list(record.validation.sites) == ["north"]


def test_the_closing_line_has_the_test_of_the_chosen_weights(tmp_path):
    chosen = ChosenWeights(2, {})
    closing = state(
        5, closing=True, scores={"north": score(3)}, test_scores={"north": score(1)}, chosen=chosen
    )
    append_round(tmp_path, closing)
    (record,) = read_rounds(tmp_path)
    assert record.validation is not None
    assert record.test is not None
    assert (record.validation.after_round, record.test.after_round) == (4, 2)
    assert record.test.pooled.figures.accuracy == pytest.approx(1 / 4)


def test_scores_of_a_version_with_one_side_are_of_test_images(tmp_path):
    append_round(tmp_path, state(1, scores={"north": score(3)}))
    (line,) = lines_of(tmp_path)
    line["scored"] = line.pop("validation")
    line.pop("test")
    (tmp_path / FILE).write_text(json.dumps(line) + "\n")
    (record,) = read_rounds(tmp_path)
    assert record.validation is None
    assert record.test is not None
    assert record.test.pooled.figures.accuracy == 0.75
    assert curves((record,), "validation") == (record.test,)


@pytest.mark.parametrize("text", ["no json\n", "[1]\n", '{"seconds": 1}\n', '{"round": "one"}\n'])
def test_a_line_that_is_no_round_is_named_with_its_file(tmp_path, text):
    (tmp_path / FILE).write_text(text)
    with pytest.raises(StorageError, match=r"rounds\.jsonl is not one round per line"):
        read_rounds(tmp_path)
    with pytest.raises(StorageError, match="move it away"):
        append_round(tmp_path, state(1))
    assert (tmp_path / FILE).read_text() == text


def test_a_line_of_another_version_is_said_to_be_one(tmp_path):
    (tmp_path / FILE).write_text('{"round": 1, "seconds": 3.0}\n')
    with pytest.raises(StorageError, match="was written by another version"):
        read_rounds(tmp_path)
