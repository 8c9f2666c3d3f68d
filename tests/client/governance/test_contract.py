"""What a site remembers of a study, plan by plan."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.governance.contract import Contract
from common import wire
from common.config import StudyConfig
from common.errors import PolicyRefusal
from common.heads import HeadForm, under
from common.weights import digest
from common.wire import head_steps

MakeStudy = Callable[..., StudyConfig]
WEIGHTS = {"w": np.array([1.0, 2.0])}
OTHERS = {"w": np.array([1.0, 3.0])}


def enrol(study: StudyConfig, first_round: int = 1) -> wire.EnrolPlan:
    return wire.EnrolPlan(plan_id="e", site="north", study=study, want_weights=False, first_round=first_round)


def train(study: StudyConfig, number: int, weights: Any = WEIGHTS) -> wire.RoundPlan:
    return wire.RoundPlan(plan_id="r", site="north", study=study, round=number, train=True, weights=weights)


def score(study: StudyConfig, number: int, weights: Any = WEIGHTS) -> wire.RoundPlan:
    return train(study, number, weights).model_copy(update={"train": False})


def hashed(plan: wire.Plan) -> str:
    return digest(wire.arrays_of(plan))


def taken(contract: Contract, *plans: wire.Plan, approval: str = "") -> None:
    for plan in plans:
        contract.check(plan, hashed(plan))
        contract.keep(plan, hashed(plan), approval)


def refused(contract: Contract, plan: wire.Plan) -> str:
    with pytest.raises(PolicyRefusal) as caught:
        contract.check(plan, hashed(plan))
    return caught.value.reason


def test_an_honest_study_is_taken_from_its_first_round_to_the_closing_scores(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study, contract = make_study(rounds=2), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), train(study, 2, OTHERS), score(study, 3))
    assert refused(contract, score(study, 4)) == "contract: round 4 is asked for, of 2"


def test_a_resumed_server_may_ask_the_same_again(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(rounds=3), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), train(study, 2, OTHERS))
    taken(contract, enrol(study, first_round=2), train(study, 2, OTHERS), train(study, 3))
    assert contract.runs_under("") == 1


def test_after_the_closing_scores_no_round_trains(make_study: MakeStudy, tmp_path: Path) -> None:
    """A study that ended early is over."""
    study, contract = make_study(rounds=5), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), score(study, 2))
    assert "round 2 was answered before" in refused(contract, train(study, 2))


# --- test images ---------------------------------------------------------------------------


def closing(study: StudyConfig, number: int, weights: Any, *sides: str) -> wire.RoundPlan:
    return score(study, number, weights).model_copy(update={"score": sides})


def test_the_test_images_are_scored_for_one_set_of_weights(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(rounds=2), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), train(study, 2, OTHERS))
    taken(contract, closing(study, 3, WEIGHTS, "validation"))
    # Round 1 was the best: its weights were shown at the beginning of round 2.
    taken(contract, closing(study, 2, OTHERS, "test"), closing(study, 2, OTHERS, "test"))
    assert refused(contract, closing(study, 3, WEIGHTS, "test")) == (
        "contract: the test images were scored before, with other weights"
    )
    assert "the weights are not those after round 0" in refused(contract, closing(study, 1, OTHERS, "test"))


def test_sums_over_test_patients_are_asked_for_once(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(rounds=2, curves_on="test"), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), train(study, 2, OTHERS))
    taken(contract, closing(study, 2, OTHERS, "test"), closing(study, 2, OTHERS, "test"))
    assert refused(contract, closing(study, 1, WEIGHTS, "test")) == (
        "contract: sums over test patients were asked for before, with other weights"
    )
    plain = make_study(rounds=2, curves_on="test", intervals=False)
    taken(contract, closing(plain, 1, WEIGHTS, "test"))  # without sums each round's weights may be scored


def test_no_round_trains_after_the_test(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(rounds=3), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), closing(study, 1, WEIGHTS, "test"))
    assert refused(contract, train(study, 2, OTHERS)) == (
        "contract: round 2 is to be trained after the test images were scored"
    )


def test_heads_are_tested_on_the_weights_that_were_tested(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(heads=HEADS, rounds=1), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), closing(study, 2, OTHERS, "validation", "test"))
    plan = step(study, head_steps.ScoreStep(heads=()), weights=WEIGHTS)
    assert "the test images were scored before, with other weights" in refused(contract, plan)
    taken(contract, step(study, head_steps.ScoreStep(heads=()), weights=OTHERS))


def test_a_round_scores_test_images_only_if_the_study_says_so(make_study: MakeStudy, tmp_path: Path) -> None:
    both = {"score": ("validation", "test")}
    study, contract = make_study(), Contract(tmp_path)
    taken(contract, enrol(study))
    assert "test images are to be scored in a round" in refused(
        contract, train(study, 1).model_copy(update=both)
    )
    curves = make_study(curves_on="test")
    taken(
        contract, train(curves, 1).model_copy(update=both), train(curves, 2, OTHERS).model_copy(update=both)
    )


def test_a_new_run_forgets_the_answers_and_is_counted(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(), Contract(tmp_path)
    taken(contract, enrol(study), enrol(study), train(study, 1), approval="Monday")
    assert not contract.starts_again(enrol(study))  # a server killed before its first checkpoint
    taken(contract, enrol(study), train(study, 1), train(study, 2), approval="Monday")
    assert contract.starts_again(enrol(study))
    assert contract.runs_under("Monday") == 1  # an enrolment alone is no run that is over
    taken(contract, enrol(study), train(study, 1, OTHERS), approval="Monday")
    assert Contract(tmp_path).runs_under("Monday") == 2
    assert Contract(tmp_path).runs_under("Tuesday") == 0


def test_a_site_that_the_study_does_not_name_answers_nothing(make_study: MakeStudy, tmp_path: Path) -> None:
    plan = enrol(make_study()).model_copy(update={"site": "elsewhere"})
    assert refused(Contract(tmp_path), plan) == "contract: the study does not name this site"


def test_a_damaged_memory_is_not_taken_for_none(make_study: MakeStudy, tmp_path: Path) -> None:
    (tmp_path / "contract.json").write_text('{"run": 1')
    with pytest.raises(Exception, match=r"contract\.json cannot be read"):
        Contract(tmp_path)


def test_an_image_comparison_that_the_study_does_not_have_is_refused(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study, contract = make_study(), Contract(tmp_path)
    taken(contract, enrol(study))
    plan = wire.OverlapPlan(plan_id="o", site="north", study=study)
    assert refused(contract, plan) == "contract: the study compares no images"


# --- heads -----------------------------------------------------------------------------------

HEADS = {"federated": [{"kind": "logistic", "most_messages": 2}, {"kind": "lda"}]}


def step(
    study: StudyConfig, what: head_steps.HeadStep, arrays: Any = None, weights: Any = WEIGHTS
) -> wire.HeadPlan:
    return wire.HeadPlan(
        plan_id="h", site="north", study=study, round=study.rounds, weights_digest=digest(weights), step=what,
        arrays=arrays or {},
    )  # fmt: skip


def gradients(study: StudyConfig, point: float) -> wire.HeadPlan:
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1, 1, 1))
    points = {"points/logistic": np.full((3, 3), point)}
    return step(study, head_steps.GradientsStep(objectives=(objective,)), points)


def test_a_search_has_twice_the_points_that_the_study_allows_and_no_more(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    """Twice, because it starts again from its point when a site drops out."""
    study, contract = make_study(heads=HEADS), Contract(tmp_path)
    taken(contract, enrol(study), *(gradients(study, point) for point in (1, 2, 3, 4, 2)))
    assert "more than 4 points of logistic are asked for" in refused(contract, gradients(study, 5))


def test_scores_of_heads_are_asked_for_in_two_forms_and_for_each_weights_again(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study, contract = make_study(heads={**HEADS, "every": 1}, rounds=2), Contract(tmp_path)
    forms = head_steps.ScoreStep(side="validation", heads=(HeadForm(title="federated.lda", form="linear"),))

    def scores(value: float, number: int, weights: Any) -> wire.HeadPlan:
        plan = step(study, forms, under("head/federated.lda", {"bias": np.array([value])}), weights)
        return plan.model_copy(update={"round": number})

    taken(contract, enrol(study), scores(1, 1, WEIGHTS), scores(2, 1, WEIGHTS), scores(1, 1, WEIGHTS))
    assert "was asked for before, in another form" in refused(contract, scores(3, 1, WEIGHTS))
    taken(contract, scores(3, 2, OTHERS))
    assert "the heads after round 1 were fitted on other weights" in refused(
        contract, train(study, 2, OTHERS)
    )


LDA = head_steps.StatisticsStep(views=(head_steps.ViewRequest(name="raw", class_weights=(1, 1, 1)),))


def sums(study: StudyConfig, number: int, weights: Any = WEIGHTS) -> wire.HeadPlan:
    return step(study, LDA, weights=weights).model_copy(update={"round": number})


@pytest.mark.parametrize(("every", "due"), [(None, {4}), (2, {2, 4}), (1, {1, 2, 3, 4})])
def test_heads_are_fitted_after_the_rounds_that_the_study_says(
    make_study: MakeStudy, tmp_path: Path, every: int | None, due: set[int]
) -> None:
    """Each round with heads is one more set of sums and searches."""
    study, contract = make_study(heads={**HEADS, "every": every}, rounds=4), Contract(tmp_path)
    taken(contract, enrol(study))
    for number in range(5):
        if number in due:
            taken(contract, sums(study, number))
        else:
            assert "and none are due then" in refused(contract, sums(study, number))


def test_heads_of_a_study_that_ended_by_its_patience_end_it(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(heads=HEADS, rounds=9, selection={"patience": 1})
    contract = Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), train(study, 2), train(study, 3), score(study, 4))
    assert "none are due then" in refused(contract, sums(study, 2))
    taken(contract, sums(study, 3), sums(study, 3))
    assert "none are due then" in refused(contract, sums(study, 4))
    assert "round 5 is asked for, of 3" in refused(contract, train(study, 5))


def test_heads_of_the_weights_that_were_chosen_may_be_of_an_earlier_round(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study, contract = make_study(heads=HEADS, rounds=3, selection={}), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1), train(study, 2, OTHERS), train(study, 3))
    taken(contract, closing(study, 4, WEIGHTS, "validation"), closing(study, 2, OTHERS, "test"))
    of_best = step(study, sums(study, 1).step, weights=OTHERS).model_copy(update={"round": 1})
    taken(contract, of_best)
    assert "none are due then" in refused(contract, sums(study, 2))
    # a resumed server repeats its closing evaluation
    taken(contract, closing(study, 4, WEIGHTS, "validation"), closing(study, 2, OTHERS, "test"), of_best)


def test_a_search_after_every_round_is_no_way_to_more_points(make_study: MakeStudy, tmp_path: Path) -> None:
    study, contract = make_study(heads=HEADS, rounds=9), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1))
    early = gradients(study, 1).model_copy(update={"round": 1})
    assert "heads after round 1 are asked for, and none are due then" in refused(contract, early)


# --- control variates --------------------------------------------------------------------------


def corrected(study: StudyConfig, number: int, after: int, entry: float = 1.0) -> wire.RoundPlan:
    weights = {**WEIGHTS, "control/w": np.array([entry, 0.0])}
    return train(study, number, weights).model_copy(update={"control": after})


def test_control_variates_come_with_rounds_of_scaffold_alone(make_study: MakeStudy, tmp_path: Path) -> None:
    plain = {"optimizer": {"kind": "sgd", "momentum": 0}}
    fedavg, contract = make_study(rounds=3), Contract(tmp_path / "fedavg")
    taken(contract, enrol(fedavg), train(fedavg, 1))
    assert "the study has none in this round" in refused(contract, corrected(fedavg, 2, 1))
    assert "the study has none in this round" in refused(
        contract, train(fedavg, 2).model_copy(update={"control": 1})
    )

    scaffold = make_study(rounds=3, local=plain, algorithm={"kind": "scaffold"})
    contract = Contract(tmp_path / "scaffold")
    contract.check(enrol(scaffold), "")
    contract.keep(enrol(scaffold), "")
    assert "the study has none in this round" in refused(contract, corrected(scaffold, 1, 0))
    taken(contract, train(scaffold, 1), corrected(scaffold, 2, 1), corrected(scaffold, 2, 1))
    assert "to another question" in refused(contract, corrected(scaffold, 2, 1, entry=9.0))
    assert "to another question" in refused(contract, corrected(scaffold, 2, 0))
    assert "is to go on from round 3" in refused(contract, corrected(scaffold, 3, 3))


def test_counts_of_all_sites_come_where_the_study_weighs_by_them(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    plain, contract = make_study(), Contract(tmp_path / "plain")
    taken(contract, enrol(plain))
    counts = {"class_counts": (5, 5, 5)}
    assert "against the study" in refused(contract, train(plain, 1).model_copy(update=counts))

    weighs = make_study(local={"class_weights": "study"})
    contract = Contract(tmp_path / "weighs")
    taken(contract, enrol(weighs))
    assert "against the study" in refused(contract, train(weighs, 1))
    wrong = {"class_counts": (5, 5)}
    assert "counts of 2 classes come along, of 3" in refused(
        contract, train(weighs, 1).model_copy(update=wrong)
    )
    taken(contract, train(weighs, 1).model_copy(update=counts))
    others = {"class_counts": (5, 5, 500)}
    assert "to another question" in refused(contract, train(weighs, 1).model_copy(update=others))


def test_a_choice_is_among_the_forms_of_the_studys_heads_on_validation_images(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study, contract = make_study(final_head="federated_lda", rounds=1), Contract(tmp_path)
    taken(contract, enrol(study), train(study, 1))

    def choice(*titles: str, side: str = "validation") -> wire.HeadPlan:
        forms = tuple(HeadForm(title=title, form="linear") for title in titles)
        chosen = head_steps.ScoreStep.model_validate({"heads": forms, "side": side, "choosing": True})
        return step(study, chosen).model_copy(update={"round": 1})

    assert "a choice by test images" in refused(contract, choice("federated.lda.0", side="test"))
    assert "which the study does not choose among" in refused(contract, choice("federated.lda.9"))
    assert "which the study does not choose among" in refused(contract, choice("federated.lda"))
    taken(contract, choice("federated.lda.0", "federated.lda.4"))


def test_outlier_scores_are_counted_in_a_study_that_has_them_in_two_forms_at_most(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    def counts(study: StudyConfig, centre: float) -> wire.HeadPlan:
        return step(study, head_steps.OutliersStep(), {"detector/centres": np.full((1, 1), centre)})

    without = make_study(heads=HEADS)
    contract = Contract(tmp_path / "without")
    taken(contract, enrol(without))
    assert "outlier scores, which the study does not have" in refused(contract, counts(without, 1))
    study, contract = make_study(out_of_distribution={}), Contract(tmp_path / "with")
    taken(contract, enrol(study), counts(study, 1), counts(study, 2), counts(study, 1))
    assert "outlier scores was asked for before, in another form" in refused(contract, counts(study, 3))
