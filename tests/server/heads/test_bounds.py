"""Sums that no images can give are refused; what images give passes, whatever they are."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from client.heads import sums
from common.heads import Fourier, View, identity
from common.wire import Objective, ViewRequest
from server.heads.bounds import wrong_gradient, wrong_sums


def request(**changes) -> ViewRequest:
    return ViewRequest(**({"name": "v", "class_weights": (1.0, 1.0)} | changes))


def named(arrays) -> dict:
    return {f"statistics/v/{name}": np.asarray(array) for name, array in arrays.items()}


def told(wanted: ViewRequest, counts=(2, 1), **arrays) -> str | None:
    return wrong_sums(named(arrays), wanted, counts)


# Two images of class 0, [1, 0] and [3, 0], and one of class 1, [0, 2].
SUMS, SQUARES = [[4.0, 0.0], [0.0, 2.0]], [[10.0, 0.0], [0.0, 4.0]]
MOMENTS = [10.0, 0.0, 4.0]  # the lower half of [[10, 0], [0, 4]]


def test_sums_of_real_images_pass():
    wanted = request(squares=True, moments="float64")
    assert told(wanted, sums=SUMS, squares=SQUARES, moments=MOMENTS) is None


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        # 4² = 16 and 2 * 7.9 = 15.8: two numbers with the sum 4 have squares of 8 at least
        ({"squares": [[7.9, 0.0], [0.0, 4.0]]}, "are too large beside its squares: no 3 images have both"),
        ({"sums": [[4e9, 0.0], [0.0, 2.0]]}, "are too large beside its squares"),
        ({"squares": [[10.0, -1.0], [0.0, 4.0]]}, "has entries below 0"),
        ({"sums": [[1e101, 0.0], [0.0, 2.0]]}, "has an entry of 1e+101, expected at most 1e+100"),
        ({"squares": [[1e200, 0.0], [0.0, 4.0]]}, "has an entry of 1e+200, expected at most 1e+100"),
        # [[10, 7], [7, 4]] has the determinant 40 - 49 < 0
        ({"moments": [10.0, 7.0, 4.0]}, "are not positive semi-definite around the class means"),
        # around the class means [[10 - 16/2, 0], [0, 4 - 4/1]] = [[2, 0], [0, 0]]; 7.9 leaves -0.1
        ({"moments": [7.9, 0.0, 4.0]}, "are not positive semi-definite around the class means"),
        ({"moments": [10.0, 0.0, -4.0]}, "has a sum of squares below 0"),
        ({"moments": [10.0, 0.0, 1e101]}, "has an entry of 1e+101"),
    ],
)
def test_sums_that_no_images_have_are_refused(arrays, sentence):
    wanted = request(squares=True, moments="float64")
    assert sentence in str(told(wanted, **({"sums": SUMS, "squares": SQUARES, "moments": MOMENTS} | arrays)))


def test_a_class_without_images_has_sums_of_zero():
    wanted = request(squares=True)
    zeros = [[4.0, 0.0], [0.0, 0.0]]
    assert told(wanted, (2, 0), sums=zeros, squares=[[10.0, 0.0], [0.0, 0.0]]) is None
    assert "too large beside" in str(told(wanted, (2, 0), sums=SUMS, squares=SQUARES))
    assert "a class without images" in str(told(wanted, (2, 0), sums=zeros, squares=SQUARES))


def test_random_fourier_features_are_cosines_and_have_their_size():
    wanted = request(fourier=Fourier(seed=0, gamma=1.0, num_components=2), moments="float32")
    # each entry is at most sqrt(2 / 2) = 1, so 3 images have sums of 2 and 1 and moments of 3 at most
    moments = np.array([3.0, 0.0, 3.0], np.float32)
    assert told(wanted, sums=[[0.0, 0.0], [0.0, 0.0]], moments=moments) is None
    assert "larger than 3 images" in str(told(wanted, sums=[[2.1, 0.0], [0.0, 0.0]], moments=moments))
    larger = np.array([3.1, 0.0, 3.0], np.float32)
    assert "larger than 3 images" in str(told(wanted, sums=[[0.0, 0.0], [0.0, 0.0]], moments=larger))


@given(
    seed=st.integers(0, 10**6),
    shift=st.sampled_from([0.0, 1.0, 1e3]),
    scale=st.sampled_from([1e-6, 1.0, 1e6]),
    moments=st.sampled_from(["float32", "float64"]),
    fourier=st.booleans(),
    width=st.sampled_from([1, 5, 40]),
)
@settings(derandomize=True, deadline=None, max_examples=60)
def test_what_a_site_computes_from_images_passes(seed, shift, scale, moments, fourier, width):
    draws = np.random.default_rng(seed)
    features = (shift + draws.normal(size=(30, width)) * draws.integers(0, 2, width)) * scale
    labels = draws.integers(0, 3, 30)
    fourier_map = Fourier(seed=seed, gamma=0.5, num_components=16) if fourier else None
    plain = identity(width)
    view = View(plain.shift_F, plain.scale_F, None, fourier_map)
    wanted = request(class_weights=(1.0, 0.3, 2.0, 0.0), squares=True, moments=moments, fourier=fourier_map)
    mapped = view.of(features)
    counts = tuple(np.bincount(labels, minlength=4).tolist())
    groups = [str(number) for number in range(30)]
    site = sums.statistics(mapped, labels, wanted)
    assert wrong_sums(named(site), wanted, counts) is None
    spread = ((mapped**2) * np.array(wanted.class_weights)[labels][:, None]).sum(axis=0)
    for loss in ("softmax", "squared_hinge"):
        objective = Objective(name="v", loss=loss, class_weights=wanted.class_weights, fourier=fourier_map)
        points = draws.normal(size=(mapped.shape[1] + 1, 4)) * draws.choice([0.0, 1e-3, 1.0])
        losses, slopes = sums.gradient(mapped, labels, points, objective, groups, None)
        assert wrong_gradient(losses, slopes, objective, counts, spread) is None


SOFTMAX = Objective(name="v", loss="softmax", class_weights=(1.0, 1.0))
HINGE = Objective(name="v", loss="squared_hinge", class_weights=(1.0, 1.0))
SPREAD = np.array([10.0])


@pytest.mark.parametrize(
    ("objective", "losses", "slopes", "sentence"),
    [
        (SOFTMAX, [-0.1], [[0, 0], [0, 0]], "has entries below 0"),
        (SOFTMAX, [2101.0], [[0, 0], [0, 0]], "more than 3 images can have"),
        # 2 images of class 0 and 1 of class 1: their sums of p - y lie in [-2, 1] and [-1, 2]
        (SOFTMAX, [1.0], [[0, 0], [-2.1, 0]], "has a bias that 3 images cannot have"),
        (SOFTMAX, [1.0], [[0, 0], [0, 2.1]], "has a bias that 3 images cannot have"),
        # (sum x s)² <= 10 * 3, so 5.5 is too much
        (SOFTMAX, [1.0], [[5.5, 0], [0, 0]], "too large beside the site's own sums of squares"),
        # (sum 2 m)² <= 4 * 3 * sum m² = 12
        (HINGE, [1.0, 1.0], [[0, 0], [3.5, 0]], "has a bias that is too large beside its losses"),
        (HINGE, [1.0, 0.0], [[0, 0.1], [0, 0]], "too large beside the site's own sums of squares"),
    ],
)
def test_gradients_that_no_images_have_are_refused(objective, losses, slopes, sentence):
    wrong = wrong_gradient(np.array(losses), np.array(slopes, np.float64), objective, (2, 1), SPREAD)
    assert sentence in str(wrong)


def test_a_gradient_within_the_bounds_passes():
    assert wrong_gradient(np.array([1.0]), np.array([[5.4, 0], [-2, 2]]), SOFTMAX, (2, 1), SPREAD) is None
    assert wrong_gradient(np.array([1.0, 0]), np.array([[6.3, 0], [3.4, 0]]), HINGE, (2, 1), SPREAD) is None
