"""Figures of all sites together, intervals, and tables that can be read."""

import math
import re
from statistics import NormalDist

import numpy as np
import pytest

from common.errors import QuorumNotMet
from common.metrics import count, empty, figures
from common.metrics.pooling import interval, per_site, pooled, total
from server.report.terminal import round_table, table
from server.state import RoundState, SiteRound


@pytest.fixture
def scores(random_score):
    return {
        "west": random_score(1, 40),
        "north": random_score(2, 7),
        "unseen": random_score(3, 25),
        "south": empty(3),
    }


def test_pooled_figures_are_those_of_all_images_not_the_mean_of_the_sites():
    # north: 1 of 1 right; south: 1 of 3 right; together 2 of 4, while the mean of rates is 2/3.
    north = count(np.array([[0.9, 0.1]]), np.array([0]), 0.2)
    south = count(np.array([[0.9, 0.1], [0.6, 0.4], [0.7, 0.3]]), np.array([0, 1, 1]), 0.6)
    f = pooled({"north": north, "south": south})
    assert f.accuracy == 0.5
    assert f.balanced_accuracy == 0.5  # class 0: 2 of 2, class 1: 0 of 2
    assert f.loss == pytest.approx(0.2)  # (0.2 + 0.6) / 4


def test_the_order_in_which_sites_answer_changes_no_bit(scores):
    turned = dict(reversed(scores.items()))
    assert total(turned).loss_sum == total(scores).loss_sum
    assert total(turned).confidence_K == total(scores).confidence_K
    assert repr(pooled(turned)) == repr(pooled(scores))


def test_one_site_is_its_own_pool(random_score):
    score = random_score(4)
    assert pooled({"north": score}) == figures(score)


def test_sites_come_in_the_order_of_their_names(scores):
    assert list(per_site(scores)) == ["north", "south", "unseen", "west"]
    assert per_site(scores)["west"] == figures(scores["west"])


def test_no_score_at_all_is_an_error_not_a_zero():
    with pytest.raises(QuorumNotMet, match="no score of any site"):
        pooled({})


def test_an_interval_worked_by_hand():
    # z = 1.959964; 8 of 10: middle (0.8 + z²/20) / (1 + z²/10) = 0.99207 / 1.38415 = 0.71674
    # half: z / 1.38415 * sqrt(0.016 + z²/400) = 1.41601 * 0.16003 = 0.22661
    low, high = interval(8, 10)
    assert low == pytest.approx(0.4902, abs=1e-4)
    assert high == pytest.approx(0.9433, abs=1e-4)


@pytest.mark.parametrize(("right", "images"), [(1, 7), (30, 90), (250, 251), (5, 10)])
def test_the_ends_of_an_interval_are_where_the_score_test_just_rejects(right, images):
    # Wilson's interval holds the p with |share - p| <= z * sqrt(p (1 - p) / n).
    z = NormalDist().inv_cdf(0.975)
    for p in interval(right, images):
        assert abs(right / images - p) == pytest.approx(z * math.sqrt(p * (1 - p) / images))


def test_intervals_stay_within_0_and_1_and_contain_the_share():
    for images in (1, 2, 10, 1000):
        for right in {0, 1, images // 2, images}:
            low, high = interval(right, images)
            assert 0 <= low <= right / images <= high <= 1


def test_more_images_or_less_confidence_narrow_an_interval():
    def width(*arguments):
        low, high = interval(*arguments)
        return high - low

    assert width(80, 100) > width(800, 1000)
    assert width(80, 100, 0.99) > width(80, 100, 0.95) > width(80, 100, 0.5)


def test_without_images_there_is_no_interval():
    assert all(math.isnan(end) for end in interval(0, 0))


def test_the_table_has_a_row_per_site_and_a_pooled_one(scores):
    lines = table(scores).splitlines()
    assert re.split(r"  +", lines[0])[-4:] == ["F1 weighted", "AUROC", "ECE", "AVG of 5"]
    assert [line.split()[0] for line in lines if not line.startswith("-")] == [
        "site",
        "north",
        "south",
        "unseen",
        "west",
        "pooled",
    ]
    f = pooled(scores)
    row = lines[-1].split()
    assert row[1] == str(f.num_images) == "72"  # 40 + 7 + 25 + 0
    assert row[2:5] == [f"{f.loss:.3f}", f"{f.accuracy:.3f}", f"{f.balanced_accuracy:.3f}"]
    assert row[5:] == [f"{x:.3f}" for x in (f.f1_weighted, f.auroc_macro, f.ece, f.avg_acc_bacc_pre_rec_f1)]


def test_figures_stand_below_their_titles(scores):
    lines = table(scores).splitlines()
    end = lines[0].index("accuracy") + len("accuracy")
    assert all(line[end - 1] != " " and line[end : end + 1] in (" ", "-") for line in lines)


def test_what_the_counts_cannot_say_is_a_dash(scores):
    south = next(line for line in table(scores).splitlines() if line.startswith("south"))
    assert south.split() == ["south", "0"] + ["-"] * 7


def test_a_site_that_only_scores_is_marked_and_kept_out_of_a_second_pool(scores):
    *_, everything, without = table(scores, evaluate=("unseen",)).splitlines()
    assert "unseen *" in table(scores, evaluate=("unseen",))
    assert everything.split()[:2] == ["pooled", "72"]
    assert without.split()[:4] == ["pooled", "without", "*", "47"]


def test_a_round_is_told_site_by_site(random_state, study):
    told = round_table(study, random_state(2))
    title, head, _, *rows = told.splitlines()
    assert (
        title == "round 2 of 3 of demo took 4.2 s; scores are of the model after round 1"
    )  # 4.25 rounds to even
    assert "train loss" in head
    assert "MiB down" in head
    north = next(row for row in rows if row.startswith("north"))
    assert north.split()[:4] == ["north", "ok", "10", "0.750"]  # 1.5 / 2
    assert north.split()[-3:] == ["3.5", "0.5", "0.5"]
    unseen = next(row for row in rows if row.startswith("unseen"))
    assert unseen.split()[:5] == ["unseen", "*", "ok", "-", "-"]


def test_sites_that_did_not_answer_are_in_the_table_of_the_round(study, random_score):
    state = RoundState(
        round=1,
        weights={},
        layout={},
        preprocessing={},
        sites=(SiteRound("north", "ok"), SiteRound("south", "missing", "no answer within 9 s")),
        scores={"north": random_score(1)},
    )
    south = next(row for row in round_table(study, state).splitlines() if row.startswith("south"))
    assert south.split()[:3] == ["south", "missing", "-"]


def test_the_closing_round_is_told_by_its_scores(random_state, study):
    told = round_table(study, random_state(4))
    assert told.startswith("closing evaluation of demo")
    assert "after round 3" in told
    assert table(random_state(4).scores, study.sites.evaluate) in told


def test_a_round_that_nobody_scored_can_still_be_told(study):
    state = RoundState(
        round=1, weights={}, layout={}, preprocessing={}, sites=(SiteRound("north", "failed"),)
    )
    assert "nobody scored" in round_table(study, state)


@pytest.mark.parametrize("number", [1, 4])
def test_synthetic_images_are_called_so_in_every_table(number, random_state, study):
    assert "SYNTHETIC" in round_table(study, random_state(number), synthetic=True)
    assert "SYNTHETIC" not in round_table(study, random_state(number))
