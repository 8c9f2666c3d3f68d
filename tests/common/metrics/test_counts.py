"""Counts add up, and the figures are scikit-learn's on all predictions together."""

import math
from itertools import pairwise

import numpy as np
import pytest
from pydantic import ValidationError
from sklearn import metrics as reference

from common.errors import WireError
from common.metrics import NUM_BINS, NUM_CALIBRATION_BINS, Score, count, empty, figures


def predictions(num_images: int, num_classes: int, seed: int, absent: tuple[int, ...] = ()):
    """Random probabilities and labels; classes in `absent` have no image."""
    rng = np.random.default_rng(seed)
    present = [c for c in range(num_classes) if c not in absent]
    labels_N = rng.choice(present, num_images)
    logits_NC = rng.normal(size=(num_images, num_classes))
    logits_NC[np.arange(num_images), labels_N] += 1.0
    probabilities_NC = np.exp(logits_NC)
    return probabilities_NC / probabilities_NC.sum(axis=1, keepdims=True), labels_N


def score_of(probabilities_NC, labels_N) -> Score:
    losses_N = -np.log(probabilities_NC[np.arange(len(labels_N)), labels_N])
    return count(probabilities_NC, labels_N, float(losses_N.sum()))


SITES = {
    "three unequal sites": [predictions(120, 7, 1), predictions(31, 7, 2), predictions(5, 7, 3)],
    "two classes": [predictions(60, 2, 4), predictions(25, 2, 5)],
    "a class absent from one site": [predictions(50, 4, 6, absent=(2,)), predictions(40, 4, 7)],
    "a class absent from all": [predictions(50, 4, 8, absent=(0,)), predictions(40, 4, 9, absent=(0,))],
    "one site only": [predictions(80, 5, 10)],
    "a site with one image": [predictions(80, 3, 11), predictions(1, 3, 12)],
}


@pytest.fixture(params=SITES.values(), ids=SITES.keys())
def sites(request):
    return request.param


@pytest.fixture
def pooled(sites):
    """Probabilities and labels of all sites in one heap, which no server ever has."""
    return np.concatenate([p for p, _ in sites]), np.concatenate([y for _, y in sites])


@pytest.fixture
def added(sites) -> Score:
    total = empty(sites[0][0].shape[1])
    for probabilities_NC, labels_N in sites:
        total = total + score_of(probabilities_NC, labels_N)
    return total


def test_adding_the_counts_of_sites_is_counting_their_images_together(added, pooled):
    together = score_of(*pooled)
    np.testing.assert_array_equal(added.confusion_CC, together.confusion_CC)
    np.testing.assert_array_equal(added.histogram_C2B, together.histogram_C2B)
    np.testing.assert_array_equal(added.calibration_2K, together.calibration_2K)
    np.testing.assert_allclose(added.confidence_K, together.confidence_K, rtol=1e-12)
    assert added.loss_sum == pytest.approx(together.loss_sum, rel=1e-12)


def test_accuracies_are_those_of_scikit_learn(added, pooled):
    probabilities_NC, labels_N = pooled
    predicted_N = probabilities_NC.argmax(axis=1)
    f = figures(added)
    assert f.num_images == len(labels_N)
    assert f.accuracy == pytest.approx(reference.accuracy_score(labels_N, predicted_N))
    # balanced_accuracy_score by another name: it warns of predicted classes without images.
    present = np.unique(labels_N)
    recall = reference.recall_score(labels_N, predicted_N, labels=present, average="macro")
    assert f.balanced_accuracy == pytest.approx(recall)
    assert f.loss == pytest.approx(
        reference.log_loss(labels_N, probabilities_NC, labels=range(probabilities_NC.shape[1]))
    )


@pytest.mark.parametrize("average", ["macro", "weighted"])
def test_precision_recall_and_f1_are_those_of_scikit_learn(added, pooled, average):
    probabilities_NC, labels_N = pooled
    precision, recall, f1, _ = reference.precision_recall_fscore_support(
        labels_N, probabilities_NC.argmax(axis=1), average=average, zero_division=0
    )
    f = figures(added)
    assert getattr(f, f"precision_{average}") == pytest.approx(precision)
    assert getattr(f, f"recall_{average}") == pytest.approx(recall)
    assert getattr(f, f"f1_{average}") == pytest.approx(f1)


