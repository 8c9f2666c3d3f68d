"""Intervals over patients: by hand, against drawing patients again, and how often they hold the truth."""

import math

import numpy as np
import pytest
from scipy.stats import t as student
from sklearn.metrics import balanced_accuracy_score, f1_score, roc_auc_score

from common.metrics import Score, count, figures, intervals
from common.metrics.auroc import deviation, placements
from common.metrics.intervals import Estimate, Resampled, estimate
from common.metrics.ratios import RATIOS, gradient, ratios
from common.metrics.replicates import NUM_REPLICATES, Replicates, replicates

TEST_SET = "0" * 16


def scored(right_by_patient: list[list[int]]) -> tuple[Score, np.ndarray]:
    """One class of two, images of a patient right (1) or wrong (0): the score, and the patients' numbers."""
    answers = [answer for patient in right_by_patient for answer in patient]
    probabilities = np.array([[0.9, 0.1] if answer else [0.1, 0.9] for answer in answers])
    numbers = [
        [sum(patient), 0, len(patient), 0, sum(patient), len(patient) - sum(patient), 0]
        for patient in right_by_patient
    ]
    return count(probabilities, np.zeros(len(answers), int), 0.0), np.array(numbers, float)


def orthogonal(num_patients: int) -> np.ndarray:
    """Multipliers (G, R) whose products average to exactly the identity: no noise of the draws."""
    draws = np.random.default_rng(0).standard_normal((NUM_REPLICATES, num_patients))
    return np.linalg.qr(draws)[0].T * math.sqrt(NUM_REPLICATES)


def test_the_deviation_of_an_accuracy_over_patients_by_hand():
    score, numbers = scored([[1, 1], [1, 0], [0], [1]])
    found = intervals.of_scores(
        {"north": score}, {"north": replicates(numbers, orthogonal(4), TEST_SET)}, seed=0
    )
    # 4 of 6 right, p = 2/3. A patient's part is (right - p * images) / 6: 2/3, -1/3, -2/3 and 1/3, each over 6.
    # Squares sum to (4 + 1 + 4 + 1) / 9 / 36; times 4/3 for four patients: 0.0411523
    assert found["accuracy"].value == pytest.approx(4 / 6)
    assert found["accuracy"].variance == pytest.approx(10 / 9 / 36 * 4 / 3, rel=1e-3)
    assert found["accuracy"].num_free == 3


def test_the_gradient_of_an_accuracy_by_hand():
    # d(right / images): 1/8 by each right answer, -6/64 by each image, nothing by predictions
    counts = np.array([4, 2, 5, 3, 5, 3], float)
    assert gradient("accuracy", counts) == pytest.approx([1 / 8, 1 / 8, -6 / 64, -6 / 64, 0, 0])


@pytest.mark.parametrize("seed", range(5))
def test_ratios_are_the_figures_of_a_report(seed):
    draws = np.random.default_rng(seed)
    labels, probabilities = (
        draws.integers(0, 3, 40),
        draws.dirichlet(np.ones(5), 40),
    )  # two classes without images
    score = count(probabilities, labels, 0.0)
    confusion = score.confusion_CC.astype(float)
    found = ratios(np.diag(confusion), confusion.sum(axis=1), confusion.sum(axis=0))
    assert set(found) == set(RATIOS)
    for name, value in found.items():
        assert value == pytest.approx(getattr(figures(score), name), abs=1e-12), name


def site(num_patients: int, seed: int, strength: float = 0.8) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Probabilities, labels and patients: one to three images of each, alike in label and in how easy they are."""
    draws = np.random.default_rng(seed)
    patients = np.repeat(np.arange(num_patients), draws.integers(1, 4, num_patients))
    labels = draws.integers(0, 3, num_patients)[patients]
    easy = strength + draws.standard_normal(num_patients)[patients]
    logits = draws.standard_normal((len(patients), 3)) + np.eye(3)[labels] * easy[:, None]
    odds = np.exp(logits)
    return odds / odds.sum(axis=1, keepdims=True), labels, patients


def numbers_of(probabilities, labels, patients) -> np.ndarray:
    """The patients' numbers, written out: counts by class, and N times the part in the AUROC."""
    score, predicted = count(probabilities, labels, 0.0), probabilities.argmax(axis=1)
    one = np.eye(3)
    parts = np.column_stack([one[labels] * (predicted == labels)[:, None], one[labels], one[predicted]])
    bins = np.minimum((probabilities * 500).astype(int), 499)
    auroc = np.zeros(len(labels))
    for label in range(3):
        of_others, of_class, middle = placements(score.histogram_C2B[label])
        mine = labels == label
        auroc += np.where(
            mine,
            (of_class[bins[:, label]] - middle) / mine.sum(),
            (of_others[bins[:, label]] - middle) / (~mine).sum(),
        )
    parts = np.column_stack([parts, len(labels) * auroc / 3])
    sums = np.zeros((patients.max() + 1, parts.shape[1]))
    np.add.at(sums, patients, parts)
    return sums


