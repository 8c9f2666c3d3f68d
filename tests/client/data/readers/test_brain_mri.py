"""Brain-tumour MRI folders: two ways of naming, one set of classes."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from client.config import BrainMriData, ColumnSplit
from client.data.readers import brain_mri, read
from client.data.splitting.split import split


@pytest.mark.parametrize(
    "names",
    [
        ("glioma", "meningioma", "notumor", "pituitary"),
        ("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"),
    ],
)
def test_both_sets_have_the_same_classes_and_their_own_split(names, tmp_path: Path) -> None:
    for side, count in (("Training", 3), ("Testing", 1)):
        for name in names:
            folder = tmp_path / side / name
            folder.mkdir(parents=True)
            for number in range(count):
                Image.fromarray(np.full((16, 16), 9 * number, np.uint8)).save(folder / f"{number}.jpg")
    found = split(read.read(BrainMriData(root=tmp_path), brain_mri.CLASSES), ColumnSplit())
    assert found.class_counts("train") == (3, 3, 3, 3)
    assert found.class_counts("test") == (1, 1, 1, 1)
    assert {row.group for row in found.rows} == {None}  # whose head it is, nobody knows
