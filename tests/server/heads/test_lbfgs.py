"""Few evaluations, for each is a message to every hospital."""

import numpy as np

from server.heads.lbfgs import Search


def evaluations(search, function, slope, most=100):
    count = 0
    while not search.done and count < most:
        search = search.evaluated(function(search.trial), slope(search.trial))
        count += 1
    return search, count


def test_with_the_true_curvature_a_parabola_takes_two_evaluations():
    """f(x) = 1/2 (x - a)ᵀ H (x - a) + 1 with H = diag(1, 100): one to see the slope, one to land."""
    curvature, target = np.array([1.0, 100.0]), np.array([3.0, -2.0])
    search, count = evaluations(
        Search(lambda v: v / curvature, 1e-9, np.zeros(2)),
        lambda x: 0.5 * float(curvature @ (x - target) ** 2) + 1,
        lambda x: curvature * (x - target),
    )
    assert count == 2
    np.testing.assert_allclose(search.point, target)


def test_a_bound_that_is_ten_times_too_large_costs_a_few_more():
    curvature, target = np.array([1.0, 100.0]), np.array([3.0, -2.0])
    search, count = evaluations(
        Search(lambda v: v / (10 * curvature), 1e-9, np.zeros(2)),
        lambda x: 0.5 * float(curvature @ (x - target) ** 2) + 1,
        lambda x: curvature * (x - target),
    )
    assert count <= 5
    np.testing.assert_allclose(search.point, target, atol=1e-3)


def test_a_step_that_goes_too_far_is_shortened():
    """A curvature that is a hundred times too small overshoots; the search still comes down."""
    search, count = evaluations(
        Search(lambda v: 100 * v, 1e-9, np.array([1.0])), lambda x: float(x @ x) + 1, lambda x: 2 * x
    )
    assert count < 10
    assert abs(search.point[0]) < 1e-3


def test_a_search_whose_function_changed_goes_on_from_where_it_is():
    def around(target):
        return lambda x: float((x - target) @ (x - target)) + 1, lambda x: 2 * (x - target)

    search, _ = evaluations(Search(lambda v: v, 1e-9, np.zeros(1)), *around(1.0))
    again, _ = evaluations(search.restarted(), *around(-1.0))
    np.testing.assert_allclose(again.point, [-1.0], atol=1e-3)
