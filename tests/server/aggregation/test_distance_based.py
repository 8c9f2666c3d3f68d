"""Krum and the geometric median on points whose answer is known."""

import math

import numpy as np
import pytest

from common.errors import QuorumNotMet
from server.aggregation.distance_based import geometric_median, multi_krum, squared_distances
from server.aggregation.update import AdmittedUpdate


def sites(*points, num_examples=None, names="abcdefg"):
    counts = num_examples or [1] * len(points)
    return [
        AdmittedUpdate(site, count, {"w": np.array(point, np.float64)})
        for site, count, point in zip(names, counts, points, strict=False)
    ]


def krum(updates, num_byzantine=1):
    return multi_krum(updates, num_byzantine=num_byzantine, num_selected=1)["w"].tolist()


def weiszfeld(updates, iterations=1000):
    return geometric_median(updates, iterations=iterations, smoothing=1e-6)["w"]


def test_distances_are_over_all_tensors():
    one = AdmittedUpdate("a", 1, {"u": np.array([0.0]), "w": np.array([1.0, 1.0], np.float32)})
    other = AdmittedUpdate("b", 1, {"u": np.array([2.0]), "w": np.array([4.0, 1.0], np.float32)})
    # 2² + 3² + 0² = 13
    assert squared_distances([one, other]).tolist() == [[0.0, 13.0], [13.0, 0.0]]


def test_krum_takes_the_delta_whose_nearest_others_are_nearest():
    # n = 5, f = 1: the 5 - 1 - 2 = 2 nearest count. At 0, 1, 3, 4, 100 the sums of squares are
    # 0: 1 + 9 = 10; 1: 1 + 4 = 5; 3: 1 + 4 = 5; 4: 1 + 9 = 10; 100: 96² + 97² = 18625.
    # 1 and 3 tie, and b comes before c.
    assert krum(sites([0.0], [1.0], [3.0], [4.0], [100.0])) == [1.0]


def test_a_tie_goes_to_the_first_name_not_to_the_first_place():
    assert krum(sites([0.0], [1.0], [3.0], [4.0], [100.0], names="acbde")) == [3.0]


def test_multi_krum_is_the_mean_of_the_best():
    # The scores above: 1 and 3 (5 each), then 0 and 4 (10 each) in the order of names.
    updates = sites([0.0], [1.0], [3.0], [4.0], [100.0])
    best = {m: multi_krum(updates, num_byzantine=1, num_selected=m)["w"][0] for m in (2, 3, 4)}
    assert best == pytest.approx({2: (1 + 3) / 2, 3: (0 + 1 + 3) / 3, 4: (0 + 1 + 3 + 4) / 4})


def test_krum_against_two_stands_a_pair_that_agrees():
    # The 7 - 2 - 2 = 3 nearest count: 1 has 1 + 1 + 4 = 6, like 2 and 3, and comes first by name;
    # each of the pair has the other at 0, but then 96² + 97².
    updates = sites([0.0], [1.0], [2.0], [3.0], [4.0], [100.0], [100.0])
    assert krum(updates, num_byzantine=2) == [1.0]


def test_krum_ignores_counts_of_examples():
    points = [0.0], [1.0], [3.0], [4.0], [100.0]
    assert krum(sites(*points, num_examples=[1, 1, 1, 1, 10**9])) == [1.0]


def test_krum_with_too_few_sites_says_how_many_it_takes():
    with pytest.raises(QuorumNotMet, match=r"Krum against 1 bad site\(s\) has 4 updates, expected .* = 5"):
        krum(sites([0.0], [1.0], [2.0], [3.0]))


def test_on_a_line_the_geometric_median_is_the_median():
    assert weiszfeld(sites([0.0], [1.0], [10.0])) == pytest.approx([1.0], abs=1e-5)
    assert weiszfeld(sites([-5.0], [2.0], [2.5], [3.0], [1e6])) == pytest.approx([2.5], abs=1e-4)


def test_in_an_equilateral_triangle_it_is_the_centre():
    height = math.sqrt(3) / 2
    # (0 + 1 + 1/2) / 3 = 1/2 and (0 + 0 + sqrt(3)/2) / 3 = sqrt(3)/6
    expected = [0.5, math.sqrt(3) / 6]
    assert weiszfeld(sites([0.0, 0.0], [1.0, 0.0], [0.5, height])) == pytest.approx(expected, abs=1e-9)


def test_in_a_right_triangle_every_side_is_seen_under_120_degrees():
    # Fermat's point of (0, 0), (1, 0), (0, 1): by symmetry (t, t), and from the legs' equation
    # 1/sqrt(2) = (1 - 2t) / sqrt((1 - t)² + t²) follows t = (3 - sqrt(3)) / 6 = 0.2113.
    t = (3 - math.sqrt(3)) / 6
    assert weiszfeld(sites([0.0, 0.0], [1.0, 0.0], [0.0, 1.0])) == pytest.approx([t, t], abs=1e-9)


def test_in_a_square_with_one_corner_far_out_it_is_where_the_diagonals_cross():
    # Of four points in convex position it is where the diagonals meet, however long they are:
    # (0, 0)-(1000, 1000) and (1, 0)-(0, 1) cross at (0.5, 0.5).
    corners = [0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1000.0, 1000.0]
    assert weiszfeld(sites(*corners)) == pytest.approx([0.5, 0.5], abs=1e-6)


def test_a_corner_wider_than_120_degrees_is_the_median_itself():
    # At (0, 0) the unit pulls of (-10, 1) and (10, 1) add up to 2 / sqrt(101) = 0.199 < 1: it stays.
    assert weiszfeld(sites([0.0, 0.0], [-10.0, 1.0], [10.0, 1.0])) == pytest.approx([0.0, 0.0], abs=1e-5)


def test_examples_weigh_and_more_than_half_of_them_decide():
    points = [0.0], [1.0], [10.0]
    assert weiszfeld(sites(*points, num_examples=[1, 1, 3])) == pytest.approx([10.0], abs=1e-4)
    assert weiszfeld(sites(*points, num_examples=[2, 2, 3])) == pytest.approx([1.0], abs=1e-4)


def test_one_step_is_weiszfelds_formula():
    # From the mean (0 + 1 + 5) / 3 = 2 the distances are 2, 1, 3, so the next point is
    # (0/2 + 1/1 + 5/3) / (1/2 + 1/1 + 1/3) = (8/3) / (11/6) = 16/11.
    assert weiszfeld(sites([0.0], [1.0], [5.0]), iterations=1) == pytest.approx([16 / 11])


def test_no_distance_counts_as_less_than_the_smoothing():
    # All at the same point: every distance is 0, and 0 divides nothing.
    assert weiszfeld(sites([3.0], [3.0], [3.0])) == pytest.approx([3.0])
