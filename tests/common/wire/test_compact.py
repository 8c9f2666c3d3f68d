"""The compact form of changes: numbers worked by hand, and what is refused before it is unpacked."""

from collections.abc import Callable

import numpy as np
import pytest

from client.model import parameters
from client.model.build import build
from common.config import ClassifierConfig
from common.errors import WireError
from common.weights import Array, TensorSpec, num_bytes
from common.wire import compact
from common.wire.compact import PLACES, SCALES, Form

LAYOUT = {
    "a.weight": TensorSpec(shape=(2, 3), dtype="float32"),
    "b.bias": TensorSpec(shape=(), dtype="float32"),
    "c.running_var": TensorSpec(shape=(2,), dtype="float32", role="statistic"),
    "d.wide": TensorSpec(shape=(1,), dtype="float64"),
    "e.none": TensorSpec(shape=(0,), dtype="float32"),
}
CHANGE: dict[str, Array] = {
    "a.weight": np.array([[127, -2, 0.25], [1, 0, -3]], np.float32),
    "b.bias": np.array(-0.5, np.float32),
    "c.running_var": np.array([0.1, 0.2], np.float32),
    "d.wide": np.array([1 / 3]),
    "e.none": np.zeros(0, np.float32),
}
FORMS = [Form("bf16"), Form("int8"), Form("int8", 0.5), Form("float32", 0.5), Form("bf16", 0.3)]


def packed(form: Form, seed: int = 0) -> dict[str, Array]:
    return compact.pack(CHANGE, LAYOUT, form, np.random.default_rng(seed))


def test_whole_multiples_of_the_scale_travel_exactly() -> None:
    # The largest entry is 127, so the scale is 1; 0.25 becomes 0 or 1.
    sent = packed(Form("int8"))
    assert sent["a.weight"].dtype == np.int8
    assert sent[SCALES].tolist() == [1.0, np.float32(0.5) / np.float32(127)]
    got = compact.unpack(sent, LAYOUT, Form("int8"))
    assert got["a.weight"][0, 2] in (0, 1)
    np.testing.assert_array_equal(got["a.weight"].ravel()[[0, 1, 3, 4, 5]], [127, -2, 1, 0, -3])


@pytest.mark.parametrize("form", FORMS)
def test_statistics_and_wide_numbers_travel_as_they_are(form: Form) -> None:
    got = compact.unpack(packed(form), LAYOUT, form)
    for name in ("c.running_var", "d.wide", "e.none"):
        np.testing.assert_array_equal(got[name], CHANGE[name])
    assert {name: (a.shape, str(a.dtype)) for name, a in got.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in LAYOUT.items()
    }


def test_int8_rounds_a_quarter_up_in_a_quarter_of_the_draws() -> None:
    layout = {"w": TensorSpec(shape=(40001,), dtype="float32")}
    change = np.full(40001, 0.25, np.float32)
    change[-1] = 127
    sent = compact.pack({"w": change}, layout, Form("int8"), np.random.default_rng(1))["w"][:-1]
    assert set(sent.tolist()) == {0, 1}
    assert abs(sent.mean() - 0.25) < 0.01  # the standard error is 0.0022


def test_bf16_rounds_a_quarter_up_in_a_quarter_of_the_draws() -> None:
    # Between 1 and 2 numbers of bf16 are 1/128 apart; a negative one rounds away from zero as often.
    layout = {"w": TensorSpec(shape=(40000,), dtype="float32")}
    value = np.float32(1 + 1 / 512)
    change = np.repeat(np.array([value, -value]), 20000)
    sent = compact.pack({"w": change}, layout, Form("bf16"), np.random.default_rng(1))
    got = compact.unpack(sent, layout, Form("bf16"))["w"]
    assert set(np.abs(got).tolist()) == {1.0, 1 + 1 / 128}
    assert abs(got[:20000].mean() - value) < 0.0001
    assert abs(got[20000:].mean() + value) < 0.0001


def test_the_largest_finite_number_does_not_become_infinite_in_bf16() -> None:
    layout = {"w": TensorSpec(shape=(100,), dtype="float32")}
    change = np.full(100, np.finfo(np.float32).max)
    sent = compact.pack({"w": change}, layout, Form("bf16"), np.random.default_rng(1))
    assert np.isfinite(compact.unpack(sent, layout, Form("bf16"))["w"]).all()


def test_top_k_keeps_the_largest_entries_and_of_equal_ones_the_first() -> None:
    # Half of six entries are three: 127, -3 and -2. A single entry is always kept.
    got = compact.unpack(packed(Form("float32", 0.5)), LAYOUT, Form("float32", 0.5))
    np.testing.assert_array_equal(got["a.weight"], [[127, -2, 0], [0, 0, -3]])
    assert got["b.bias"] == -0.5
    layout = {"w": TensorSpec(shape=(4,), dtype="float32")}
    tied = compact.pack(
        {"w": np.array([1, -1, 1, -2], np.float32)}, layout, Form("float32", 0.5), np.random.default_rng(0)
    )
    assert tied[PLACES].tolist() == [0, 3]


@pytest.mark.parametrize("form", FORMS)
def test_the_same_seed_gives_the_same_bits(form: Form) -> None:
    for name, array in packed(form).items():
        np.testing.assert_array_equal(array, packed(form)[name])


def test_int8_has_a_quarter_of_the_bytes() -> None:
    layout = {"w": TensorSpec(shape=(1000, 10), dtype="float32")}
    whole = {"w": np.random.default_rng(0).normal(size=(1000, 10)).astype(np.float32)}
    sent = compact.pack(whole, layout, Form("int8"), np.random.default_rng(0))
    assert num_bytes(sent) == 10_000 + 4
    assert num_bytes(whole) == 40_000


