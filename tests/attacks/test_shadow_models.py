"""The figures of a membership inference with shadow models, on numbers that can be worked by hand."""

import math

import numpy as np
import pytest

from benchmarks import _membership as attack
from benchmarks.shadow_models import Hospital, federations


def test_a_confidence_is_the_logarithm_of_the_odds_of_the_true_class() -> None:
    logits_NC = np.array([[2.0, 0.0, 0.0], [2.0, 0.0, 0.0]], np.float32)
    found_N = attack.confidences(logits_NC, np.array([0, 1]))
    # e² against 1 + 1, and 1 against e² + 1
    assert found_N == pytest.approx([2 - math.log(2), -math.log(math.exp(2) + 1)])
    assert logits_NC[0, 0] == 2  # the caller's numbers stay


def test_even_odds_are_a_loss_of_log_two() -> None:
    assert attack.log_probabilities(np.array([0.0, 800.0])) == pytest.approx([-math.log(2), 0])


def test_each_candidate_trains_half_of_the_models() -> None:
    inside_MC = attack.halves(8, 5, np.random.default_rng(0))
    assert inside_MC.sum(axis=0).tolist() == [4] * 5
    assert len({tuple(row) for row in inside_MC.T}) > 1


# By model: the attacked one, one that is left out, three with the candidates and three without. The second candidate's
# models without it differ twice as much: mean 0 and standard deviation 2.
SEEN_MC = np.array([[2.0, 2], [99, 99], [1, 1], [2, 2], [3, 3], [-1, -2], [0, 0], [1, 2]])
INSIDE_MC = np.array([[True] * 2, [False] * 2] + [[True] * 2] * 3 + [[False] * 2] * 3)


def test_the_likelihood_ratio_is_that_of_two_known_normal_distributions() -> None:
    # 2 under mean 2, deviation 1: 0. Under mean 0 and deviation 1: -2²/2 = -2. Deviation 2: -log 2 - (2/2)²/2.
    assert attack.online(SEEN_MC, INSIDE_MC)[0] == pytest.approx([2, math.log(2) + 0.5])


def test_an_attacker_without_models_of_the_candidate_counts_standard_deviations() -> None:
    assert attack.offline(SEEN_MC, INSIDE_MC)[0] == pytest.approx([2 / 1, 2 / 2])


def test_the_attacked_model_is_none_of_its_own_shadow_models() -> None:
    seen_MC, inside_MC = SEEN_MC.copy(), INSIDE_MC.copy()
    seen_MC[0], inside_MC[:2] = 50, ~INSIDE_MC[:2]  # now without the candidates, and 99 with them
    assert attack.offline(seen_MC, inside_MC)[0] == pytest.approx([50 / 1, 50 / 2])
    # 50 under mean 2, deviation 1, and under mean 0, deviation 1: neither 50 nor 99 is in a mean.
    assert attack.online(seen_MC, inside_MC)[0, 0] == pytest.approx(-(48**2) / 2 + 50**2 / 2)


def test_models_that_learned_nothing_of_a_candidate_give_an_attacker_nothing() -> None:
    random = np.random.default_rng(0)
    inside_MC = attack.halves(16, 4000, random)
    seen_MC = random.normal(size=(16, 4000))
    # 64,000 pairs: AUROC has a standard deviation of about 0.0023. With a shadow model more of one kind it is 0.48.
    assert attack.outcome(attack.online(seen_MC, inside_MC), inside_MC).auroc == pytest.approx(0.5, abs=0.008)


def test_models_that_agree_to_the_bit_divide_by_no_zero() -> None:
    assert np.isfinite(attack.online(np.ones((8, 2)), INSIDE_MC)).all()


def test_two_shadow_models_of_a_kind_are_the_fewest() -> None:
    with pytest.raises(ValueError, match="out of, 2 models"):
        attack.online(SEEN_MC[:6], INSIDE_MC[:6])


