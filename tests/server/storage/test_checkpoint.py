"""A state survives the disk bit for bit; anything else on the disk is refused by name."""

import errno
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from common.config import FedAdam, SelectionConfig, StudyConfig
from common.errors import ConfigError, StorageError
from common.weights import digest, load_file, save_file
from server.aggregation import server_optimizer
from server.state import Absence, Best, OptimizerState, RefusalStreak, RoundState, SiteRound
from server.storage import checkpoint


def assert_same(found: RoundState, expected: RoundState) -> None:
    assert digest(found.weights) == digest(expected.weights)
    assert found.optimizer.step == expected.optimizer.step
    assert found.optimizer.slots.keys() == expected.optimizer.slots.keys()
    for slot, arrays in expected.optimizer.slots.items():
        assert digest(found.optimizer.slots[slot]) == digest(arrays)
    plain = {"weights": {}, "optimizer": OptimizerState()}
    assert replace(found, **plain) == replace(expected, **plain)


def keeping(study: StudyConfig, number: int) -> StudyConfig:
    return study.model_copy(update={"keep_checkpoints": number})


def rounds_on_disk(run_dir) -> list[str]:
    return sorted(path.name for path in (run_dir / "checkpoints").iterdir())


def test_a_state_comes_back_as_it_was(tmp_path, random_state, study):
    state = random_state(3)
    path = checkpoint.save(tmp_path, state, study)
    assert path == tmp_path / "checkpoints" / "round-0003.safetensors"
    assert_same(checkpoint.load(path, study), state)


def test_who_is_away_and_what_was_best_is_not_forgotten(tmp_path, random_state, study):
    state = replace(
        random_state(3),
        absences={"south": Absence(2, "2026-11-24T10:00:00+00:00")},
        best=Best(1, 0.75, num_worse_since=1),
        answer_times=(3.5, 4.0),
        attempts=2,
    )
    assert_same(checkpoint.load(checkpoint.save(tmp_path, state, study), study), state)


def test_the_best_checkpoint_is_kept_when_the_last_ones_have_gone_on(tmp_path, random_state, study):
    study = keeping(study, 1).model_copy(update={"selection": SelectionConfig()})
    first = random_state(1)
    checkpoint.save(tmp_path, first, study)
    for number in (2, 3, 4):
        # Each round finds that the model after round 1 is the best.
        state = replace(random_state(number), best=Best(1, 0.9, num_worse_since=number - 2))
        checkpoint.keep_best(tmp_path, state)
        checkpoint.save(tmp_path, state, study)
    assert rounds_on_disk(tmp_path) == [
        "best.safetensors",
        "round-0003.safetensors",
        "round-0004.safetensors",
    ]
    best = checkpoint.best(tmp_path)
    assert best is not None
    assert_same(checkpoint.load(best, study), first)
    latest = checkpoint.latest(tmp_path)
    assert latest is not None
    assert latest.name == "round-0004.safetensors"


def test_first_weights_that_stay_the_best_have_no_checkpoint_to_keep(tmp_path, random_state):
    checkpoint.keep_best(tmp_path, replace(random_state(1), best=Best(0, 0.9)))
    assert checkpoint.best(tmp_path) is None


def test_who_was_refused_how_often_is_not_forgotten(tmp_path, random_state, study):
    state = replace(random_state(2), refusals={"north": RefusalStreak(2, 1, "its norm is 9")})
    assert checkpoint.load(checkpoint.save(tmp_path, state, study), study).refusals == state.refusals


def test_the_first_weights_come_back_as_they_were(tmp_path, study, layout, random_arrays):
    state = RoundState(round=0, weights=random_arrays(1), layout=layout, preprocessing={})
    assert_same(checkpoint.load(checkpoint.save(tmp_path, state, study), study), state)


def test_a_diverged_study_is_kept_too(tmp_path, random_state, study):
    rows = (SiteRound("north", "refused", "its training loss is nan", train_loss=float("inf")),)
    scores = {"north": random_state(1).scores["north"].model_copy(update={"loss_sum": float("nan")})}
    state = replace(random_state(1), sites=rows, scores=scores)
    found = checkpoint.load(checkpoint.save(tmp_path, state, study), study)
    assert found.sites == rows
    assert np.isnan(found.scores["north"].loss_sum)


def test_a_scalar_tensor_keeps_its_shape(tmp_path, random_state, study):
    state = replace(random_state(1), weights={"logit_scale": np.array(2.5, np.float32)})
    found = checkpoint.load(checkpoint.save(tmp_path, state, study), study)
    assert found.weights["logit_scale"].shape == ()


def test_a_step_from_a_checkpoint_is_the_step_without_it(tmp_path, study, layout, random_arrays):
    algorithm = FedAdam()
    weights, state = random_arrays(0), OptimizerState()
    for number in (1, 2):
        weights, state = server_optimizer.step(algorithm, weights, random_arrays(number), layout, state)
    path = checkpoint.save(tmp_path, RoundState(2, weights, layout, {}, state), study)
    resumed = checkpoint.load(path, study)

    straight, _ = server_optimizer.step(algorithm, weights, random_arrays(3), layout, state)
    again, _ = server_optimizer.step(
        algorithm, resumed.weights, random_arrays(3), resumed.layout, resumed.optimizer
    )
    assert digest(again) == digest(straight)


