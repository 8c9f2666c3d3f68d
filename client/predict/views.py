"""Views of an image, over which it is classified as their mean. Weights stay as they are."""

import numpy as np

from client.data.decoding import decode
from common.errors import ConfigError

NUMBERS_OF_VIEWS = (1, 2, 4, 8)


def require_views(number: int) -> int:
    """`number`, if an image can be shown in so many views. Raises ConfigError."""
    if number not in NUMBERS_OF_VIEWS:
        raise ConfigError(
            f"found {number} views of an image, expected {', '.join(map(str, NUMBERS_OF_VIEWS))}"
        )
    return number


def views_of(square_RRC: decode.Pixels, number: int) -> list[decode.Pixels]:
    """The image, its mirror image (2), both upside down (4), and all four turned by a quarter (8)."""
    shown = [square_RRC]
    if number >= 2:
        shown += [one[:, ::-1] for one in shown]
    if number >= 4:
        shown += [one[::-1] for one in shown]
    if number >= 8:
        shown += [np.rot90(one) for one in shown]
    return shown
