"""The opening: each sentence stands where it is true, and nowhere else."""

from dataclasses import replace
from typing import Any

import pytest

from common.config import StudyConfig
from server.report.opening import joining, opening
from server.report.outcome import Ending
from server.state import Best, RoundState
from tests.server.report.conftest import MakeOutcome, rescored, without

SITES = ("north", "south", "west")


# --- who trained, and for how long ---------------------------------------------------------------


def test_a_study_of_all_its_rounds_says_how_many_sites_trained_it(make_outcome: MakeOutcome) -> None:
    text = opening(make_outcome())
    assert "was trained by 3 sites in 3 rounds, while every image stayed at its site." in text
    assert "of 3 rounds" not in text
    assert "was to be trained" not in text


def test_a_study_of_fewer_rounds_says_how_many_were_planned(make_outcome: MakeOutcome) -> None:
    assert "was trained by 3 sites in 2 of 3 rounds" in opening(make_outcome(last=2))


def test_a_site_that_never_trained_is_not_counted_among_those_that_did(make_outcome: MakeOutcome) -> None:
    text = opening(make_outcome(without("west", "absent", "no key", range(9))))
    assert "was trained by 2 sites in 3 rounds" in text
    assert (
        "Not every site has an update in every round: north in 3 of 3, south in 3 of 3, west in none of 3."
        in text
    )
    assert "trained in every round" not in text


def test_a_study_without_an_update_was_to_be_trained(make_outcome: MakeOutcome) -> None:
    text = opening(make_outcome(last=0))
    assert "was to be trained by 3 sites in 3 rounds. No update of a site is on record." in text
    assert "was trained" not in text
    assert "every round" not in text


def test_only_if_every_site_trained_in_every_round_the_report_says_so(make_outcome: MakeOutcome) -> None:
    assert "north, south and west trained in every round." in opening(make_outcome())
    text = opening(make_outcome(without("south", "refused", "too long", [2])))
    assert "trained in every round" not in text
    assert "north in 3 of 3, south in 2 of 3, west in 3 of 3" in text


@pytest.mark.parametrize(
    ("local", "said"),
    [
        ({"epochs": 1}, "trains 1 epoch with"),
        ({"epochs": 2}, "trains 2 epochs with"),
        ({"steps": 1}, "trains 1 step with"),
        ({"steps": 5}, "trains 5 steps with"),
        ({"batch_size": 8}, "in batches of up to 8 images."),
        ({"batch_size": "all"}, "in batches of all images of a site at once."),
    ],
)
def test_a_round_is_described_as_the_study_has_it(
    make_outcome: MakeOutcome, local: dict[str, Any], said: str
) -> None:
    assert said in opening(make_outcome(settings={"local": local}))


# --- how results are joined ----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("rule", "said"),
    [
        ({"kind": "mean"}, "FedAvg (their mean, weighted by images)"),
        ({"kind": "median"}, "FedAvg, with the median per coordinate in place of the mean"),
        ({"kind": "trimmed_mean", "trim": 0.4}, "without the largest and smallest 40 % in place of the mean"),
        (
            {"kind": "geometric_median"},
            "FedAvg, with the geometric median, weighted by images in place of the mean",
        ),
        (
            {"kind": "krum"},
            "FedAvg, with Krum, which takes the update of one site in each round in place of the mean",
        ),
        ({"kind": "multi_krum", "num_selected": 2}, "the mean of the 2 updates that Krum scores best"),
    ],
)
def test_only_the_weighted_mean_is_called_so(make_study: Any, rule: dict[str, Any], said: str) -> None:
    names = tuple("abcdef")
    text = joining(make_study(sites={"train": names}, aggregation=rule))
    assert said in text
    assert ("their mean, weighted by images" in text) == (rule["kind"] == "mean")
    assert "is shrunk" not in text


def test_the_largest_weight_of_a_site_is_named_where_there_is_one(make_study: Any) -> None:
    three = {"train": ("a", "b", "c")}
    limit = "one site has at most 50 % of the weight"
    assert limit in joining(make_study(sites=three, aggregation={"kind": "mean", "max_share": 0.5}))
    assert "of the weight" not in joining(
        make_study(sites=three, aggregation={"kind": "mean", "max_share": 1})
    )
    assert "of the weight" not in joining(make_study(sites=three, aggregation={"kind": "median"}))


def test_a_bound_on_updates_is_named(make_study: Any) -> None:
    text = joining(make_study(aggregation={"kind": "mean", "norm_clip": 2.5}))
    assert text.endswith("; an update longer than 2.5 is shrunk to it first")


# --- sites that only score -----------------------------------------------------------------------


def test_a_site_that_only_scored_is_called_so(make_outcome: MakeOutcome) -> None:
    text = opening(make_outcome())
    assert "unseen never trained and only scored the model." in text
    assert "was to score" not in text
    assert "incomplete" not in text


