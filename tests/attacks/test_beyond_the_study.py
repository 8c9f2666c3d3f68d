"""A server that asks an approved study's site for what the study does not say."""

from itertools import count

import numpy as np
import pytest

from client.trainer import Trainer
from common import wire
from common.heads import HeadForm, under
from common.heads.travelling import Travelling
from common.weights import digest
from common.wire import head_steps
from tests.attacks.conftest import Hospital, approve, ask, enrol, enrolled, refusal, round_plan, study

ONLY_SCORES = {"sites": {"train": ["south", "east"], "evaluate": ["north"]}}


def scoring(hospital: Hospital) -> tuple[Trainer, dict[str, np.ndarray]]:
    """A site that only scores, and the weights that a training site would have sent."""
    builder = hospital()
    weights = enrolled(builder, study(name="other"))
    trainer = hospital(split={"kind": "none", "all": "test"})
    approve(trainer, study(**ONLY_SCORES))
    assert isinstance(enrol(trainer, study(**ONLY_SCORES), plan_id="e2"), wire.Enrolment)
    return trainer, weights


def test_a_site_that_only_scores_never_trains_and_sends_no_first_weights(hospital: Hospital) -> None:
    trainer, weights = scoring(hospital)
    chosen = study(**ONLY_SCORES)
    assert "asked to train" in refusal(ask(trainer, round_plan(chosen, weights)))
    assert "first weights are asked of a site that only scores" in refusal(
        enrol(trainer, chosen, want_weights=True, plan_id="w")
    )


@pytest.mark.parametrize(("round_", "train"), [(4, True), (7, True), (5, False), (10**6, False)])
def test_rounds_beyond_the_studys_are_refused(hospital: Hospital, round_: int, train: bool) -> None:
    """Three rounds train, and a fourth plan scores the last weights."""
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    answer = ask(trainer, round_plan(chosen, weights, number=round_, train=train))
    assert f"contract: round {round_} is asked for, of 3" in refusal(answer)


def test_rounds_only_go_forward(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights, number=2)), wire.RoundAnswer)
    back = ask(trainer, round_plan(chosen, weights, number=1, plan_id="back"))
    assert "contract: round 1 is asked for after round 2" in refusal(back)


def test_one_set_of_weights_is_scored_in_each_round_and_no_more(hospital: Hospital) -> None:
    """An evaluation is an oracle: fifty of fifty questions were answered before."""
    trainer, weights = scoring(hospital)
    chosen = study(**ONLY_SCORES)
    own = ask(trainer, round_plan(chosen, weights, number=2, train=False))
    assert isinstance(own, wire.RoundAnswer), own
    answered = 0
    for number in range(20):
        guess = {name: array * np.float32(1 + (number + 1) * 1e-3) for name, array in weights.items()}
        answer = ask(trainer, round_plan(chosen, guess, number=2, train=False, plan_id=f"v{number}"))
        answered += isinstance(answer, wire.RoundAnswer)
    assert answered == 0


