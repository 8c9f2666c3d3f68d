"""One vote per example, whatever the order in which sites answer."""

import tracemalloc
from itertools import permutations

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy.strategy_utils import aggregate_arrayrecords
from hypothesis import given, settings
from hypothesis import strategies as st

from common.config import GeometricMedian, Krum, Mean, Median, MultiKrum, TrimmedMean
from common.errors import QuorumNotMet
from common.weights import digest, mismatch
from server.aggregation.mean import LARGEST, RunningMean
from server.aggregation.tally import AdmittedUpdate, build_rule, build_tally, weighted_mean
from server.aggregation.update import limited, limited_weights


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


def test_a_federation_of_one_takes_its_sites_delta_as_it_is(random_arrays):
    delta = random_arrays(3)
    mean = weighted_mean([AdmittedUpdate("north", 17, delta)])
    for name, array in delta.items():
        if array.dtype == np.float32:
            assert np.array_equal(mean[name], array)
        else:  # 2e-19 absolute
            np.testing.assert_allclose(mean[name], array, rtol=1e-15)


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


def test_the_mean_is_that_of_shares_in_float64(random_arrays):
    updates = [AdmittedUpdate(site, n, random_arrays(n)) for site, n in [("c", 7), ("a", 13), ("b", 3)]]
    for name, array in build_rule(Mean())(updates).items():
        total = np.zeros(array.shape, np.float64)
        for seed, share in ((13, 13 / 23), (3, 3 / 23), (7, 7 / 23)):
            total += share * random_arrays(seed)[name].astype(np.float64)
        np.testing.assert_allclose(array, total, rtol=1e-6 if array.dtype == np.float32 else 1e-14)


def test_the_running_sum_has_room_for_the_largest_updates_that_are_admitted():
    # 2**10 sites, each with 2**20 examples times 2**20: what admission lets through at most.
    running = RunningMean()
    for number in range(2**10):
        running.add(AdmittedUpdate(f"s{number}", 2**20, {"w": np.array([LARGEST / 2**20])}))
    assert running.result()["w"].tolist() == [2.0**20]


def test_entries_far_below_any_weight_are_not_lost():
    updates = [AdmittedUpdate(site, 3, {"w": np.array([1e-12, -1e-12 / 3])}) for site in ("a", "b")]
    np.testing.assert_allclose(weighted_mean(updates)["w"], [1e-12, -1e-12 / 3], rtol=1e-6)


@pytest.mark.parametrize("side_by_side", [False, True])
@pytest.mark.parametrize("clip", [None, 1.0])
def test_a_tally_gives_what_its_rule_gives(side_by_side, clip, random_arrays):
    updates = [AdmittedUpdate(site, n, random_arrays(n)) for site, n in [("c", 7), ("a", 13), ("b", 3)]]
    tally = build_tally(Mean(norm_clip=clip), side_by_side=side_by_side)
    for update in updates:
        tally.add(update)
    assert digest(tally.result()) == digest(build_rule(Mean(norm_clip=clip))(updates))


def test_a_site_can_be_left_out_after_all_where_updates_are_held(random_arrays):
    tally = build_tally(Mean(), side_by_side=True)
    for site, n in [("a", 7), ("b", 13), ("c", 3)]:
        tally.add(AdmittedUpdate(site, n, random_arrays(n)))
    rest = [AdmittedUpdate("a", 7, random_arrays(7)), AdmittedUpdate("c", 3, random_arrays(3))]
    assert digest(tally.result(without=["b"])) == digest(weighted_mean(rest))


def test_the_memory_of_a_mean_does_not_grow_with_the_number_of_sites():
    def peak_mib(num_sites: int) -> float:
        rng = np.random.default_rng(0)
        tally = build_tally(Mean(), side_by_side=False)
        tracemalloc.start()
        try:
            for number in range(num_sites):
                delta = {f"w{n}": rng.normal(size=2**16).astype(np.float32) for n in range(8)}
                tally.add(AdmittedUpdate(f"s{number}", 3, delta))
            tally.result()
            return tracemalloc.get_traced_memory()[1] / 2**20
        finally:
            tracemalloc.stop()

    # A site's model is 2 MiB: 14 more sites held would be 28 MiB more.
    assert peak_mib(16) == pytest.approx(peak_mib(2), abs=0.5)