def test_a_site_that_never_scored_is_not_said_to_have_scored(make_outcome: MakeOutcome) -> None:
    text = opening(make_outcome(without("unseen", "absent", "it did not connect within 300 s", range(9))))
    assert "unseen was to score the model and never did: it did not connect within 300 s." in text
    assert "only scored" not in text
    assert "**The study is incomplete: the final model has no score of unseen.**" in text


def test_a_site_that_scored_for_a_while_is_named_with_the_last_model_it_scored(
    make_outcome: MakeOutcome,
) -> None:
    # missing in round 3 and the closing one: its last score is of the model after round 1, given in round 2
    text = opening(make_outcome(without("unseen", "missing", "no answer within 9 s", [3, 4])))
    assert "unseen never trained and scored the model until that after round 1." in text
    assert "It did not score the final model: no answer within 9 s." in text
    assert "only scored the model" not in text


def test_a_site_that_is_to_score_at_the_end_is_not_promised_when_there_was_no_end(
    make_outcome: MakeOutcome,
) -> None:
    def only_at_the_end(state: RoundState) -> RoundState:
        rows = tuple(row for row in state.sites if row.site != "unseen")
        return rescored(replace(state, sites=rows), lambda site, score: None if site == "unseen" else score)

    assert "unseen never trains and scores the model at the end." in opening(
        make_outcome(only_at_the_end, last=2)
    )
    ended = opening(make_outcome(only_at_the_end, last=2, ending=Ending("stopped", "by the operator")))
    assert "unseen was to score the model at the end, which the study did not reach." in ended
    assert "never trains" not in ended


def test_a_study_without_such_sites_says_nothing_of_them(make_outcome: MakeOutcome) -> None:
    text = opening(make_outcome(settings={"sites": {"train": SITES, "required": 2}}))
    assert "never trained" not in text
    assert "was to score" not in text


def test_a_study_that_may_pass_without_a_score_is_not_called_incomplete(make_outcome: MakeOutcome) -> None:
    sites = {"train": SITES, "evaluate": ("unseen",), "required": 2, "evaluate_missing": "pass"}
    text = opening(make_outcome(without("unseen", "absent", "no key", range(9)), settings={"sites": sites}))
    assert "unseen was to score the model and never did: no key." in text
    assert "incomplete" not in text


# --- how it ended ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("stage", "said"), [("failed", "failed"), ("stopped", "was stopped"), ("crashed", "broke off")]
)
def test_a_study_that_did_not_finish_says_why(make_outcome: MakeOutcome, stage: Any, said: str) -> None:
    text = opening(make_outcome(last=2, ending=Ending(stage, "2 of 3 sites answered.")))
    assert f"**The study {said}: 2 of 3 sites answered.**" in text
    assert "had not ended" not in text


def test_a_study_that_goes_on_says_that_it_has_not_ended(make_outcome: MakeOutcome) -> None:
    assert "**The study had not ended when this was written.**" in opening(make_outcome(last=2))


@pytest.mark.parametrize("ending", [None, Ending("finished", "3 rounds")])
def test_a_finished_study_says_none_of_it(make_outcome: MakeOutcome, ending: Ending | None) -> None:
    text = opening(make_outcome(ending=ending))
    assert "had not ended" not in text
    assert "The study failed" not in text
    assert "stopped" not in text


def best(round_: int, value: float, worse: int) -> Any:
    def change(state: RoundState) -> RoundState:
        return replace(state, best=Best(round_, value, worse))

    return change


def test_a_study_that_its_selection_stopped_says_why(make_outcome: MakeOutcome, study: StudyConfig) -> None:
    selection = {"metric": "accuracy", "patience": 2}
    ended = make_outcome(best(1, 0.5, 2), settings={"rounds": 9, "selection": selection}, last=3)
    closed = replace(ended, rounds=[*ended.rounds[:2], replace(ended.rounds[2], closing=True)])
    text = opening(closed)
    assert "in 2 of 9 rounds" in text
    assert (
        "The study's selection stopped it early: no better accuracy than 0.5000 after round 1 in 2 scored"
        in text
    )
    whole = opening(make_outcome(best(1, 0.5, 2), settings={"selection": selection}))
    assert "stopped it early" not in whole  # all its rounds are done


def test_the_report_says_what_a_site_weighs_by_and_what_the_last_weights_are(make_study):
    assert joining(make_study()) == "FedAvg (their mean, weighted by images)"
    text = joining(make_study(aggregation={"kind": "mean", "weigh_sites_by": "classes"}))
    assert text == "FedAvg (their mean); a site weighs by its share of each class's images"
    text = joining(
        make_study(algorithm={"kind": "fedadam"}, aggregation={"kind": "mean", "weigh_sites_by": "equal"})
    )
    assert text.endswith("a site weighs as much as any other")
    text = joining(make_study(averaging={"kind": "last_rounds", "rounds": 4}))
    assert text.endswith("the last weights are the mean of the last 4 rounds'")
    text = joining(make_study(averaging={"kind": "exponential", "decay": 0.5}))
    assert text.endswith("the last weights are the exponential mean of all rounds' (decay 0.5)")
