"""Sort what the sites say of each entry, keep the middle."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import TrimmedMean
from server.aggregation.coordinate_wise import median, trimmed_mean
from server.aggregation.update import AdmittedUpdate


def sites(*deltas, dtype=np.float64, num_examples=1):
    return [
        AdmittedUpdate(f"s{number}", num_examples, {"w": np.array(delta, dtype)})
        for number, delta in enumerate(deltas)
    ]


def test_the_trimmed_mean_drops_the_largest_and_smallest_of_each_entry():
    updates = sites([1.0, -9.0, 4.0], [2.0, 8.0, 4.0], [3.0, 1.0, 4.0], [4.0, 2.0, 4.0], [100.0, 3.0, 7.0])
    # entry 0: 1 and 100 go, (2 + 3 + 4) / 3 = 3; entry 1: -9 and 8 go, (1 + 2 + 3) / 3 = 2; entry 2: 4
    assert trimmed_mean(updates, num_dropped=lambda n: 1)["w"] == pytest.approx([3.0, 2.0, 4.0])


def test_the_share_is_of_the_sites_that_answered_rounded_down():
    # floor(0.2 * 5) = 1, floor(0.2 * 9) = 1, floor(0.2 * 10) = 2; 0.29 * 100 is 28.999... in binary
    rule = TrimmedMean(trim=0.2)
    assert [rule.num_dropped(n) for n in (1, 4, 5, 9, 10)] == [0, 0, 1, 1, 2]
    assert TrimmedMean(trim=0.29).num_dropped(100) == 29
    assert TrimmedMean(trim=0.4999999999).num_dropped(4) == 1


def test_the_median_of_an_odd_number_is_the_one_in_the_middle():
    assert median(sites([5.0, 0.0], [1.0, -1.0], [1e9, 7.0]))["w"].tolist() == [5.0, 0.0]


def test_the_median_of_an_even_number_is_the_mean_of_the_two_in_the_middle():
    # 1 2 | 6 99: (2 + 6) / 2 = 4
    assert median(sites([6.0], [1.0], [99.0], [2.0]))["w"].tolist() == [4.0]


def test_the_median_equals_numpys():
    rng = np.random.default_rng(0)
    for num_sites in range(1, 8):
        entries_S = rng.normal(size=(num_sites, 3, 4))
        np.testing.assert_allclose(median(sites(*entries_S))["w"], np.median(entries_S, axis=0), rtol=1e-15)


def test_counts_of_examples_are_ignored():
    updates = [
        AdmittedUpdate(site, n, {"w": np.array([x])})
        for site, n, x in [("a", 10**9, 50.0), ("b", 1, 1.0), ("c", 1, 2.0)]
    ]
    assert median(updates)["w"].tolist() == [2.0]
    assert trimmed_mean(updates, num_dropped=lambda n: 1)["w"].tolist() == [2.0]


def test_a_scalar_tensor_stays_one():
    result = median(sites(1.0, 2.0, 3.0, dtype=np.float32))["w"]
    assert (result.shape, result.dtype, float(result)) == ((), np.float32, 2.0)


@given(st.lists(st.floats(allow_nan=False, allow_infinity=False), min_size=1, max_size=9), st.integers(0, 4))
@settings(derandomize=True, deadline=None, max_examples=300)
def test_the_result_never_leaves_what_was_kept_not_even_by_rounding(entries, num_dropped):
    num_dropped = min(num_dropped, (len(entries) - 1) // 2)
    kept = sorted(entries)[num_dropped : len(entries) - num_dropped]
    result = trimmed_mean(sites(*([entry] for entry in entries)), num_dropped=lambda n: num_dropped)["w"][0]
    assert kept[0] <= result <= kept[-1]


def test_three_tenths_are_not_more_than_a_tenth_each():
    # In float64, (0.1 + 0.1 + 0.1) / 3 is 0.10000000000000002.
    assert trimmed_mean(sites([0.1], [0.1], [0.1]), num_dropped=lambda n: 0)["w"].tolist() == [0.1]