RULES = [
    Mean(),
    TrimmedMean(trim=0.2),
    Median(),
    Krum(num_byzantine=1),
    MultiKrum(num_byzantine=1, num_selected=3),
    GeometricMedian(),
]
every_rule = pytest.mark.parametrize(
    "config", [*RULES, *(rule.model_copy(update={"norm_clip": 1.0}) for rule in RULES)],
    ids=lambda config: config.kind + ("" if config.norm_clip is None else "-clipped"),
)  # fmt: skip


@pytest.fixture
def five(random_arrays):
    """Two of the five sites sent the same, so that ties must be broken."""
    return [
        AdmittedUpdate(site, seed + 1, random_arrays(seed))
        for site, seed in zip("abcde", (1, 2, 2, 3, 4), strict=True)
    ]


@every_rule
def test_no_rule_sees_who_answered_first(config, five):
    rule = build_rule(config)
    expected = digest(rule(five))

    @given(st.permutations(five))
    @settings(derandomize=True, deadline=None, max_examples=40)
    def check(updates):
        assert digest(rule(updates)) == expected

    check()


@every_rule
def test_no_rule_sees_in_which_order_tensors_came(config):
    # safetensors hands out tensors in another order in every process
    rng = np.random.default_rng(0)
    names = [f"layer{number}" for number in range(30)]
    updates = [AdmittedUpdate(site, 3, {name: rng.normal(size=7) for name in names}) for site in "abcde"]
    expected = digest(build_rule(config)(updates))
    for _ in range(5):
        mixed = [
            AdmittedUpdate(u.site, 3, {name: u.delta[name] for name in rng.permutation(names)})
            for u in updates
        ]
        assert digest(build_rule(config)(mixed)) == expected


@every_rule
def test_every_rule_keeps_names_shapes_and_dtypes_and_leaves_its_inputs_alone(config, five, layout):
    before = [digest(update.delta) for update in five]
    result = build_rule(config)(five)
    assert mismatch(layout, result) is None
    assert [digest(update.delta) for update in five] == before


@every_rule
def test_sites_that_agree_are_taken_at_their_word(config, random_arrays):
    small = random_arrays(1, scale=0.01)
    agreeing = [AdmittedUpdate(site, 3, small) for site in "abcde"]
    for name, array in build_rule(config)(agreeing).items():
        np.testing.assert_allclose(array, small[name], rtol=1e-6)


@every_rule
def test_no_rule_makes_something_of_nothing(config):
    with pytest.raises(QuorumNotMet, match="no update to average"):
        build_rule(config)([])


@pytest.mark.parametrize("config", RULES[1:], ids=lambda config: config.kind)
def test_a_robust_rule_does_not_follow_one_site_that_is_far_away(config):
    # Four sites near 1 and one at a million, each with as many examples.
    updates = [
        AdmittedUpdate(site, 5, {"w": np.array([x])})
        for site, x in zip("abcde", (0.9, 1.0, 1.1, 1.2, 1e6), strict=True)
    ]
    assert 0.9 <= build_rule(config)(updates)["w"][0] <= 1.2
    # the mean: (0.9 + 1 + 1.1 + 1.2 + 1e6) / 5
    assert build_rule(Mean())(updates)["w"][0] == pytest.approx(200000.84)