def test_hits_are_counted_above_the_lowest_threshold_that_is_allowed() -> None:
    others = np.arange(1.0, 101.0)
    # 1 % of 100 is one false alarm: above 99, where two of four members are.
    assert attack.hits(np.array([98, 99, 99.5, 101]), others, 0.01) == 0.5
    assert attack.hits(np.array([98, 99, 99.5, 101]), others, 0.02) == 0.75


def test_fewer_false_alarms_than_one_are_not_counted() -> None:
    assert attack.hits(np.array([200.0]), np.arange(100.0), 0.001) is None
    assert (
        attack.hits(np.array([998.5, 5.0]), np.arange(1000.0), 0.001) == 0.5
    )  # above 998, the second largest


def test_scores_that_say_nothing_hit_nothing() -> None:
    assert attack.hits(np.ones(10), np.ones(100), 0.05) == 0


def test_the_figures_of_an_attack_are_those_of_counting_pairs() -> None:
    found = attack.outcome(
        np.array([[3.0, 2.0], [1.0, 0.0]]), np.array([[True, False], [True, False]]), (0.5,)
    )
    # 3 > 2, 3 > 0 and 1 > 0, but not 1 > 2: three of four pairs. Above 2: half of the members and none of the others.
    assert (found.auroc, found.advantage) == (0.75, 0.5)
    assert found.hits == {0.5: 1.0}  # above 0, the second of the two others


def test_epsilon_bounds_hits_and_advantage() -> None:
    eps = math.log(3)
    assert attack.most_hits(0.1, eps, 0) == pytest.approx(3 * 0.1)
    assert attack.most_hits(0.5, eps, 0) == pytest.approx(1 - 0.5 / 3)
    assert attack.most_advantage(eps, 0) == pytest.approx((3 - 1) / (3 + 1))
    # The advantage is reached where both lines meet: at 1 / (1 + 3).
    assert attack.most_hits(0.25, eps, 0) - 0.25 == pytest.approx(0.5)
    # delta alone: one patient in a hundred may be shown.
    assert attack.most_advantage(0, 0.01) == pytest.approx(attack.most_hits(0.1, 0, 0.01) - 0.1) == 0.01


def random_hospital(seed: int) -> Hospital:
    """Ten lesions with two images each; more features than images, so that a head learns each by heart."""
    random = np.random.default_rng(seed)
    rows_NF = random.normal(size=(20, 50)).astype(np.float32)
    return Hospital(rows_NF, random.integers(0, 7, 20), np.repeat(np.arange(10), 2))


def test_a_lesion_is_known_by_the_mean_of_its_images() -> None:
    one = random_hospital(0)
    assert one.by_lesion(np.arange(20.0)[None])[0].tolist() == [0.5 + 2 * lesion for lesion in range(10)]


def test_a_head_that_learned_by_heart_gives_its_members_away_and_the_mean_of_sites_less() -> None:
    all_hospitals = {name: random_hospital(seed) for seed, name in enumerate("abc")}
    seen = federations(all_hospitals, noise=None, epochs=20, models=2)["a"]
    inside_MN = seen.inside_MC[:, all_hospitals["a"].lesions_N]
    assert inside_MN.sum(axis=0).tolist() == [1] * 20
    assert seen.own_MN[inside_MN].min() > 0  # surer than even odds of each image that it has seen
    own, mean = (
        float(view[inside_MN].mean() - view[~inside_MN].mean()) for view in (seen.own_MN, seen.mean_MN)
    )
    assert 0 < mean < own
    assert seen.right_MN[inside_MN].all()
    assert not seen.right_MN[~inside_MN].all()


def test_noise_hides_the_members_of_the_same_head() -> None:
    one = random_hospital(0)
    seen = federations({"a": one}, noise=20.0, epochs=1, models=2)["a"]
    found = attack.outcome(one.by_lesion(attack.log_probabilities(seen.own_MN)), seen.inside_MC)
    assert found.auroc < 0.9
    np.testing.assert_allclose(seen.own_MN, seen.mean_MN, atol=1e-4)  # of one hospital
