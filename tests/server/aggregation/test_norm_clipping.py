"""A delta that is too long keeps its direction; a short one is not touched."""

import numpy as np
import pytest

from server.aggregation.mean import weighted_mean
from server.aggregation.norm_clipping import clipped, clipping
from server.aggregation.update import AdmittedUpdate


def test_a_long_delta_is_shrunk_to_the_bound_over_all_its_tensors():
    update = AdmittedUpdate("a", 1, {"u": np.array([3.0]), "w": np.array([4.0], np.float32)})
    # norm sqrt(9 + 16) = 5, bound 2: times 2/5
    shrunk = clipped(update, 2.0)
    assert shrunk.delta["u"] == pytest.approx([1.2])
    assert shrunk.delta["w"] == pytest.approx([1.6])
    assert shrunk.norm == pytest.approx(2.0)
    assert {name: str(array.dtype) for name, array in shrunk.delta.items()} == {
        "u": "float64",
        "w": "float32",
    }
    assert update.delta["u"].tolist() == [3.0]


@pytest.mark.parametrize("bound", [5.0, 6.0])
def test_a_short_delta_is_the_same_object(bound):
    update = AdmittedUpdate("a", 1, {"w": np.array([3.0, 4.0])})
    assert clipped(update, bound) is update


def test_a_delta_of_zeros_has_nothing_to_shrink():
    update = AdmittedUpdate("a", 1, {"w": np.zeros(2)})
    assert clipped(update, 1.0) is update


def test_clipping_bounds_what_one_site_does_to_the_mean():
    updates = [AdmittedUpdate("a", 1, {"w": np.array([0.0])}), AdmittedUpdate("b", 1, {"w": np.array([1e9])})]
    # (0 + 2) / 2 = 1
    assert clipping(weighted_mean, 2.0)(updates)["w"] == pytest.approx([1.0])


def test_running_statistics_are_neither_counted_nor_scaled():
    update = AdmittedUpdate(
        "a", 1, {"w": np.array([3.0, 4.0]), "var": np.array([100.0])}, statistics=frozenset({"var"})
    )
    shrunk = clipped(update, 2.5)  # the norm of w is 5
    assert shrunk.delta["w"].tolist() == [1.5, 2.0]
    assert shrunk.delta["var"].tolist() == [100.0]
