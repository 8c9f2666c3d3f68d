"""Everything that is wrong with one hospital's images at once, and what its data manager reads."""

import csv
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.config import CacheConfig, Columns, CsvData, GroupedSplit
from client.data.manifest import Manifest
from client.data.readers.read import read
from client.data.simulation.synthetic import generate
from client.data.splitting.split import split
from client.data.store import ImageStore
from client.images import Preprocessing
from common.errors import SiteDataError

CLASSES = ("mel", "nv")
PREPROCESSING = Preprocessing(image_size=14, mean=(0, 0, 0), std=(1, 1, 1), interpolation="bicubic")


@pytest.fixture
def files(tmp_path) -> list[Path]:
    """Of 26 images, some of which are unusual but usable: CMYK, 16-bit grey, palette."""
    generate(tmp_path, sites=("x",), images_per_site=20, image_size=24, classes=CLASSES)
    with (tmp_path / "labels.csv").open() as file:
        found = [tmp_path / row["file"] for row in csv.DictReader(file)]
    with Image.open(found[0]) as image:
        Image.merge("CMYK", [*image.convert("CMYK").split()]).save(found[0], "JPEG")
    Image.fromarray(np.arange(0, 65536, 64, np.uint16).reshape(32, 32)).save(found[1], "PNG")
    with Image.open(found[2]) as image:
        image.convert("P").save(found[2], "PNG")
    return found


def prepared(folder: Path) -> Manifest:
    data = CsvData(labels=folder / "labels.csv", columns=Columns(group="lesion_id"))
    return split(read(data, CLASSES), GroupedSplit())


def test_unusual_images_are_usable(files, tmp_path):
    store = ImageStore.build(prepared(tmp_path), PREPROCESSING, CacheConfig(), tmp_path / "state")
    sides = ("train", "validation", "test")
    assert sum(sum(store.class_counts(side)) for side in sides) == 26


def test_wrong_lines_are_all_named_before_any_image_is_decoded(files, tmp_path):
    with (tmp_path / "labels.csv").open("a") as file:
        first = files[0].relative_to(tmp_path)
        file.write(f"images/x/gone.jpg,nv,L1,x\n{first},melanoma,L2,x\n{first},nv,L3,x\n")
    with pytest.raises(SiteDataError) as caught:
        prepared(tmp_path)
    text = str(caught.value)
    # The header and 26 images are rows 1 to 27.
    assert "row 28: " in text
    assert "no image 'images/x/gone.jpg' in" in text
    assert "row 29: class 'melanoma' is not in the study (1 image(s)), which has mel, nv" in text
    assert "row 30: " in text


def test_bad_images_are_all_named(files, tmp_path):
    files[3].write_bytes(files[3].read_bytes()[:-200])
    Image.new("RGB", (1, 1)).save(files[4])
    files[5].write_bytes(b"")
    with pytest.raises(SiteDataError) as caught:
        ImageStore.build(prepared(tmp_path), PREPROCESSING, CacheConfig(), tmp_path / "state")
    text = str(caught.value)
    assert "3 of 26 images cannot be used" in text
    assert all(files[number].name in text for number in (3, 4, 5))
    assert "truncated" in text
    assert "is 1 x 1 pixels; expected at least 8 a side" in text
