"""One vote per example, whatever the order in which sites answer."""

from itertools import permutations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from pydantic import TypeAdapter

from common.config import Algorithm
from common.errors import QuorumNotMet
from server.aggregation import AdmittedUpdate, build_rule, weighted_mean

KINDS = ["fedavg", "fedprox", "fedavgm", "fedadam", "fedyogi", "fedadagrad"]


def test_the_mean_is_weighted_by_examples():
    # (1 * [4, 0] + 3 * [0, 8]) / 4 = [1, 6]
    mean = weighted_mean(
        [
            AdmittedUpdate("north", 1, {"w": np.array([4.0, 0.0])}),
            AdmittedUpdate("south", 3, {"w": np.array([0.0, 8.0])}),
        ]
    )
    assert mean["w"].tolist() == [1.0, 6.0]


def test_the_mean_equals_flowers(random_arrays):
    updates = [
        AdmittedUpdate(site, n, random_arrays(n)) for site, n in [("a", 7), ("b", 1000), ("c", 1), ("d", 31)]
    ]
    records = [
        RecordDict(
            {
                "arrays": ArrayRecord({name: Array(array) for name, array in update.delta.items()}),
                "metrics": MetricRecord({"num-examples": update.num_examples}),
            }
        )
        for update in updates
    ]
    expected = aggregate_arrayrecords(records, "num-examples")
    for name, array in weighted_mean(updates).items():
        np.testing.assert_allclose(array, expected[name].numpy(), rtol=1e-5, atol=1e-7)


def test_the_order_of_arrival_does_not_change_one_bit(random_arrays):
    updates = [
        AdmittedUpdate(site, n, random_arrays(n)) for site, n in [("a", 7), ("b", 13), ("c", 3), ("d", 1)]
    ]
    results = {
        tuple(array.tobytes() for array in weighted_mean(order).values()) for order in permutations(updates)
    }
    assert len(results) == 1


def test_the_mean_has_the_dtypes_and_shapes_of_the_deltas(random_arrays, layout):
    mean = weighted_mean(
        [AdmittedUpdate("north", 2, random_arrays(0)), AdmittedUpdate("south", 1, random_arrays(1))]
    )
    assert {name: (a.shape, str(a.dtype)) for name, a in mean.items()} == {
        name: (spec.shape, spec.dtype) for name, spec in layout.items()
    }


def test_small_sites_are_not_lost_in_float32():
    # In float32 the sum 2**24 + 1 is 2**24: the second site's entry would vanish.
    updates = [
        AdmittedUpdate("a", 1, {"w": np.array([2.0**24], np.float32)}),
        AdmittedUpdate("b", 1, {"w": np.array([1.0], np.float32)}),
        AdmittedUpdate("c", 1, {"w": np.array([-(2.0**24)], np.float32)}),
    ]
    assert weighted_mean(updates)["w"][0] == pytest.approx(1 / 3)


def test_finite_deltas_have_a_finite_mean():
    largest = np.array([np.finfo(np.float64).max])
    updates = [AdmittedUpdate(site, 10**6, {"w": largest}) for site in ("north", "south")]
    assert weighted_mean(updates)["w"] == largest


def test_a_federation_of_one_takes_its_sites_delta_as_it_is(random_arrays):
    delta = random_arrays(3)
    mean = weighted_mean([AdmittedUpdate("north", 17, delta)])
    assert all(np.array_equal(mean[name], delta[name]) for name in delta)


def test_updates_are_left_as_they_were(random_arrays):
    delta = random_arrays(3)
    weighted_mean([AdmittedUpdate("north", 1, delta), AdmittedUpdate("south", 1, random_arrays(4))])
    assert all(np.array_equal(delta[name], array) for name, array in random_arrays(3).items())


def test_nothing_cannot_be_averaged():
    with pytest.raises(QuorumNotMet, match="no update to average"):
        weighted_mean([])


def test_a_site_has_one_vote():
    twice = AdmittedUpdate("north", 1, {"w": np.zeros(1)})
    with pytest.raises(AssertionError, match="one vote"):
        weighted_mean([twice, twice])


@pytest.mark.parametrize("kind", KINDS)
def test_every_algorithm_has_a_rule(kind):
    assert build_rule(TypeAdapter(Algorithm).validate_python({"kind": kind})) is weighted_mean