def test_per_class_figures_are_those_of_scikit_learn(added, pooled):
    probabilities_NC, labels_N = pooled
    f = figures(added)
    precision_C, recall_C, f1_C, support_C = reference.precision_recall_fscore_support(
        labels_N,
        probabilities_NC.argmax(axis=1),
        labels=range(probabilities_NC.shape[1]),
        average=None,
        zero_division=np.nan,
    )
    np.testing.assert_allclose(f.precision_C, precision_C)
    np.testing.assert_allclose(f.recall_C, recall_C)
    np.testing.assert_allclose(f.f1_C, f1_C)
    assert f.support_C == tuple(support_C)


def test_the_confusion_matrix_is_that_of_scikit_learn(added, pooled):
    probabilities_NC, labels_N = pooled
    expected_CC = reference.confusion_matrix(
        labels_N, probabilities_NC.argmax(axis=1), labels=range(probabilities_NC.shape[1])
    )
    np.testing.assert_array_equal(added.confusion_CC, expected_CC)


def test_auroc_is_that_of_scikit_learn_within_the_bin_width(added, pooled):
    probabilities_NC, labels_N = pooled
    f = figures(added)
    exact_C = []
    for c, found in enumerate(f.auroc_C):
        positive_N = labels_N == c
        if not positive_N.any() or positive_N.all():
            assert math.isnan(found)
            continue
        exact_C.append(reference.roc_auc_score(positive_N, probabilities_NC[:, c]))
        assert found == pytest.approx(exact_C[-1], abs=1 / NUM_BINS)
        # Only pairs that share a bin can be judged differently, by half a pair each.
        negatives_B, positives_B = added.histogram_C2B[c]
        pairs_in_one_bin = int(negatives_B @ positives_B)
        bound = pairs_in_one_bin / 2 / (positive_N.sum() * (~positive_N).sum())
        assert abs(found - exact_C[-1]) <= bound + 1e-12
    assert f.auroc_macro == pytest.approx(np.mean(exact_C), abs=1 / NUM_BINS)


def test_calibration_error_is_guo_s_over_equal_bins(added, pooled):
    probabilities_NC, labels_N = pooled
    confidence_N = probabilities_NC.max(axis=1)
    right_N = probabilities_NC.argmax(axis=1) == labels_N
    expected = 0.0
    for low, high in pairwise(np.linspace(0, 1, NUM_CALIBRATION_BINS + 1)):
        inside_N = (confidence_N >= low) & (confidence_N < high)
        if inside_N.any():
            gap = abs(right_N[inside_N].mean() - confidence_N[inside_N].mean())
            expected += inside_N.mean() * gap
    assert figures(added).ece == pytest.approx(expected)


def test_both_readings_of_the_papers_avg_are_means_of_what_their_names_say(added):
    f = figures(added)
    five = [f.accuracy, f.balanced_accuracy, f.precision_weighted, f.recall_weighted, f.f1_weighted]
    assert f.avg_acc_bacc_pre_rec_f1 == pytest.approx(sum(five) / 5)
    assert f.avg_acc_bacc_pre_rec_f1_auroc == pytest.approx((sum(five) + f.auroc_macro) / 6)


def test_weighted_recall_is_accuracy(added):
    f = figures(added)
    assert f.recall_weighted == pytest.approx(f.accuracy)


def test_figures_worked_by_hand():
    # Three images of class 0, one of class 1; one of class 0 is taken for class 1.
    probabilities_NC = np.array([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.4, 0.6]])
    f = figures(count(probabilities_NC, np.array([0, 0, 0, 1]), loss_sum=2.0))
    assert f.loss == 0.5  # 2.0 / 4
    assert f.accuracy == 0.75  # 3 / 4
    assert f.balanced_accuracy == pytest.approx((2 / 3 + 1) / 2)
    assert f.precision_C == (1.0, 0.5)  # 2 of 2 called 0, 1 of 2 called 1
    assert f.f1_C == pytest.approx((0.8, 2 / 3))  # 2*2/(3+2), 2*1/(1+2)
    assert f.f1_weighted == pytest.approx((3 * 0.8 + 1 * 2 / 3) / 4)
    # Class 1's probability: 0.6 for its image; 0.1, 0.2, 0.7 for the others: 2 of 3 pairs in order.
    assert f.auroc_C == pytest.approx((2 / 3, 2 / 3))
    # Each image lies in a bin of its own: (|1-.9| + |1-.8| + |0-.7| + |1-.6|) / 4
    assert f.ece == pytest.approx((0.1 + 0.2 + 0.7 + 0.4) / 4)


def test_a_probability_of_one_falls_into_the_last_bin():
    score = count(np.array([[1.0, 0.0]]), np.array([0]), 0.0)
    assert score.histogram_C2B[0, 1, -1] == 1
    assert score.histogram_C2B[1, 0, 0] == 1
    assert score.calibration_2K[0, -1] == 1


