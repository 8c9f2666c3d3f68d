"""Weight of each training site in the mean, from the images that it enrolled with.

Weights are whole numbers, as counts of images are: the running mean adds them without rounding.
"""

from collections.abc import Mapping, Sequence
from typing import Literal, assert_never

_WHOLE = 1_000_000
"""Sum of the weights by classes of all sites, for each class that has images."""


def site_weights(
    weigh_by: Literal["images", "classes", "equal"], train_counts: Mapping[str, Sequence[int]]
) -> dict[str, int]:
    """By site with training images. `train_counts` are training images by class, by site.

    By classes a site has, of the weight of each class, its share of that class's images: a site with the only
    images of a rare class weighs as much by them as another by thousands of a common one.
    """
    counts = {site: counts for site, counts in train_counts.items() if sum(counts)}
    match weigh_by:
        case "images":
            return {site: sum(counts_C) for site, counts_C in counts.items()}
        case "equal":
            return dict.fromkeys(counts, 1)
        case "classes":
            totals_C = [sum(column) for column in zip(*counts.values(), strict=True)]
            return {
                site: max(
                    1,
                    round(
                        sum(
                            _WHOLE * count / total
                            for count, total in zip(counts_C, totals_C, strict=True)
                            if total
                        )
                    ),
                )
                for site, counts_C in counts.items()
            }
        case _:
            assert_never(weigh_by)