def test_nothing_is_answered_before_the_enrolment(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    approve(trainer, chosen)
    assert "contract: this site has not been enrolled" in refusal(ask(trainer, round_plan(chosen, {})))


def test_a_restarted_trainer_remembers_what_it_was_asked(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    restarted = Trainer(trainer._site)
    other = {name: array * np.float32(1.01) for name, array in weights.items()}
    assert "was answered before" in refusal(ask(restarted, round_plan(chosen, other, plan_id="after")))


@pytest.mark.parametrize("changes", [{}, {"train": False, "score": ["test"]}, {"train": False}])
@pytest.mark.parametrize("rounds", [0, 3])
def test_a_study_from_given_weights_begins_with_those_and_no_others(
    hospital: Hospital, rounds: int, changes: dict[str, object]
) -> None:
    earlier = enrolled(hospital(), study(name="other"))
    theirs = {name: array * np.float32(1.01) for name, array in earlier.items()}
    trainer = hospital(own_first_weights=False)
    local = {} if rounds == 0 else study().local.model_dump()
    given = {"name": "skin, round 9", "sha256": digest(theirs)}
    chosen = study(start_from=given, rounds=rounds, local=local)
    approve(trainer, chosen)
    assert isinstance(enrol(trainer, chosen, plan_id="e3"), wire.Enrolment)
    answer = ask(trainer, round_plan(chosen, earlier, **({"train": rounds > 0} | changes), plan_id="own"))
    assert "contract: the first weights are not those that the study starts from" in refusal(answer)
    answer = ask(trainer, round_plan(chosen, theirs, train=False, plan_id="given"))
    assert isinstance(answer, wire.RoundAnswer)


# --- heads -----------------------------------------------------------------------------------

HEADS = {"heads": {"local": [{"kind": "knn"}], "federated": [{"kind": "lda"}, {"kind": "logistic"}]}}


PLANS = count(1)
"""A trainer repeats its answer to a plan that it knows, so no two have one number."""


def head_plan(
    weights: dict[str, np.ndarray],
    step: head_steps.HeadStep,
    arrays: dict[str, np.ndarray] | None = None,
    **changes: object,
) -> wire.HeadPlan:
    return wire.HeadPlan.model_validate(
        {
            "plan_id": f"h{next(PLANS)}", "site": "north", "study": study(**HEADS), "round": 3,
            "weights_digest": digest(weights), "step": step, "arrays": under("weights", weights) | (arrays or {}),
        }
        | changes
    )  # fmt: skip


def view(name: str, **changes: object) -> head_steps.StatisticsStep:
    request = {"name": name, "class_weights": (1.0, 1.0), **changes}
    return head_steps.StatisticsStep(views=(head_steps.ViewRequest.model_validate(request),))


def test_the_kit_allows_no_heads_until_the_hospital_names_them(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study(**HEADS)
    weights = enrolled(trainer, chosen)
    answer = ask(trainer, head_plan(weights, view("raw", squares=True)))
    assert "heads: the study fits 'local.knn', 'federated.lda', 'federated.logistic'" in refusal(answer)


STEPS = {
    "sums under 'other', which no head": view("other", squares=True),
    "sums of 'lda' in more detail": view("lda", squares=True),
    "'lda' under a map": view("lda", fourier={"seed": 0, "gamma": 1.0, "num_components": 8}),
    "sums of the features as they are, in another form": view("raw", moments="float64"),
    "'raw' is asked for twice": head_steps.StatisticsStep(views=view("raw").views * 2),
    "gradients of 'lda', which no head": head_steps.GradientsStep(
        objectives=(head_steps.Objective(name="lda", loss="softmax", class_weights=(1, 1)),)
    ),
    "gradients of 'logistic' under another loss": head_steps.GradientsStep(
        objectives=(head_steps.Objective(name="logistic", loss="squared_hinge", class_weights=(1, 1)),)
    ),
    "coefficients of 'lda', which is no vote": head_steps.CoefficientsStep(votes=("lda",)),
    "scores of 'h0', which is no head": head_steps.ScoreStep(heads=(HeadForm(title="h0", form="linear"),)),
    "scores of 'federated.lda' in another form": head_steps.ScoreStep(
        heads=(HeadForm(title="federated.lda", form="gaussian"),)
    ),
    "the head 'knn', which does not travel": head_steps.TravelStep(heads=("knn",)),
    "scores of 'local.knn@north', which does not travel": head_steps.ScoreStep(
        heads=(), travelling=(Travelling(name="knn", owner="north"),)
    ),
}


@pytest.mark.parametrize("reason", STEPS)
def test_steps_that_no_head_of_the_study_needs_are_refused(hospital: Hospital, reason: str) -> None:
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    assert reason in refusal(ask(trainer, head_plan(weights, STEPS[reason])))


def test_heads_of_a_study_without_any_are_refused(hospital: Hospital) -> None:
    trainer, chosen = hospital(heads=["*"]), study()
    weights = enrolled(trainer, chosen)
    answer = ask(trainer, head_plan(weights, view("raw"), study=chosen))
    assert "contract: the study fits no heads" in refusal(answer)


def test_heads_are_of_the_weights_that_the_rounds_had(hospital: Hospital) -> None:
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    assert isinstance(ask(trainer, head_plan(weights, view("raw", squares=True))), wire.HeadAnswer)
    made_up = {name: array * np.float32(2) for name, array in weights.items()}
    answer = ask(trainer, head_plan(made_up, view("raw", squares=True)))
    assert "contract: the weights are not those after round 3" in refusal(answer)


def test_heads_on_weights_that_jump_are_refused(hospital: Hospital) -> None:
    """The features of any weights are sums of the operator's choice."""
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    made_up = {name: array * np.float32(-100) for name, array in weights.items()}
    answer = ask(trainer, head_plan(made_up, view("raw", squares=True)))
    assert refusal(answer) == (
        "own_first_weights: heads are asked for on weights to which no round of this site has led; "
        "max_weight_change: the weights have changed too much since the last round"
    )
    assert isinstance(ask(trainer, head_plan(weights, view("raw", squares=True))), wire.HeadAnswer)


def test_heads_before_any_round_are_of_the_sites_own_first_weights(hospital: Hospital) -> None:
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    changed = {name: array * np.float32(1.01) for name, array in weights.items()}
    answer = ask(trainer, head_plan(changed, view("raw", squares=True)))
    assert refusal(answer).startswith("own_first_weights: heads are asked for on weights to which no round")
    assert isinstance(ask(trainer, round_plan(chosen, weights)), wire.RoundAnswer)
    assert isinstance(ask(trainer, head_plan(changed, view("raw", squares=True))), wire.HeadAnswer)


def one_images_gradient(trainer: Trainer, weights: dict[str, np.ndarray]) -> tuple[wire.Answer, np.ndarray]:
    """Asked at points at which every image but the first is classified without doubt; and the features, with a 1."""
    assert isinstance(ask(trainer, head_plan(weights, view("raw", squares=True))), wire.HeadAnswer)
    assert trainer._heads._table is not None
    train = trainer._heads._table.sides["train"]  # what an attacker finds out by halving, in more messages
    rows = np.hstack([train.features_NF, np.ones((len(train.labels_N), 1))]).astype(np.float64)
    wanted = np.where(train.labels_N == 1, 1.0, -1.0)
    wanted[0] = -wanted[0]
    points = np.zeros((rows.shape[1], 2))
    points[:, 1] = 1e4 * np.linalg.lstsq(rows, wanted, rcond=None)[0]
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 1.0))
    step = head_steps.GradientsStep(objectives=(objective,))
    return ask(trainer, head_plan(weights, step, {"points/logistic": points})), rows


def test_without_the_rule_a_softmax_gradient_is_of_one_image(hospital: Hospital) -> None:
    """The attack works, so that its refusal below means something."""
    trainer = hospital(heads=["*"], min_cell=None)
    weights = enrolled(trainer, study(**HEADS))
    answer, rows = one_images_gradient(trainer, weights)
    assert isinstance(answer, wire.HeadAnswer), answer
    gradient = answer.arrays["gradients/logistic"]
    assert np.allclose(gradient[:-1, 1] / gradient[-1, 1], rows[0, :-1], atol=1e-6)


def test_a_softmax_gradient_of_one_image_is_refused(hospital: Hospital) -> None:
    trainer = hospital(heads=["*"])
    weights = enrolled(trainer, study(**HEADS))
    answer, rows = one_images_gradient(trainer, weights)
    assert "min_cell: a gradient would be of too few patients" in refusal(answer)
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 1.0))
    harmless = {"points/logistic": np.zeros((rows.shape[1], 2))}
    plan = head_plan(weights, head_steps.GradientsStep(objectives=(objective,)), harmless, plan_id="0")
    assert isinstance(ask(trainer, plan), wire.HeadAnswer)


