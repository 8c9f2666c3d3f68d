"""A bad update is refused with a sentence; a good one passes as it is."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.errors import UpdateRejected
from common.metrics import count, empty
from common.weights import TensorSpec
from common.wire import RoundAnswer
from server.admission import admit, admit_score

LAYOUT = {
    "stem.weight": TensorSpec(shape=(2, 3), dtype="float32"),
    "head.bias": TensorSpec(shape=(3,), dtype="float64"),
    "norm.running_var": TensorSpec(shape=(2,), dtype="float32", role="statistic"),
}
SCORE = count(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), loss_sum=1.0)
EXPECTED = {"plan_id": "p7", "round": 3, "layout": LAYOUT, "train_count": 40}
SCORED = {"plan_id": "p7", "round": 3, "num_images": 2, "num_classes": 2}


def good(**changes) -> RoundAnswer:
    rng = np.random.default_rng(0)
    fields = {
        "plan_id": "p7",
        "site": "north",
        "round": 3,
        "score": SCORE,
        "num_examples": 40,
        "num_steps": 2,
        "train_loss": 0.5,
        "train_s": 1.0,
        "evaluate_s": 0.1,
        "delta": {name: rng.normal(size=s.shape).astype(s.dtype) for name, s in LAYOUT.items()},
    }
    return RoundAnswer(**(fields | changes))


def delta(**changes):
    return good().delta | changes


def test_a_good_update_is_admitted_as_it_is():
    answer = good()
    update = admit(answer, **EXPECTED)
    assert (update.site, update.num_examples) == ("north", 40)
    assert update.delta is answer.delta


def test_an_update_of_zeros_is_admitted():
    zeros = {name: np.zeros(spec.shape, spec.dtype) for name, spec in LAYOUT.items()}
    assert admit(good(delta=zeros, num_examples=1), **EXPECTED).num_examples == 1


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"plan_id": "p6"}, "it answers plan p6, expected p7"),
        ({"round": 2}, "it is of round 2, expected round 3"),
        ({"num_examples": 0}, "it claims 0 examples, expected 1 to 40 as enrolled"),
        ({"num_examples": 10**12}, "it claims 1000000000000 examples, expected 1 to 40 as enrolled"),
        ({"num_steps": 0}, "it claims 0 steps, expected at least 1"),
        ({"train_loss": None}, "its training loss is None, expected a finite number"),
        ({"train_loss": float("nan")}, "its training loss is nan, expected a finite number"),
        ({"delta": {}}, "head.bias is missing"),
        ({"delta": delta(tail=np.zeros(1))}, "tail is not part of the study"),
        ({"delta": delta(**{"head.bias": np.zeros(1)})}, "head.bias is float64[1], expected float64[3]"),
        (
            {"delta": delta(**{"head.bias": np.zeros(3, np.float32)})},
            "head.bias is float32[3], expected float64[3]",
        ),
        (
            {"delta": delta(**{"head.bias": np.array([0.0, np.nan, -np.inf])})},
            "2 of 3 entries of head.bias are not finite; a smaller learning rate or clip_grad_norm may help",
        ),
    ],
)
def test_a_refusal_says_what_was_found_and_what_was_expected(changes, sentence):
    with pytest.raises(UpdateRejected) as caught:
        admit(good(**changes), **EXPECTED)
    assert str(caught.value) == sentence


names = st.sampled_from(sorted(LAYOUT))
not_finite = st.sampled_from([np.nan, np.inf, -np.inf])


@dataclass(frozen=True)
class Mutation:
    """One thing about a valid update that is not as it should be."""

    what: str
    fields: dict

    def answer(self) -> RoundAnswer:
        return good(**self.fields)


@st.composite
def mutations(draw) -> Mutation:
    what = draw(
        st.sampled_from(
            ["plan", "round", "examples", "steps", "loss", "less", "more", "name", "shape", "dtype", "entry"]
        )
    )
    arrays = delta()
    name = draw(names)
    match what:
        case "plan":
            return Mutation(
                what, {"plan_id": draw(st.text(min_size=1, max_size=64).filter(lambda t: t != "p7"))}
            )
        case "round":
            return Mutation(what, {"round": draw(st.integers().filter(lambda n: n != 3))})
        case "examples":
            return Mutation(what, {"num_examples": draw(st.just(0) | st.integers(41))})
        case "steps":
            return Mutation(what, {"num_steps": 0})
        case "loss":
            return Mutation(what, {"train_loss": draw(not_finite | st.none())})
        case "less":
            del arrays[name]
        case "more":
            arrays[draw(st.text(max_size=20).filter(lambda t: t not in LAYOUT))] = arrays[name]
        case "name":
            arrays[draw(st.text(max_size=20).filter(lambda t: t not in LAYOUT))] = arrays.pop(name)
        case "shape":
            shape = draw(
                st.sampled_from([(), (1,), (2,), (3,), (6,), (2, 3), (3, 2), (1, 2, 3), (0,)]).filter(
                    lambda shape: shape != LAYOUT[name].shape
                )
            )
            arrays[name] = np.zeros(shape, LAYOUT[name].dtype)
        case "dtype":
            dtype = draw(
                st.sampled_from(["float16", "float32", "float64", "int64", "uint8", "bool", ">f4"]).filter(
                    lambda dtype: dtype != LAYOUT[name].dtype
                )
            )
            arrays[name] = np.zeros(LAYOUT[name].shape, dtype)
        case _:
            place = draw(st.integers(0, arrays[name].size - 1))
            arrays[name].flat[place] = draw(not_finite)
    return Mutation(what, {"delta": arrays})


@given(mutations())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_single_mutation_of_a_good_update_is_refused(mutation):
    with pytest.raises(UpdateRejected, match=r"."):
        admit(mutation.answer(), **EXPECTED)


def test_a_good_score_is_admitted_as_it_is():
    assert admit_score(good(), **SCORED) is SCORE


def test_a_score_of_no_images_fits_a_site_without_test_images():
    assert admit_score(good(score=empty(2)), **(SCORED | {"num_images": 0})).num_images == 0


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        ({"plan_id": "p8"}, "it answers plan p7, expected p8"),
        ({"round": 4}, "it is of round 3, expected round 4"),
        ({"num_classes": 7}, "its score is over 2 classes, expected the study's 7"),
        ({"num_images": 9}, "its score is over 2 images, expected the 9 it enrolled with"),
    ],
)
def test_a_score_of_other_images_or_classes_is_refused(expected, sentence):
    with pytest.raises(UpdateRejected) as caught:
        admit_score(good(), **(SCORED | expected))
    assert str(caught.value) == sentence