def test_the_empty_score_is_the_zero_of_addition():
    score = score_of(*predictions(20, 3, 13))
    assert empty(3) + score == score
    assert score + empty(3) == score
    assert empty(3) + empty(3) == empty(3)


def test_addition_of_two_sites_is_commutative():
    left, right = score_of(*predictions(20, 3, 14)), score_of(*predictions(30, 3, 15))
    assert left + right == right + left


def test_addition_leaves_its_arguments_alone():
    left, right = score_of(*predictions(20, 3, 16)), score_of(*predictions(30, 3, 17))
    before = left.model_dump(), right.model_dump()
    _ = left + right
    np.testing.assert_equal((left.model_dump(), right.model_dump()), before)


def test_no_images_give_no_figures_rather_than_zeros():
    f = figures(empty(3))
    assert f.num_images == 0
    assert all(math.isnan(x) for x in (f.loss, f.accuracy, f.balanced_accuracy, f.f1_macro, f.ece))
    assert all(math.isnan(x) for x in (f.f1_weighted, f.auroc_macro, f.avg_acc_bacc_pre_rec_f1))
    assert f.support_C == (0, 0, 0)


def test_no_predictions_count_as_the_empty_score():
    assert count(np.zeros((0, 3)), np.zeros(0, np.int64), 0.0) == empty(3)


def test_scores_over_other_classes_are_not_added():
    with pytest.raises(WireError, match="over 3 and 4 classes"):
        _ = empty(3) + empty(4)


def test_a_score_survives_json():
    score = score_of(*predictions(20, 3, 18))
    assert Score.model_validate_json(score.model_dump_json()) == score


def test_counts_whose_sum_wraps_around_are_refused():
    # Four times 2**62 is 0 in int64, so these counts would pass for no images at all.
    fields = empty(2).model_dump(mode="json")
    fields["confusion_CC"] = [[2**62, 2**62], [2**62, 2**62]]
    with pytest.raises(ValidationError, match="whole numbers from 0 to"):
        Score.model_validate(fields)


def tampered(change) -> dict:
    fields = score_of(*predictions(20, 3, 19)).model_dump(mode="json")
    change(fields)
    return fields


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda f: f["confusion_CC"][0].__setitem__(0, f["confusion_CC"][0][0] + 1), id="image"),
        pytest.param(lambda f: f["confusion_CC"][0].__setitem__(0, -1), id="negative"),
        pytest.param(lambda f: f["confusion_CC"][0].__setitem__(0, 0.5), id="fraction"),
        pytest.param(lambda f: f["confusion_CC"][0].__setitem__(0, 2**64 - 1), id="wraps to -1"),
        pytest.param(lambda f: f["confusion_CC"].pop(), id="shape"),
        pytest.param(lambda f: f["histogram_C2B"][0][1].pop(), id="ragged"),
        pytest.param(lambda f: f["histogram_C2B"][0][1].__setitem__(0, 9), id="histogram"),
        pytest.param(lambda f: f["calibration_2K"][0].__setitem__(0, 9), id="calibration"),
        pytest.param(lambda f: f["confidence_K"].pop(), id="bins"),
        pytest.param(lambda f: f.__setitem__("names", ["a.jpg"]), id="extra field"),
        pytest.param(lambda f: f.pop("loss_sum"), id="missing field"),
    ],
)
def test_counts_that_contradict_each_other_are_refused(change):
    with pytest.raises(ValidationError):
        Score.model_validate(tampered(change))


def test_probabilities_count_as_the_middle_of_their_bin_and_the_class_stays_exact():
    """Four bins: 0.9 counts as 0.875, 0.1 as 0.125, 0.45 as 0.375, 0.55 as 0.625."""
    score = count(np.array([[0.9, 0.1], [0.45, 0.55]]), np.array([0, 0]), 1.0, num_bins=4)
    assert score.confusion_CC.tolist() == [[1, 1], [0, 0]]
    assert sum(score.confidence_K) == pytest.approx(0.875 + 0.625)
    assert score.loss_sum == pytest.approx(-math.log(0.875) - math.log(0.375))
    assert np.flatnonzero(score.histogram_C2B[0, 1]).tolist() == [187, 437]  # 0.375 and 0.875 of 500 bins
    assert score.num_bins == 4


def test_a_sum_of_scores_is_as_coarse_as_the_coarsest():
    fine, coarse = (
        count(*SITES["three unequal sites"][0], 1.0),
        count(*SITES["three unequal sites"][0], 1.0, 20),
    )
    assert (fine + coarse).num_bins == 20
    assert (fine + fine).num_bins == NUM_BINS