@every_rule
def test_no_rule_holds_more_than_a_tensor_of_each_site_beside_its_result(config):
    # 12 tensors of 0.5 MiB from 5 sites: all of them side by side are 30 MiB, the result is 6 MiB.
    # One tensor of each site in float64 is 5 MiB, and some sums and differences of 1 MiB come to it.
    # The mean's running sum is 24 MiB, however many sites there are.
    rng = np.random.default_rng(0)
    updates = [
        AdmittedUpdate(site, 3, {f"w{n}": rng.normal(size=2**17).astype(np.float32) for n in range(12)})
        for site in "abcde"
    ]
    rule = build_rule(config)
    tracemalloc.start()
    try:
        rule(updates)
        peak_mib = tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()
    assert peak_mib < 6 + (24 + 2 if config.kind == "mean" else 5 + 4)


def test_a_site_that_claims_more_than_its_share_gets_the_limit():
    updates = [
        AdmittedUpdate("a", 200, {"w": np.array([0.1])}),
        AdmittedUpdate("b", 250, {"w": np.array([0.1])}),
        AdmittedUpdate("evil", 2 * 10**9, {"w": np.array([-0.1])}),
    ]
    # without a limit nearly -0.1; with half of the weight for the third: 0.5 * 0.1 + 0.5 * -0.1 = 0
    assert build_rule(Mean())(updates)["w"] == pytest.approx([-0.1], rel=1e-6)
    assert build_rule(Mean(), 0.5)(updates)["w"] == pytest.approx([0.0], abs=1e-15)
    tally = build_tally(Mean(), side_by_side=False, max_share=0.5)
    for update in updates:
        tally.add(update)
    assert tally.result()["w"] == pytest.approx([0.0], abs=1e-15)


def test_a_geometric_median_does_not_follow_one_site_with_a_large_claim():
    updates = [
        AdmittedUpdate("a", 200, {"w": np.array([0.1, 0.0])}),
        AdmittedUpdate("b", 250, {"w": np.array([0.1, 0.01])}),
        AdmittedUpdate("evil", 2 * 10**9, {"w": np.array([-5.0, 0.0])}),
    ]
    assert build_rule(GeometricMedian())(updates)["w"][0] == pytest.approx(-5.0, abs=1e-3)
    assert build_rule(GeometricMedian(), 1 / 3)(updates)["w"][0] == pytest.approx(0.1, abs=1e-2)


@pytest.mark.parametrize(
    ("counts", "most", "shares"),
    [
        ((200, 250, 50), 0.5, [0.4, 0.5, 0.1]),  # exactly the limit is no excess
        ((100, 100, 800), 0.5, [0.25, 0.25, 0.5]),
        ((10, 90, 900), 0.5, [0.05, 0.45, 0.5]),  # the rest in proportion to 10 and 90
        ((10, 490, 500), 0.4, [0.2, 0.4, 0.4]),  # what is above the limit would lift another above it
        ((10, 20, 70), 0.2, [1 / 3, 1 / 3, 1 / 3]),  # three times 0.2 is no whole
        ((7,), 0.5, [1.0]),
        ((1, 10**30), 0.5, [0.5, 0.5]),
    ],
)
def test_shares_are_limited_and_add_up_to_one(counts, most, shares):
    assert limited(counts, most) == pytest.approx(shares)
    assert sum(limited(counts, most)) == pytest.approx(1)


@pytest.mark.parametrize(
    ("counts", "weights"),
    [
        ((200, 250, 50), [1, 1, 1]),
        ((100, 100, 800), [1, 1, 0.25]),  # 200 of 400 count
        ((1, 1, 10**9), [1, 1, 2e-9]),
        ((5,), [1]),
        ((), []),
    ],
)
def test_examples_beyond_the_limit_count_for_less(counts, weights):
    assert limited_weights(counts, 0.5) == pytest.approx(weights)


def test_a_limit_that_does_not_bind_changes_no_bit(random_arrays):
    updates = [AdmittedUpdate(site, n, random_arrays(n)) for site, n in [("c", 7), ("a", 9), ("b", 3)]]
    assert digest(weighted_mean(updates, most=0.5)) == digest(weighted_mean(updates))
