"""Batches of a round: order, sizes and class weights, by hand."""

import pytest
import torch

from client.training.batches import PassPlace, batch_size, class_weights, split, training_batches
from common.config import LocalConfig


def sizes(num_images: int, **settings: object) -> list[int]:
    batches = training_batches(torch.zeros(num_images, dtype=torch.long), LocalConfig(**settings), seed=0)
    return [len(batch) for batch in batches]


def test_a_batch_is_never_larger_than_the_site() -> None:
    assert batch_size(3, LocalConfig(batch_size=32)) == 3
    assert batch_size(100, LocalConfig(batch_size=32)) == 32
    assert batch_size(100, LocalConfig(batch_size="all")) == 100


def test_one_image_left_over_joins_the_piece_before_it() -> None:
    assert [piece.tolist() for piece in split(torch.arange(9), 4)] == [[0, 1, 2, 3], [4, 5, 6, 7, 8]]
    assert [len(piece) for piece in split(torch.arange(3), 1)] == [1, 1, 1]
    assert [len(piece) for piece in split(torch.arange(10), 4)] == [4, 4, 2]


def test_steps_end_a_round_in_the_middle_of_an_epoch() -> None:
    assert sizes(10, epochs=2, batch_size=4) == [4, 4, 2, 4, 4, 2]
    assert sizes(10, steps=4, batch_size=4) == [4, 4, 2, 4]


def rounds_of(epochs: float, num_rounds: int, num_images: int = 10, batch: int = 4) -> list[list[list[int]]]:
    """Images of each step of each round."""
    local, labels_N = LocalConfig(epochs=epochs, batch_size=batch), torch.zeros(num_images, dtype=torch.long)
    return [
        [batch_B.tolist() for batch_B in training_batches(labels_N, local, number, PassPlace(number, seed=7))]
        for number in range(1, num_rounds + 1)
    ]


def test_three_rounds_of_a_third_of_a_pass_are_one_pass() -> None:
    # ten images are batches of 4, 4 and 2: one of them a round
    rounds = rounds_of(1 / 3, 6)
    assert [[len(step) for step in steps] for steps in rounds] == [[4], [4], [2], [4], [4], [2]]
    for first in (0, 3):
        seen = sorted(image for steps in rounds[first : first + 3] for step in steps for image in step)
        assert seen == list(range(10))
    assert rounds[:3] != rounds[3:]  # another order in the next pass


def test_rounds_of_one_and_a_half_passes_take_turns_in_their_steps() -> None:
    # 3 batches a pass, 4.5 a round: 4, then 5. Nine steps are three whole passes.
    rounds = rounds_of(1.5, 2)
    assert [len(steps) for steps in rounds] == [4, 5]
    steps = [step for one in rounds for step in one]
    for number in range(3):
        assert sorted(image for step in steps[3 * number : 3 * number + 3] for image in step) == list(
            range(10)
        )


def test_a_round_takes_one_step_at_least() -> None:
    assert [[len(step) for step in steps] for steps in rounds_of(0.1, 3)] == [[4], [4], [4]]


def test_balanced_weights_give_every_class_that_is_present_the_same_sum() -> None:
    labels_N = torch.tensor([0, 0, 0, 1])
    weights_C = class_weights(labels_N, 3, LocalConfig(class_weights="site"))
    # 4 images, 2 classes present: 4/(2*3) = 2/3 and 4/(2*1) = 2; the absent class gets 0.
    assert weights_C.tolist() == pytest.approx([2 / 3, 2, 0])
    assert class_weights(labels_N, 3, LocalConfig()).tolist() == [1, 1, 1]


def test_weighted_sampling_draws_rare_classes_as_often_as_common_ones():
    # 990 images of one class and 10 of the other: a shuffled epoch has 10 of the rare one, a weighted one
    # about 500 (its standard deviation is 16).
    labels_N = torch.tensor([0] * 990 + [1] * 10)
    drawn = torch.cat(
        training_batches(labels_N, LocalConfig(epochs=1, batch_size=50, sampling="weighted"), seed=0)
    )
    assert len(drawn) == 1000
    assert 420 < int(labels_N[drawn].sum()) < 580
    shuffled = torch.cat(training_batches(labels_N, LocalConfig(epochs=1, batch_size=50), seed=0))
    assert sorted(shuffled.tolist()) == list(range(1000))


def test_weights_of_the_study_count_the_images_of_all_sites():
    labels_N = torch.tensor([0, 0, 0, 1])  # class 2 is elsewhere
    study = LocalConfig(class_weights="study")
    # 20 images of 3 classes, 5, 5 and 10: 20 / (3 * 5).
    assert class_weights(labels_N, 3, study, (5, 5, 10)).tolist() == pytest.approx([4 / 3, 4 / 3, 0])


def test_a_capped_weight_is_a_multiple_of_the_smallest():
    labels_N = torch.tensor([0] * 96 + [1] * 2 + [2] * 48)
    weights_C = class_weights(labels_N, 3, LocalConfig(class_weights="capped", class_weight_cap=10))
    # Of the site: 146 / (3 * 96), 48 times that, twice that.
    assert (weights_C / weights_C[0]).tolist() == pytest.approx([1, 10, 2])
    same = class_weights(labels_N, 3, LocalConfig(class_weights="capped", class_weight_cap=48))
    assert same.tolist() == class_weights(labels_N, 3, LocalConfig(class_weights="site")).tolist()


@pytest.mark.parametrize("other", [{"class_weights": "site"}, {"batch_size": "all"}])
def test_rare_classes_are_made_up_for_once(other):
    with pytest.raises(ValueError, match="sampling=weighted"):
        LocalConfig(sampling="weighted", **other)