def test_the_last_three_are_kept(tmp_path, random_state, study):
    for number in range(1, 6):
        checkpoint.save(tmp_path, random_state(number), study)
    assert rounds_on_disk(tmp_path) == [f"round-000{n}.safetensors" for n in (3, 4, 5)]


def test_how_many_are_kept_can_be_chosen(tmp_path, random_state, study):
    for number in range(1, 4):
        checkpoint.save(tmp_path, random_state(number), keeping(study, 1))
    assert rounds_on_disk(tmp_path) == ["round-0003.safetensors"]


def test_the_one_just_written_is_kept_even_after_going_back(tmp_path, random_state, study):
    study = keeping(study, 1)
    for number in (1, 2, 3):
        checkpoint.save(tmp_path, random_state(number), study)
    path = checkpoint.save(tmp_path, random_state(1, seed=9), study)
    assert_same(checkpoint.load(path, study), random_state(1, seed=9))


def test_the_latest_is_that_of_the_highest_round(tmp_path, random_state, study):
    assert checkpoint.latest(tmp_path) is None
    # 10000 comes before 9999 in the order of names.
    for number in (9999, 10_000):
        checkpoint.save(tmp_path, replace(random_state(1), round=number), study)
    (tmp_path / "checkpoints" / ".round-10001.safetensors.1.partial").touch()
    (tmp_path / "checkpoints" / "round-final.safetensors").touch()
    assert checkpoint.latest(tmp_path).name == "round-10000.safetensors"


def test_a_full_disk_names_itself_and_leaves_earlier_rounds(tmp_path, random_state, study, monkeypatch):
    study = keeping(study, 1)
    checkpoint.save(tmp_path, random_state(1), study)

    def full(_descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"round-0002.safetensors could not be written .*No space left"):
        checkpoint.save(tmp_path, random_state(2), study)
    monkeypatch.undo()
    assert rounds_on_disk(tmp_path) == ["round-0001.safetensors"]
    assert_same(checkpoint.load(checkpoint.latest(tmp_path), study), random_state(1))


@pytest.mark.parametrize("share", [0.0, 0.2, 0.9])
def test_a_file_cut_short_is_refused(tmp_path, random_state, study, share):
    path = checkpoint.save(tmp_path, random_state(1), study)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(
        StorageError, match=r"not a whole safetensors file\. Remove it to go on from the round before"
    ):
        checkpoint.load(path, study)


def test_a_changed_bit_in_a_tensor_is_noticed(tmp_path, random_state, study):
    path = checkpoint.save(tmp_path, random_state(1), study)
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(StorageError, match=r"altered .*Remove it to go on from the round before"):
        checkpoint.load(path, study)


def test_a_changed_field_is_noticed(tmp_path, random_state, study):
    path = checkpoint.save(tmp_path, random_state(1), study)
    arrays, metadata = load_file(path)
    fields = metadata["consilium"].replace('"round": 1', '"round": 2', 1)
    save_file(path, arrays, metadata | {"consilium": fields})
    with pytest.raises(StorageError, match="checksum does not match"):
        checkpoint.load(path, study)


def test_plain_weights_are_not_taken_for_a_checkpoint(tmp_path, random_state, study):
    path = checkpoint.save_weights(tmp_path / "weights.safetensors", random_state(1), study)
    with pytest.raises(StorageError, match="is not a checkpoint"):
        checkpoint.load(path, study)


def test_another_format_is_refused(tmp_path, random_state, study, monkeypatch):
    monkeypatch.setattr(checkpoint, "_describe", _newer(checkpoint._describe))
    path = checkpoint.save(tmp_path, random_state(1), study)
    with pytest.raises(StorageError, match=r"another version .*resume with the version that wrote it"):
        checkpoint.load(path, study)


def _newer(describe):
    return lambda *arguments: describe(*arguments).model_copy(update={"format": 1})


def test_another_study_is_refused_and_the_settings_are_named(tmp_path, random_state, study):
    path = checkpoint.save(tmp_path, random_state(1), study)
    other = study.model_copy(update={"rounds": 9, "local": study.local.model_copy(update={"batch_size": 8})})
    with pytest.raises(ConfigError) as caught:
        checkpoint.load(path, other)
    assert "rounds is 3 there, 9 here; local.batch_size is 32 there, 8 here" in str(caught.value)


def test_plain_weights_carry_what_is_needed_to_use_them(tmp_path, random_state, study):
    state = random_state(3)
    path = checkpoint.save_weights(tmp_path / "weights.safetensors", state, study)
    arrays, metadata = load_file(path)
    assert digest(arrays) == digest(state.weights) == metadata["sha256"]
    assert metadata["encoder"] == "convnext_t"
    assert json.loads(metadata["classes"]) == list(study.classes)
    assert json.loads(metadata["preprocessing"]) == state.preprocessing
    assert metadata["study"] == "demo"
    assert metadata["round"] == "3"