def test_a_gradient_without_the_images_of_a_class_is_refused(hospital: Hospital) -> None:
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 0.0))
    width = 64
    plan = head_plan(
        weights,
        head_steps.GradientsStep(objectives=(objective,)),
        {"points/logistic": np.zeros((width + 1, 2))},
    )
    assert "without the images of a class" in refusal(ask(trainer, plan))


def test_scores_are_asked_for_in_two_forms_at_most(hospital: Hospital) -> None:
    """A server may fit the heads again after a site dropped out. It may not ask for ever."""
    trainer, chosen = hospital(heads=["*"]), study(**HEADS)
    weights = enrolled(trainer, chosen)
    width, forms = 64, (HeadForm(title="federated.lda", form="linear"),)
    outcomes = []
    for number in range(4):
        head = {
            "shift": np.zeros(width), "scale": np.ones(width), "weights": np.full((width, 2), float(number)),
            "bias": np.zeros(2),
        }  # fmt: skip
        plan = head_plan(
            weights,
            head_steps.ScoreStep(heads=forms),
            under("head/federated.lda", head),
            plan_id=f"s{number}",
        )
        outcomes.append(type(ask(trainer, plan)))
    assert outcomes == [wire.HeadAnswer, wire.HeadAnswer, wire.Failure, wire.Failure]


