"""Tables of scores for the log: a row per site, pooled rows below."""

import re
from dataclasses import replace

import pytest

from common.metrics import empty
from common.metrics.pooling import pooled
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


def test_a_round_has_a_row_for_each_site(random_state, study):
    text = round_table(study, random_state(2))
    title, head, _, *rows = text.splitlines()
    assert (
        title == "round 2 of 3 of demo took 4.2 s; scores are of the model after round 1 on validation images"
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


def test_the_closing_round_shows_its_scores(random_state, study):
    text = round_table(study, random_state(4))
    assert text.startswith("closing evaluation of demo")
    assert "after round 3" in text
    assert table(random_state(4).scores, study.sites.evaluate) in text


def test_a_round_without_scores_has_a_table(study):
    state = RoundState(
        round=1, weights={}, layout={}, preprocessing={}, sites=(SiteRound("north", "failed"),)
    )
    assert "no site scored" in round_table(study, state)


@pytest.mark.parametrize("number", [1, 4])
def test_synthetic_images_are_called_so_in_every_table(number, random_state, study):
    assert "SYNTHETIC" in round_table(study, random_state(number), synthetic=True)
    assert "SYNTHETIC" not in round_table(study, random_state(number))


def test_the_closing_table_names_the_sites_that_did_not_score(random_state, study):
    closing = random_state(4)
    assert "did not score" not in round_table(study, closing)
    rows = tuple(
        SiteRound("unseen", "missing", "no answer within 9 s") if row.site == "unseen" else row
        for row in closing.sites
    )
    scores = {site: score for site, score in closing.test_scores.items() if site != "unseen"}
    text = round_table(study, replace(closing, sites=rows, test_scores=scores))
    assert text.endswith("unseen * did not score: missing, no answer within 9 s")


def test_a_site_that_is_absent_has_a_row_in_every_round(study, random_score):
    state = RoundState(
        round=1,
        weights={},
        layout={},
        preprocessing={},
        sites=(SiteRound("north", "ok"), SiteRound("unseen", "absent", "it did not connect within 9 s")),
        scores={"north": random_score(1)},
    )
    row = next(row for row in round_table(study, state).splitlines() if row.startswith("unseen"))
    assert row.split()[:3] == ["unseen", "*", "absent"]
