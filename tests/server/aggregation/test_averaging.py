"""Averages of rounds, and weights of sites, on numbers worked out by hand."""

import numpy as np

from common.config import ExponentialAverage, LastRounds
from common.weights import Arrays
from server.aggregation.averaging import next_average
from server.aggregation.site_weights import site_weights

COUNTS = {"north": (90, 10, 0), "south": (10, 0, 0), "none": (0, 0, 0), "west": (100, 0, 5)}


def averages(config: ExponentialAverage | LastRounds, values: list[float]) -> list[float | None]:
    average: Arrays = {}
    found = []
    for number, value in enumerate(values, start=1):
        average = next_average(config, average, {"w": np.array([value], np.float32)}, number, len(values))
        found.append(float(average["w"][0]) if average else None)
    return found


def test_the_mean_of_the_last_rounds_begins_with_the_first_of_them() -> None:
    assert averages(LastRounds(rounds=3), [8, 1, 2, 6]) == [None, 1, 1.5, 3]
    assert averages(LastRounds(rounds=9), [8, 2]) == [8, 5]


def test_an_exponential_mean_forgets() -> None:
    assert averages(ExponentialAverage(decay=0.75), [8, 0, 4]) == [8, 6, 5.5]


def test_sites_weigh_by_their_images_or_all_alike() -> None:
    assert site_weights("images", COUNTS) == {"north": 100, "south": 10, "west": 105}
    assert site_weights("equal", COUNTS) == {"north": 1, "south": 1, "west": 1}


def test_by_classes_a_site_with_the_only_images_of_a_class_has_its_whole_weight() -> None:
    # 90 of 200 and all of the second class; 10 of 200; 100 of 200 and all of the third.
    weights = site_weights("classes", COUNTS)
    assert weights == {"north": 1_450_000, "south": 50_000, "west": 1_500_000}
