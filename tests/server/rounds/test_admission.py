"""A bad update is refused with a sentence; a good one passes as it is."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import AdmissionConfig, Bands, Mean, Median, TrimmedMean
from common.errors import UpdateRejected
from common.metrics import count, empty
from common.metrics.replicates import NUM_REPLICATES, Replicates
from common.metrics.subgroups import SubgroupCounts
from common.weights import TensorSpec
from common.wire import RoundAnswer
from server.aggregation.tally import AdmittedUpdate, build_rule
from server.rounds.admission import admit, admit_scores, too_long

LAYOUT = {
    "stem.weight": TensorSpec(shape=(2, 3), dtype="float32"),
    "head.bias": TensorSpec(shape=(3,), dtype="float64"),
    "norm.running_var": TensorSpec(shape=(2,), dtype="float32", role="statistic"),
}
SCORE = count(np.array([[0.9, 0.1], [0.2, 0.8]]), np.array([0, 0]), loss_sum=1.0)
EXPECTED = {"site": "north", "plan_id": "p7", "round": 3, "layout": LAYOUT, "train_count": 40}
SCORED = {"site": "north", "plan_id": "p7", "round": 3, "counts": {"test": (2, 0)}}


def good(**changes) -> RoundAnswer:
    fields = {
        "plan_id": "p7",
        "site": "north",
        "round": 3,
        "scores": {"test": SCORE},
        "num_examples": 40,
        "num_steps": 2,
        "train_loss": 0.5,
        "train_s": 1.0,
        "evaluate_s": 0.1,
        "delta": delta_of(0),
    }
    return RoundAnswer(**(fields | changes))


def delta(**changes):
    return good().delta | changes


def delta_of(seed: int):
    rng = np.random.default_rng(seed)
    return {name: rng.normal(size=s.shape).astype(s.dtype) for name, s in LAYOUT.items()}


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
        ({"site": "south"}, "it answers as 'south', expected 'north'"),
        ({"plan_id": "p6"}, "it answers plan p6, expected p7"),
        (
            {"plan_id": "p6", "round": 2},
            "it repeats an answer of round 2 (plan p6), expected one to plan p7 of round 3",
        ),
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
WORDS = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_.-]{0,62}\Z")
not_finite = st.sampled_from([np.nan, np.inf, -np.inf])


@dataclass(frozen=True)
class Mutation:
    """One thing about a valid update that is not as it should be."""

    what: str
    fields: dict

    def answer(self) -> RoundAnswer:
        return good(**self.fields)


PLAIN = (
    "site",
    "plan",
    "round",
    "examples",
    "steps",
    "loss",
    "less",
    "more",
    "name",
    "shape",
    "dtype",
    "entry",
)
"""What no valid update can be."""
HIDDEN = ("sign", "scale", "value")
"""What could be a valid update, and must not do harm."""


@st.composite
def mutations(draw, kinds=PLAIN) -> Mutation:
    what = draw(st.sampled_from(kinds))
    arrays = delta()
    name = draw(names)
    match what:
        case "site":
            return Mutation(what, {"site": draw(WORDS.filter(lambda t: t != "north"))})
        case "plan":
            return Mutation(what, {"plan_id": draw(WORDS.filter(lambda t: t != "p7"))})
        case "round":
            return Mutation(what, {"round": draw(st.integers(0, 10**9).filter(lambda n: n != 3))})
        case "examples":
            return Mutation(what, {"num_examples": draw(st.just(0) | st.integers(41, 2**50))})
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
        case "sign":
            arrays = {name: -array for name, array in arrays.items()}
        case "scale":
            factor = draw(st.floats(1e-3, 1e6))
            arrays = {name: (factor * array).astype(array.dtype) for name, array in arrays.items()}
        case "value":
            place = draw(st.integers(0, arrays[name].size - 1))
            width = 32 if arrays[name].dtype == np.float32 else 64
            arrays[name].flat[place] = draw(st.floats(allow_nan=False, allow_infinity=False, width=width))
        case _:
            place = draw(st.integers(0, arrays[name].size - 1))
            arrays[name].flat[place] = draw(not_finite)
    return Mutation(what, {"delta": arrays})


@given(mutations())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_single_mutation_of_a_good_update_is_refused(mutation):
    with pytest.raises(UpdateRejected, match=r"."):
        admit(mutation.answer(), **EXPECTED)


HONEST = [AdmittedUpdate(site, 40, delta_of(seed)) for seed, site in enumerate("abcd", 1)]
INSIDE = [TrimmedMean(trim=0.2), Median()]


@given(mutations(PLAIN + HIDDEN))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_any_mutation_is_refused_or_leaves_robust_rules_among_the_honest_sites(mutation):
    try:
        bad = admit(mutation.answer(), **EXPECTED)
    except UpdateRejected:
        return
    assert mutation.what in HIDDEN
    for rule in INSIDE:
        result = build_rule(rule)([*HONEST, bad])
        for name, array in result.items():
            entries_S = np.stack([update.delta[name] for update in HONEST])
            assert (entries_S.min(axis=0) <= array).all(), rule.kind
            assert (array <= entries_S.max(axis=0)).all(), rule.kind


def test_the_mean_has_no_such_bound():
    far = admit(good(delta=delta(**{"head.bias": np.full(3, 1e9)})), **EXPECTED)
    # four sites within a few units and one at 1e9, all with 40 examples: about 1e9 / 5
    assert build_rule(Mean())([*HONEST, far])["head.bias"] == pytest.approx(np.full(3, 2e8), rel=1e-6)


def test_a_delta_longer_than_the_bound_is_refused():
    # 6 entries of 2, 3 of 1: sqrt(6*4 + 3*1) = sqrt(27) = 5.196; the running variance does not count
    arrays = {"stem.weight": np.full((2, 3), 2, np.float32), "head.bias": np.ones(3)}
    arrays["norm.running_var"] = np.full(2, 3, np.float32)
    update = admit(good(delta=arrays), **EXPECTED, max_norm=5.2)
    assert update.norm == pytest.approx(27**0.5)
    assert update.statistics_norm == pytest.approx(18**0.5)
    with pytest.raises(UpdateRejected, match=r"^its norm is 5\.196, expected at most 5\.19$"):
        admit(good(delta=arrays), **EXPECTED, max_norm=5.19)


def test_a_running_variance_below_zero_is_refused():
    arrays = {"stem.weight": np.zeros((2, 3), np.float32), "head.bias": np.zeros(3)}
    received = arrays | {"norm.running_var": np.array([1.0, 0.25], np.float32)}
    shrunk = arrays | {"norm.running_var": np.array([-1.0, -0.125], np.float32)}
    admit(good(delta=shrunk), **EXPECTED, received=received)  # 0 and 0.125 are left
    below = arrays | {"norm.running_var": np.array([0.0, -0.5], np.float32)}
    with pytest.raises(UpdateRejected, match=r"^norm.running_var would be below 0, and it is a variance$"):
        admit(good(delta=below), **EXPECTED, received=received)


def test_running_statistics_have_bounds_of_their_own():
    huge = delta(**{"norm.running_var": np.full(2, 1e38, np.float32)})
    with pytest.raises(UpdateRejected, match=r"^its norm 1\.414e\+38 times its 40 examples is more than"):
        admit(good(delta=huge), **EXPECTED)


@pytest.mark.parametrize("entry", [1e151, 1e300])
def test_a_finite_delta_whose_squares_are_not_is_refused(entry):
    with pytest.raises(UpdateRejected, match=r"expected at most 1e\+150$"):
        admit(good(delta=delta(**{"head.bias": np.full(3, entry)})), **EXPECTED)


def test_an_update_for_which_the_running_sum_has_no_room_is_refused():
    arrays = {"stem.weight": np.zeros((2, 3), np.float32), "head.bias": np.array([1e12, 0, 0])}
    arrays["norm.running_var"] = np.zeros(2, np.float32)
    # 1e12 times the examples of `good` is more than 2**40 = 1.0995e12
    with pytest.raises(
        UpdateRejected, match=r"times its \d+ examples is more than the running sum has room for"
    ):
        admit(good(delta=arrays), **EXPECTED)


def test_a_delta_much_longer_than_the_others_is_refused():
    norms = dict(zip("abcd", (1.0, 2.0, 3.0, 25.0), strict=True))
    # Beside d stand 1, 2 and 3 with median 2: 25 > 10 * 2. Beside a stand 2, 3, 25: 1 <= 10 * 3.
    assert too_long(norms, AdmissionConfig(max_norm_ratio=10)) == {
        "d": "its norm is 25, expected at most 10 times 2, the median of the round's other updates"
    }
    assert too_long(norms, AdmissionConfig(max_norm_ratio=12.5)) == {}  # 25 = 12.5 * 2


def test_sites_of_one_class_are_no_measure_for_those_that_have_something_to_learn() -> None:
    """Under their own prior their updates are next to nothing, and as a majority they had the others refused."""
    alone = dict.fromkeys(("a", "b", "c", "d"), 0.002)
    learning = {"e": 0.4, "f": 0.5, "g": 0.6}
    rules = AdmissionConfig(max_norm_ratio=100)
    assert set(too_long(alone | learning, rules)) == set(learning)  # by the median of all
    assert too_long(alone | learning, rules, of_one_class=alone) == {}
    # the median of e, f and g is 0.5
    assert set(too_long(alone | learning | {"h": 51.0}, rules, of_one_class=alone)) == {"h"}
    assert set(too_long(alone | learning | {"h": 51.0}, rules, of_one_class={*alone, "h"})) == {"h"}
    # one other that learns is measure enough
    assert too_long(alone | {"e": 0.4, "f": 0.5}, rules, of_one_class=alone) == {}
    assert set(too_long(alone | {"e": 0.4, "f": 41.0}, rules, of_one_class=alone)) == {"f"}  # 41 > 100 * 0.4
    # sites of one class alone are compared with each other
    assert set(too_long(alone | {"z": 1.0}, rules, of_one_class={*alone, "z"})) == {"z"}


@pytest.mark.parametrize("of_one_class", [(), ("a",), ("a", "b"), ("a", "b", "c")])
def test_a_huge_delta_is_refused_beside_any_number_of_sites_of_one_class(
    of_one_class: tuple[str, ...],
) -> None:
    norms = {"a": 1.0, "b": 1.0, "c": 1e9}
    assert set(too_long(norms, AdmissionConfig(), of_one_class=of_one_class)) == {"c"}


@given(st.lists(st.floats(1e-3, 1e3), min_size=3, max_size=6), st.sets(st.integers(0, 5)))
@settings(derandomize=True, deadline=None, max_examples=50)
def test_sites_of_one_class_never_make_the_rule_stricter(norms: list[float], of_one_class: set[int]) -> None:
    by_site, rules = (
        {str(number): norm for number, norm in enumerate(norms)},
        AdmissionConfig(max_norm_ratio=3),
    )
    refused = too_long(by_site, rules, of_one_class=set(map(str, of_one_class)))
    assert set(refused) <= set(too_long(by_site, rules))


@pytest.mark.parametrize("norms", [(), (7.0,), (1e-9, 7.0)])
def test_a_delta_without_others_is_not_compared(norms):
    assert (
        too_long({f"s{number}": norm for number, norm in enumerate(norms)}, AdmissionConfig(max_norm_ratio=2))
        == {}
    )


def test_norms_are_compared_unless_the_study_says_otherwise():
    # beside c stand 1 and 2 with median 1.5: 150 = 100 * 1.5 may pass, 151 may not
    assert too_long({"a": 1.0, "b": 2.0, "c": 150.0}, AdmissionConfig()) == {}
    assert set(too_long({"a": 1.0, "b": 2.0, "c": 151.0}, AdmissionConfig())) == {"c"}
    assert too_long({"a": 1.0, "b": 2.0, "c": 1e9}, AdmissionConfig(max_norm_ratio=None)) == {}


@given(st.permutations([0.0, 0.5, 1.0, 3.0, 40.0]))
@settings(derandomize=True, deadline=None, max_examples=30)
def test_who_is_too_long_does_not_depend_on_who_answered_first(norms):
    by_site = {f"site-{norm:g}": norm for norm in norms}
    # Beside 3 stand 0, 0.5, 1, 40 with median 0.75: 3 <= 4 * 0.75. Beside 40 stand 0, 0.5, 1, 3: 40 > 3.
    assert set(too_long(by_site, AdmissionConfig(max_norm_ratio=4))) == {"site-40"}


def test_a_good_score_is_admitted_as_it_is():
    assert admit_scores(good(), **SCORED)["test"] is SCORE


def test_a_score_that_leaves_images_out_is_of_as_many_as_were_enrolled():
    """Two images of the first class are counted, three are left out."""
    some = SCORE.model_copy(update={"left_out_C": (3, 0)})
    answer = good(scores={"test": some})
    assert admit_scores(answer, **(SCORED | {"counts": {"test": (5, 0)}}))["test"] is some
    with pytest.raises(
        UpdateRejected, match=r"its score is over \[5, 0\] test images by class, expected \[2, 0\]"
    ):
        admit_scores(answer, **SCORED)


def test_a_score_of_no_images_fits_a_site_without_test_images():
    answer = good(scores={"test": empty(2)})
    assert admit_scores(answer, **(SCORED | {"counts": {"test": (0, 0)}}))["test"].num_images == 0


def test_a_score_with_noise_is_of_any_number_of_patients_where_the_study_pays_for_it():
    cells = np.array([[3, 0], [0, 4]])
    noisy = empty(2).model_copy(update={"confusion_CC": cells, "noise": 2.0})
    assert admit_scores(good(scores={"test": noisy}), **SCORED, noise=2.0)["test"] is noisy
    with pytest.raises(UpdateRejected, match="noise of 2, expected 0"):
        admit_scores(good(scores={"test": noisy}), **SCORED)
    mixed = SCORE.model_copy(update={"noise": 2.0})
    with pytest.raises(UpdateRejected, match="on some of its counts alone"):
        admit_scores(good(scores={"test": mixed}), **SCORED, noise=2.0)


@pytest.mark.parametrize(
    ("expected", "sentence"),
    [
        ({"plan_id": "p8"}, "it answers plan p7, expected p8"),
        ({"round": 4}, "it is of round 3, expected round 4"),
        ({"site": "south"}, "it answers as 'north', expected 'south'"),
        ({"counts": {"test": (2, 0, 0)}}, "its score is over 2 classes, expected the study's 3"),
        (
            {"counts": {"test": (9, 0)}},
            "its score is over [2, 0] test images by class, expected [9, 0] as enrolled",
        ),
        (
            {"counts": {"test": (1, 1)}},
            "its score is over [2, 0] test images by class, expected [1, 1] as enrolled",
        ),
        ({"counts": {"validation": (2, 0)}}, "it scored test images, expected validation"),
        ({"counts": {}}, "it scored test images, expected none"),
    ],
)
def test_a_score_of_other_images_or_classes_is_refused(expected, sentence):
    with pytest.raises(UpdateRejected) as caught:
        admit_scores(good(), **(SCORED | expected))
    assert str(caught.value) == sentence


def by_sex(*confusion_VCC):
    return good(subgroups={"sex": SubgroupCounts(confusion_VCC=np.array(confusion_VCC))})


SEX = SCORED | {"subgroups": {"sex": ("female", "male")}}
BY_AGE = SCORED | {"subgroups": {"age": Bands(bands=(0, 40))}}
NONE = [[0, 0], [0, 0]]


def test_counts_by_subgroup_are_of_images_of_the_score():
    """The score has two images of the first class, one taken for the second."""
    for fine in ([[1, 0], [0, 0]], [[1, 1], [0, 0]], NONE):
        admit_scores(by_sex(fine, NONE), **SEX)


@pytest.mark.parametrize(
    ("counts", "scored", "sentence"),
    [
        ([[[1, 0], [0, 0]], [[1, 0], [0, 0]]], SEX, "its counts by sex are of more images than its score"),
        ([NONE], SEX, "its counts by sex have the shape (1, 2, 2), expected 2 values and 2 classes"),
        ([[[0]], [[0]]], SEX, "its counts by sex have the shape (2, 1, 1), expected 2 values and 2 classes"),
        ([NONE, NONE], SCORED, "it counts by sex, expected counts by nothing"),
        (
            [NONE, NONE],
            SCORED | {"subgroups": {"age": Bands(bands=(0, 40))}},
            "it counts by sex, expected counts by age",
        ),
    ],
)
def test_counts_by_subgroup_that_cannot_be_are_refused(counts, scored, sentence):
    with pytest.raises(UpdateRejected) as caught:
        admit_scores(by_sex(*counts), **scored)
    assert str(caught.value) == sentence


def test_counts_by_subgroup_are_a_square_table_for_each_value():
    for wrong in (np.zeros((2, 2), int), np.zeros((1, 2, 3), int)):
        with pytest.raises(ValueError, match="expected a square table for each value"):
            SubgroupCounts(confusion_VCC=wrong)


def sums(num_patients: int = 2, width: int = 7, size: float = 1.0) -> Replicates:
    """Sums over test patients that are `size` and -`size` in turn."""
    rows = tuple(((-1) ** place * size,) * width for place in range(NUM_REPLICATES))
    return Replicates(num_patients=num_patients, test_set="0" * 16, sums=rows)


def test_sums_over_test_patients_come_when_they_are_asked_for():
    answer = good(replicates=sums())
    assert admit_scores(answer, **SCORED, replicates=True)["test"] is SCORE
    assert (
        admit_scores(good(), **SCORED, replicates=True)["test"] is SCORE
    )  # the site's policy keeps them back
    with pytest.raises(UpdateRejected, match="it sends sums over test patients, which were not asked for"):
        admit_scores(answer, **SCORED)


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (sums(width=10), "its sums over test patients have 10 columns, expected 7"),
        (sums(num_patients=3), "its sums are over 3 test patients, expected 2 to 2, its images"),
        (sums(num_patients=1), "its sums are over 1 test patients, expected 2 to 2, its images"),
        (sums(size=50), "its sums over test patients vary more than the counts of its score can"),
    ],
)
def test_sums_that_contradict_the_score_are_refused(wrong, sentence):
    with pytest.raises(UpdateRejected) as caught:
        admit_scores(good(replicates=wrong), **SCORED, replicates=True)
    assert str(caught.value) == sentence