def sent(probabilities, labels, patients, seed: int) -> Replicates:
    values = numbers_of(probabilities, labels, patients)
    draws = np.random.default_rng(seed).standard_normal((len(values), NUM_REPLICATES))
    return replicates(values, draws, TEST_SET)


def test_pooled_deviations_agree_with_drawing_patients_again_and_scikit_learn():
    sites = {"north": site(140, 0), "south": site(70, 1, strength=1.4)}
    found = intervals.of_scores(
        {name: count(p, y, 0.0) for name, (p, y, _) in sites.items()},
        {name: sent(*data, seed=place) for place, (name, data) in enumerate(sites.items())},
        seed=0,
    )
    draws, drawn = np.random.default_rng(5), []
    for _ in range(300):
        probabilities, labels = [], []
        for p, y, patients in sites.values():
            again = np.repeat(
                np.arange(len(y)),
                np.bincount(
                    draws.integers(0, patients.max() + 1, patients.max() + 1), minlength=patients.max() + 1
                )[patients],
            )
            probabilities.append(p[again])
            labels.append(y[again])
        p, y = np.concatenate(probabilities), np.concatenate(labels)
        drawn.append(figures(count(p, y, 0.0)))
    # each replicate's figures are scikit-learn's
    last, predicted = drawn[-1], p.argmax(axis=1)
    assert last.balanced_accuracy == pytest.approx(balanced_accuracy_score(y, predicted))
    assert last.f1_macro == pytest.approx(f1_score(y, predicted, average="macro"))
    assert last.f1_weighted == pytest.approx(f1_score(y, predicted, average="weighted"))
    assert last.auroc_macro == pytest.approx(roc_auc_score(y, p, multi_class="ovr"), abs=2e-3)
    for name in intervals.FIGURES:
        again = float(np.std([getattr(one, name) for one in drawn]))
        # 1 / sqrt(2 * 300) = 4 % of noise in one, 3.5 % in the other
        assert math.sqrt(found[name].variance) == pytest.approx(again, rel=0.16), name


@pytest.mark.slow
def test_intervals_hold_the_truth_as_often_as_they_say():
    # 80 patients of one to three images; a patient's images are all right or all wrong in two of three cases.
    # Class 0 is right with chance 0.8, class 1 with 0.6: the truth is a balanced accuracy of 0.7.
    draws, held, wilson = np.random.default_rng(11), 0, 0
    for _ in range(200):
        patients = np.repeat(np.arange(80), draws.integers(1, 4, 80))
        labels = (np.arange(80) % 2)[patients]
        chance = np.array([0.8, 0.6])[labels]
        own, together = draws.random(len(patients)), draws.random(80)[patients]
        right = np.where((draws.random(80) < 2 / 3)[patients], together, own) < chance
        predicted = np.where(right, labels, 1 - labels)
        one = np.eye(2)
        numbers = np.zeros((80, 7))
        np.add.at(
            numbers,
            patients,
            np.column_stack([one[labels] * right[:, None], one[labels], one[predicted], right * 0]),
        )
        score = count(one[predicted] * 0.8 + 0.1, labels, 0.0)
        sums = replicates(numbers, draws.standard_normal((80, NUM_REPLICATES)), TEST_SET)
        low, high = estimate(
            {0: intervals.of_scores({"a": score}, {"a": sums}, seed=0)["balanced_accuracy"]}
        ).interval()
        held += low <= 0.7 <= high
        each = score.confusion_CC.diagonal() / score.confusion_CC.sum(axis=1)
        half = 1.96 / 2 * math.sqrt(sum(each * (1 - each) / score.confusion_CC.sum(axis=1)))
        wilson += abs(each.mean() - 0.7) <= half
    # Monte Carlo error of a share of 0.95 in 200: 1.54 %
    assert 0.95 - 3 * 0.0154 <= held / 200 <= 0.95 + 3 * 0.0154
    assert wilson / 200 < 0.90  # images as independent: far too narrow


def test_the_auroc_of_one_site_varies_as_its_patients_say():
    data = site(90, 3)
    score, sums = count(data[0], data[1], 0.0), sent(*data, seed=0)
    found = intervals.of_scores({"a": score}, {"a": sums}, seed=0)["auroc_macro"]
    assert found.variance == pytest.approx(float(np.mean(sums.sums_RV[:, -1] ** 2)) / score.num_images**2)
    assert deviation(score) > 0


