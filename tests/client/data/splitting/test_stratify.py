import random
from collections import Counter, defaultdict
from itertools import compress, product

from hypothesis import given, settings
from hypothesis import strategies as st

from client.data.splitting.stratify import deal, deal_alone

SHARES = [(0.8, 0.2), (0.5, 0.5), (0.2,) * 5, (0.7, 0.2, 0.1)]

# Sizes of the groups of each class: each group of one class, as lesions are.
LESIONS = st.dictionaries(
    st.sampled_from("abcd"), st.lists(st.integers(1, 6), min_size=1, max_size=25), min_size=1
)


def images_of(sizes: dict[str, list[int]]) -> tuple[list[str], list[str]]:
    """Class and group of every image."""
    rows = [
        (label, f"{label}{number}")
        for label, groups in sizes.items()
        for number, size in enumerate(groups)
        for _ in range(size)
    ]
    return [label for label, _ in rows], [group for _, group in rows]


@settings(max_examples=150, deadline=None)
@given(LESIONS, st.sampled_from(SHARES), st.integers(0, 2**32 - 1))
def test_every_bin_is_within_one_group_of_its_share_of_every_class(sizes, shares, seed):
    labels, groups = images_of(sizes)
    bins = deal(labels, groups, dict.fromkeys(labels, shares), seed)
    for label, of_class in sizes.items():
        for place, share in enumerate(shares):
            got = sum(1 for name, where in zip(labels, bins, strict=True) if (name, where) == (label, place))
            assert abs(got - share * sum(of_class)) <= max(of_class) + 1e-9


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.tuples(st.sampled_from("abc"), st.integers(0, 12)), min_size=1, max_size=80),
    st.sampled_from(SHARES), st.integers(0, 99), st.randoms(use_true_random=False),
)  # fmt: skip
def test_whole_groups_move_and_the_order_of_rows_changes_nothing(rows, shares, seed, rng: random.Random):
    # Patients here have images of several classes.
    def home(of: list[tuple[str, int]]) -> dict[str, set[int]]:
        labels, groups = [label for label, _ in of], [f"P{patient}" for _, patient in of]
        found = defaultdict(set)
        dealt = deal(labels, groups, dict.fromkeys(labels, shares), seed)
        for group, place in zip(groups, dealt, strict=True):
            found[group].add(place)
        return found

    there = home(rows)
    assert all(len(places) == 1 for places in there.values())
    shuffled = rows.copy()
    rng.shuffle(shuffled)
    assert home(shuffled) == there


def test_ten_single_images_of_two_classes_are_shared_out_eight_to_two():
    labels = ["a"] * 10 + ["b"] * 10
    bins = deal(labels, [str(i) for i in range(20)], dict.fromkeys("ab", (0.8, 0.2)), seed=0)
    assert Counter(zip(labels, bins, strict=True)) == {("a", 0): 8, ("a", 1): 2, ("b", 0): 8, ("b", 1): 2}


def test_a_seed_means_the_same_on_every_machine():
    bins = deal(["a", "b"] * 6, [f"P{i}" for i in range(12)], dict.fromkeys("ab", (0.5, 0.5)), seed=7)
    assert bins == [1, 1, 0, 0, 1, 0, 0, 1, 1, 1, 0, 0]


PATIENTS = st.lists(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 5), min_size=1), min_size=2, max_size=8
)


@settings(max_examples=60, deadline=None, derandomize=True)
@given(PATIENTS, st.sampled_from([0.2, 0.3, 0.5]), st.integers(0, 99))
def test_no_class_is_further_from_its_share_than_in_the_best_split_by_more_than_a_patient(
    patients, share, seed
):
    # Patients with images of several classes; the best of all 2^8 splits is found by trying them.
    rows = [
        (label, f"P{n}") for n, of in enumerate(patients) for label, count in of.items() for _ in range(count)
    ]
    total = Counter(label for label, _ in rows)

    def furthest(tested: set[str]) -> float:
        got = Counter(label for label, patient in rows if patient in tested)
        return max(abs(got[label] - share * total[label]) for label in total)

    names = [f"P{n}" for n in range(len(patients))]
    best = min(furthest(set(compress(names, chosen))) for chosen in product((0, 1), repeat=len(names)))
    bins = deal(*map(list, zip(*rows, strict=True)), dict.fromkeys(total, (1 - share, share)), seed)
    tested = {patient for (_, patient), place in zip(rows, bins, strict=True) if place == 1}
    largest = max(max(of.values()) for of in patients)
    assert furthest(tested) <= best + largest + 1e-9


def test_a_patient_more_moves_no_other_where_each_is_drawn_by_itself():
    """Dealt by class, others change sides with it, which the promise of differential privacy does not allow for."""
    labels = [f"class {number % 3}" for number in range(300)]
    names = [f"patient {number}" for number in range(300)]
    rest = list(zip(names, deal_alone(names, (0.8, 0.2), 0, "test"), strict=True))
    dealt = deal(labels, names, dict.fromkeys(labels, (0.8, 0.2)), 0)
    num_moved = 0
    for out in range(0, 300, 10):
        fewer = [name for name in names if name != names[out]]
        alone = deal_alone(fewer, (0.8, 0.2), 0, "test")
        assert list(zip(fewer, alone, strict=True)) == [pair for pair in rest if pair[0] != names[out]]
        left = [label for number, label in enumerate(labels) if number != out]
        again = deal(left, fewer, dict.fromkeys(left, (0.8, 0.2)), 0)
        num_moved += sum(a != b for a, b in zip(again, dealt[:out] + dealt[out + 1 :], strict=True))
    assert num_moved > 0


def test_patients_drawn_by_themselves_meet_the_shares_and_stay_together():
    names = [f"patient {number // 2}" for number in range(20_000)]
    bins = deal_alone(names, (0.7, 0.2, 0.1), 3, "test")
    assert [round(bins.count(place) / len(bins), 2) for place in range(3)] == [0.7, 0.2, 0.1]
    assert bins[0::2] == bins[1::2]
    assert bins != deal_alone(names, (0.7, 0.2, 0.1), 4, "test")
    assert bins != deal_alone(names, (0.7, 0.2, 0.1), 3, "validation")
