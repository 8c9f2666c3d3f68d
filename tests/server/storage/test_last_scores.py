"""The counts that a report needs: of the last models, and the same after an interruption."""

from dataclasses import replace

import pytest

from common.errors import StorageError
from common.metrics.pooling import total
from server.state import Best
from server.storage import last_scores


def kept(run_dir):
    return {(one.side, one.after_round) for one in last_scores.load(run_dir).models}


def test_the_best_and_the_last_model_are_kept_and_no_other(tmp_path, random_state):
    for number in (1, 2, 3):
        last_scores.keep(tmp_path, replace(random_state(number), best=Best(min(number - 1, 1), 0.5)))
    assert kept(tmp_path) == {("validation", 1), ("validation", 2)}
    last_scores.keep(tmp_path, replace(random_state(4), best=Best(1, 0.5)))
    assert kept(tmp_path) == {("validation", 1), ("validation", 3), ("test", 3)}


def test_counts_are_the_sum_over_the_sites(tmp_path, random_state):
    state = random_state(1)
    last_scores.keep(tmp_path, state)
    found = last_scores.load(tmp_path).of("validation", 0)
    assert found.score == total(state.scores)
    assert found.sites == ("north", "south", "unseen", "west")
    assert last_scores.load(tmp_path).of("test", 0) is None


def test_a_repeated_round_replaces_what_came_after_it(tmp_path, random_state):
    for number in (1, 2, 3):
        last_scores.keep(tmp_path, replace(random_state(number), best=Best(2, 0.5)))
    last_scores.keep(tmp_path, replace(random_state(2), best=Best(0, 0.5)))
    assert kept(tmp_path) == {("validation", 1)}


def test_a_loss_that_is_not_finite_is_kept(tmp_path, random_state):
    state = random_state(1)
    scores = {
        site: score.model_copy(update={"loss_sum": float("inf")}) for site, score in state.scores.items()
    }
    last_scores.keep(tmp_path, replace(state, scores=scores))
    assert last_scores.load(tmp_path).models[0].score.loss_sum == float("inf")


def test_without_a_file_nothing_is_kept_and_a_damaged_one_is_named(tmp_path):
    assert last_scores.load(tmp_path).models == ()
    (tmp_path / last_scores.FILE).write_text("{")
    with pytest.raises(StorageError, match=r"scores\.json"):
        last_scores.load(tmp_path)


def test_the_newest_scores_have_each_sites_histograms(tmp_path, random_state):
    for number in (1, 2):
        last_scores.keep(tmp_path, replace(random_state(number), best=Best(0, 0.5)))
    earlier, newest = last_scores.load(tmp_path).models
    assert earlier.by_site == {}
    for site, score in random_state(2).scores.items():
        found = newest.by_site[site].of(len(score.confusion_CC))
        assert found.tolist() == score.histogram_C2B.tolist()


def test_histograms_of_one_site_or_of_too_many_are_not_kept(tmp_path, random_state):
    state = random_state(1)
    one = state.scores["north"]
    for scores in ({"north": one}, {f"s{number}": one for number in range(last_scores.MOST_SITES + 1)}):
        last_scores.keep(tmp_path, replace(state, scores=scores))
        assert last_scores.load(tmp_path).models[0].by_site == {}
