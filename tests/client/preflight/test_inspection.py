"""What is noticed about one image."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.data.manifest import ImageRow
from client.data.references import PictureFile
from client.preflight.images import findings
from client.preflight.inspection import InspectedImage, inspect


def inspected(path: Path) -> InspectedImage:
    return inspect(ImageRow(PictureFile(path), "mel", None, None, "row 2"), 64)


def test_a_jpeg_that_was_cut_off_and_closed_is_worth_a_look(tmp_path: Path) -> None:
    """Decoders fill in what is missing with grey, and say so nowhere."""
    path = tmp_path / "a.jpg"
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3)).astype(np.uint8)).save(path)
    assert not inspected(path).ends_in_grey
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) * 2 // 3] + b"\xff\xd9")
    image = inspected(path)
    assert image.ends_in_grey
    (finding,) = [one for one in findings([image]) if "cut off" in one.what]
    assert (finding.rank, finding.items) == ("look", ("row 2 (a.jpg)",))


@pytest.mark.parametrize(("last", "rest"), [(128, 128), (127, 0), (0, 200)])
def test_flat_pictures_and_bars_of_another_colour_are_not_taken_for_cut_off(
    tmp_path: Path, last: int, rest: int
) -> None:
    pixels = np.full((100, 100, 3), rest, np.uint8)
    pixels[80:] = last
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert not inspected(tmp_path / "a.png").ends_in_grey