def test_scores_tell_no_probability_closer_than_a_bin(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    plan = round_plan(chosen, enrolled(trainer, chosen), train=False)
    answer = ask(trainer, plan.model_copy(update={"score": ("test",)}))
    assert isinstance(answer, wire.RoundAnswer)
    score = answer.scores["test"]
    assert score.num_bins == 20
    places = np.flatnonzero(score.histogram_C2B.sum(axis=(0, 1)))
    assert set(places.tolist()) <= {25 * number + 12 for number in range(20)}
    # Each image adds the middle of its bin, a multiple of 1/40, to the confidence.
    assert all(
        float(value * 40).is_integer() or abs(value * 40 - round(value * 40)) < 1e-6
        for value in score.confidence_K
    )


def test_with_min_score_cell_no_figure_is_of_fewer_patients(hospital: Hospital) -> None:
    """Without the rule cells of one patient leave."""
    answers = []
    for rules in ({}, {"min_score_cell": 3}):
        trainer, chosen = hospital(per_class=48, **rules), study(name=f"s{len(rules)}")
        plan = round_plan(chosen, enrolled(trainer, chosen), train=False)
        answer = ask(trainer, plan.model_copy(update={"score": ("test",)}))
        assert isinstance(answer, wire.RoundAnswer), answer
        score = answer.scores["test"]
        tables = (score.confusion_CC, score.histogram_C2B, score.calibration_2K)
        answers.append({int(cell) for table in tables for cell in table.ravel()} - {0})
    assert min(answers[0]) < 3 <= min(answers[1])


def test_test_images_are_opened_once_and_never_in_a_round(hospital: Hospital) -> None:
    trainer, chosen = hospital(), study()
    weights = enrolled(trainer, chosen)
    both = round_plan(chosen, weights).model_copy(update={"score": ("validation", "test")})
    assert "test images are to be scored in a round" in refusal(ask(trainer, both))
    assert isinstance(ask(trainer, round_plan(chosen, weights, plan_id="r1")), wire.RoundAnswer)
    others = {name: array * np.float32(1.001) for name, array in weights.items()}
    for tried, plan_id in ((weights, "t1"), (weights, "t2"), (others, "t3")):
        plan = round_plan(chosen, tried, train=False, plan_id=plan_id)
        answer = ask(trainer, plan.model_copy(update={"score": ("test",)}))
        if tried is weights:
            assert isinstance(answer, wire.RoundAnswer)
        else:
            assert "the test images were scored before, with other weights" in refusal(answer)
    assert "is to be trained after the test images were scored" in refusal(
        ask(trainer, round_plan(chosen, others, number=2, plan_id="r2"))
    )
