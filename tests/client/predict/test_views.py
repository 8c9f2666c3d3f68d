"""Views of an image."""

import numpy as np
import pytest

from client.predict.views import require_views, views_of
from common.errors import ConfigError


def test_views_are_all_different_and_the_first_is_the_image() -> None:
    square = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    for number in (1, 2, 4, 8):
        shown = views_of(square, number)
        assert shown[0] is square
        assert len({view.tobytes() for view in shown}) == number
    assert views_of(square, 2)[1][:, :, 0].tolist() == [[3, 0], [9, 6]]
    assert require_views(4) == 4
    with pytest.raises(ConfigError, match="found 3 views of an image, expected 1, 2, 4, 8"):
        require_views(3)