def _error(compensate: bool) -> float:
    """Distance of the mean of 400 sums from what was to be added, of entries too small for the scale."""
    layout = {"w": TensorSpec(shape=(2,), dtype="float32")}
    form, w, rest = Form("float32", 0.5), np.zeros(2, np.float32), None
    target = np.array([1.0, 4.0], np.float32)
    for number in range(400):
        # Gradient descent on |w - target|^2 / 2; noise keeps the second entry the larger one of the change.
        wanted = {"w": 0.05 * (target - w) + np.array([0, 0.5 * (-1) ** number], np.float32)}
        wanted = {name: array.astype(np.float32) for name, array in wanted.items()}
        wanted = compact.with_left_over(wanted, rest if compensate else None)
        sent = compact.pack(wanted, layout, form, np.random.default_rng(number))
        w = w + compact.unpack(sent, layout, form)["w"]
        rest = compact.left_over(wanted, sent, layout, form)
    return float(abs(w[0] - target[0]))


def test_what_is_left_out_arrives_later_and_without_it_never_does() -> None:
    assert _error(compensate=False) == 1.0  # the first entry is never the larger one
    assert _error(compensate=True) < 0.6


def test_the_mean_of_rounded_changes_tends_to_the_change_as_one_over_the_rounds() -> None:
    layout = {"w": TensorSpec(shape=(2,), dtype="float32")}
    change = {"w": np.array([1.0, 1 / 508], np.float32)}  # a quarter of the scale
    total, rest = np.zeros(2), None
    for number in range(100):
        wanted = compact.with_left_over(change, rest)
        sent = compact.pack(wanted, layout, Form("int8"), np.random.default_rng(number))
        rest = compact.left_over(wanted, sent, layout, Form("int8"))
        total += compact.unpack(sent, layout, Form("int8"))["w"]
    assert abs(total[1] / 100 - 1 / 508) < 1.1 / 127 / 100  # never more than one scale is left over


def test_a_change_that_is_not_finite_is_refused_and_nothing_of_it_is_left_over() -> None:
    for bad in (np.nan, np.inf):
        change = {**CHANGE, "a.weight": np.full((2, 3), bad, np.float32)}
        sent = compact.pack(change, LAYOUT, Form("int8"), np.random.default_rng(0))
        rest = compact.left_over(change, sent, LAYOUT, Form("int8"))
        assert not rest["a.weight"].any()
        with pytest.raises(WireError, match=r"the scale of a\.weight is nan, expected a finite number"):
            compact.unpack(sent, LAYOUT, Form("int8"))


def _set(name: str, array: Array) -> Callable[[dict[str, Array]], None]:
    return lambda sent: sent.update({name: array})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_set(SCALES, np.array([1, np.inf], np.float32)), "the scale of b.bias is inf"),
        (_set(SCALES, np.array([-1, 1], np.float32)), "the scale of a.weight is -1"),
        (_set(SCALES, np.array([3e38, 1], np.float32)), "the scale of a.weight is 3e"),
        (_set(SCALES, np.ones(3, np.float32)), r"consilium.scales travels as float32\[3\], expected float32\[2\]"),
        (_set("a.weight", np.zeros(6, np.int8)), r"a.weight travels as int8\[6\], expected int8\[3\]"),
        (_set("a.weight", np.zeros(3, np.float32)), r"a.weight travels as float32\[3\], expected int8\[3\]"),
        (_set(PLACES, np.array([0, 1, 6, 0], np.uint32)), "a place in a.weight is 6, expected less than its 6"),
        (_set(PLACES, np.array([0, 1, 1, 0], np.uint32)), "the places in a.weight repeat"),
        (_set(PLACES, np.array([2, 1, 3, 0], np.uint32)), "the places in a.weight repeat or are not in order"),
        (_set(PLACES, np.array([0, 1, 2, 1], np.uint32)), "a place in b.bias is 1"),
        (_set(PLACES, np.zeros(9, np.uint32)), r"consilium.places travels as uint32\[9\]"),
        (_set("more", np.zeros(1, np.int8)), "more is not part of the study"),
        (lambda sent: sent.pop("b.bias"), "b.bias is missing"),
        (lambda sent: sent.pop(SCALES), "consilium.scales is missing"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_named_before_anything_is_unpacked(
    change: Callable[[dict[str, Array]], None], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = packed(Form("int8", 0.5))
    change(sent)
    monkeypatch.setattr(compact, "values", lambda *_: pytest.fail("it was unpacked"))
    with pytest.raises(WireError, match=message):
        compact.unpack(sent, LAYOUT, Form("int8", 0.5))


def _mib(tuning: dict[str, str | int] | None, form: Form) -> float:
    model = {"encoder": "vit_tiny_patch16_224", "image_size": 224}
    config = ClassifierConfig.model_validate(model if tuning is None else {**model, "tuning": tuning})
    network = build(config, 7, seed=0, weights_dir=None).model
    parts = parameters.partition(network, config)
    arrays, layout = parameters.shared_arrays(network, parts), parameters.layout(network, parts)
    packed = compact.pack(arrays, layout, form, np.random.default_rng(0)) if form.is_compact else arrays
    return num_bytes(packed) / 2**20


def test_lora_with_int8_has_less_than_a_hundredth_of_the_bytes_of_the_whole_network() -> None:
    whole = _mib(None, Form("float32"))
    assert whole / _mib(None, Form("int8")) == pytest.approx(4, abs=0.01)
    assert whole / _mib({"kind": "lora", "rank": 4}, Form("int8")) > 100