def test_a_site_without_sums_counts_its_images_as_patients():
    score, numbers = scored([[1], [1], [0], [1], [0]] * 4)
    both = {"north": score, "south": score}
    sums = {"north": replicates(numbers, orthogonal(20), TEST_SET)}
    found = intervals.of_scores(both, sums, seed=1)
    # 40 images, 3 in 5 right: variance 0.6 * 0.4 / 40, half of it drawn by the server
    assert found["accuracy"].variance == pytest.approx(0.6 * 0.4 / 40, rel=0.15)
    assert found["accuracy"].num_free == 38
    assert intervals.of_scores(both, {}, seed=1) == {}
    assert "auroc_macro" not in found  # one class has no images


def flat(value: float, size: float, free: int = 100) -> Resampled:
    """A figure whose deviations are `size` and -`size` in turn."""
    return Resampled(value, np.tile([size, -size], NUM_REPLICATES // 2), free)


def test_seeds_and_patients_join_by_hand():
    found = estimate({0: flat(0.6, 0.03), 1: flat(0.8, 0.03)})
    # the same patients in both: their variance stays 0.0009. Seeds: variance 0.02, of a mean of two 0.01
    assert found.value == pytest.approx(0.7)
    assert (found.variance_patients, found.variance_seeds) == pytest.approx((0.0009, 0.01))
    # Satterthwaite: 0.0109² / (0.0009² / 100 + 0.01² / 1) = 1.188
    assert found.num_free == pytest.approx(1.188, abs=1e-3)


def test_a_difference_of_runs_on_the_same_patients_is_narrower_than_of_independent_ones():
    first, second = {0: flat(0.70, 0.03)}, {0: flat(0.65, 0.02)}
    paired = intervals.difference(first, second, paired=True)
    # the deviations of both go the same way: 0.03 - 0.02
    assert (paired.value, paired.deviation) == pytest.approx((0.05, 0.01))
    apart = intervals.difference(first, second, paired=False)
    assert apart.deviation == pytest.approx(math.sqrt(0.03**2 + 0.02**2))
    assert paired.p == pytest.approx(2 * student.sf(5, 100), rel=1e-6)
    low, high = paired.interval()
    assert (low, high) == pytest.approx((0.05 - 1.984 * 0.01, 0.05 + 1.984 * 0.01), abs=1e-4)


def test_the_difference_of_a_run_and_itself_has_no_interval():
    same = {0: flat(0.7, 0.03)}
    found = intervals.difference(same, same, paired=True)
    assert found.value == 0
    assert math.isnan(found.p)
    assert all(map(math.isnan, found.interval()))


def test_seeds_that_both_runs_have_are_compared_one_by_one():
    first = {0: flat(0.6, 0.03), 1: flat(0.8, 0.03)}
    second = {0: flat(0.5, 0.03), 1: flat(0.7, 0.03)}
    found = intervals.difference(first, second, paired=True)
    assert found.value == pytest.approx(0.1)
    assert found.variance_seeds == pytest.approx(0.0, abs=1e-12)  # 0.1 with either seed
    other = intervals.difference(first, {5: flat(0.5, 0.03), 6: flat(0.7, 0.03)}, paired=True)
    assert other.variance_seeds == pytest.approx(0.02)  # 0.01 of either


@pytest.mark.parametrize("value", [0.0, 1.0, math.nan])
def test_a_share_at_its_end_has_no_interval(value):
    assert all(map(math.isnan, estimate({0: flat(value, 0.0)}).interval()))
    assert all(map(math.isnan, Estimate(value, 0.1, 0, 9, 1, is_difference=False).interval()))


def test_an_interval_of_a_share_stays_within_0_and_1():
    low, high = estimate({0: flat(0.98, 0.02)}).interval()
    assert 0 < low < 0.98 < high < 1


@pytest.mark.parametrize("free", [1, 2, 5, 30, 400, 999])
def test_students_t_is_scipys(free):
    assert intervals.student_t(0.975, free) == pytest.approx(student.ppf(0.975, free), rel=1e-6)
    assert intervals.two_sided_p(2.5, free) == pytest.approx(2 * student.sf(2.5, free), rel=1e-6)


def test_students_t_of_many_degrees_of_freedom_is_normal():
    assert intervals.student_t(0.975, math.inf) == pytest.approx(1.959964, abs=1e-6)
    assert intervals.two_sided_p(-1.959964, 5000) == pytest.approx(0.05, abs=1e-6)
