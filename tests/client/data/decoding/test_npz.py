"""MedMNIST: rows, pixels, and archives that would fill the memory."""

import zipfile
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from client.config import ColumnSplit, MedMnistData
from client.data.decoding import npz
from client.data.decoding.decode import decode
from client.data.readers import read
from client.data.references import BadImage, NpzEntry
from client.data.splitting.split import split
from common.errors import SiteDataError


def medmnist(path: Path, shape: tuple[int, ...] = (28, 28, 3), **arrays: np.ndarray) -> Path:
    """6 images to train, 2 to validate, 3 to test; image n of a side is of one grey, 10 n."""
    found = {}
    for side, count in (("train", 6), ("val", 2), ("test", 3)):
        greys = 10 * np.arange(count, dtype=np.uint8)
        found[f"{side}_images"] = np.broadcast_to(
            greys[:, None, None][(...,) + (None,) * (len(shape) - 2)], (count, *shape)
        )
        found[f"{side}_labels"] = (np.arange(count, dtype=np.uint8) % 2)[:, None]
    np.savez_compressed(path, **{**found, **arrays})
    return path


@pytest.mark.parametrize("shape", [(28, 28), (28, 28, 3), (64, 64, 3)])
def test_images_come_with_the_published_split_in_colour_or_grey_of_any_size(shape, tmp_path):
    data = MedMnistData(
        archive=medmnist(tmp_path / "a.npz", shape), label_map={"0": "benign", "1": "malignant"}
    )
    found = read.read(data, ("benign", "malignant"))
    assert [row.split for row in found.rows] == ["train"] * 6 + ["val"] * 2 + ["test"] * 3
    assert found.class_counts() == (6, 5)  # 3 + 1 + 2 and 3 + 1 + 1
    assert found.rows[10].source == "a.npz test_images[2]"
    assert split(found, ColumnSplit()).class_counts("test") == (2, 1)
    for row in (found.rows[3], found.rows[10], found.rows[1]):  # forwards, another array, back again
        assert set(decode(row.image, 28, "nearest").ravel()) == {10 * row.image.index}


def test_an_array_is_read_from_front_to_back_and_never_as_a_whole(tmp_path, monkeypatch):
    # 100 images, of which 4 are kept: nothing more is asked of the archive in one go than one image.
    pictures = np.arange(100, dtype=np.uint8)[:, None, None] + np.zeros((1, 28, 28), np.uint8)
    path = medmnist(tmp_path / "a.npz", (28, 28), train_images=pictures)
    asked: list[int] = []
    real = npz._exactly
    monkeypatch.setattr(npz, "_exactly", lambda file, n, dtype: asked.append(n) or real(file, n, dtype))
    monkeypatch.setattr(npz, "_KEPT", 4)
    order = [0, 1, 3, 2, 99, 97, 0]
    assert [int(decode(NpzEntry(path, "train_images", n), 28, "nearest")[0, 0, 0]) for n in order] == order
    # 0 to 99 once; 2 and 97 were still kept; the last one begins again
    assert asked == [28 * 28] * 101


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"train_images": np.zeros((6, 28, 28, 28), np.uint8)}, "has volumes in train_images"),
        ({"train_images": np.zeros((6, 28, 28, 28, 1), np.uint8)}, "has volumes in train_images"),
        ({"train_images": np.zeros((6, 28, 28), np.float32)}, "has float32 of shape"),
        ({"train_labels": np.zeros((6, 14), np.uint8)}, "one number an image"),
        ({"train_labels": np.zeros((5, 1), np.uint8)}, "6 images but 5 labels for train"),
        ({"train_labels": np.array([object()] * 6)}, "holds Python objects; save plain C-ordered arrays"),
        (
            {"train_images": np.asfortranarray(np.zeros((6, 28, 28), np.uint8))},
            "holds arrays in Fortran order",
        ),
        ({"train_images": np.zeros((6, 3, 28, 28), np.uint8)}, "with the channels before the rows"),
        ({"train_images": np.zeros((6, 28, 28), np.uint16)}, "has uint16 of shape"),
        ({"train_labels": np.full((6, 1), 0.4)}, "has float64 labels"),
        ({"train_labels": np.full((6, 1), np.nan)}, "has float64 labels"),
        ({"train_labels": np.array(["a"] * 6)}, "has <U1 labels"),
    ],
)
def test_what_is_no_set_of_flat_images_with_one_label_is_refused(arrays, said, tmp_path):
    path = medmnist(tmp_path / "a.npz", (28, 28), **arrays)
    with pytest.raises(SiteDataError, match=said):
        read.read(MedMnistData(archive=path), ("0", "1"))


@pytest.mark.parametrize(
    "labels", [[0.9999, 0, 1, 0, 1, 0], [True, False, True, False, True, False], [1, 0, 1, 0, 1, 0]]
)
def test_labels_that_are_whole_numbers_in_another_type_are_labels(labels, tmp_path):
    path = medmnist(tmp_path / "a.npz", (28, 28), train_labels=np.array(labels))
    rows = read.read(MedMnistData(archive=path), ("0", "1")).rows
    assert [row.label for row in rows[:6]] == ["1", "0", "1", "0", "1", "0"]


def test_images_without_labels_are_named(tmp_path):
    np.savez(tmp_path / "a.npz", train_images=np.zeros((2, 28, 28), np.uint8))
    with pytest.raises(SiteDataError, match="has train_images but no train_labels"):
        read.read(MedMnistData(archive=tmp_path / "a.npz"), ("0", "1"))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"<!DOCTYPE html><html>", "is a web page"),
        (b"\x93NUMPY\x01\x00", "is a single numpy array"),
        (b"", "is an empty file"),
    ],
)
def test_what_is_called_an_archive_and_is_none_is_named(data, said, tmp_path):
    (tmp_path / "a.npz").write_bytes(data)
    with pytest.raises(SiteDataError, match=said):
        read.read(MedMnistData(archive=tmp_path / "a.npz"), ("0", "1"))


def test_two_arrays_under_one_name_are_refused(tmp_path):
    path = medmnist(tmp_path / "a.npz", (28, 28))
    with pytest.warns(UserWarning, match="Duplicate name"), zipfile.ZipFile(path, "a") as archive:
        archive.writestr("train_labels.npy", archive.read("test_labels.npy"))
    with pytest.raises(SiteDataError, match="holds an array twice under one name"):
        read.read(MedMnistData(archive=path), ("0", "1"))


def test_another_archive_is_answered_with_what_it_holds(tmp_path):
    np.savez(tmp_path / "a.npz", weights=np.zeros(3))
    with pytest.raises(SiteDataError, match="holds weights; expected train_images and train_labels"):
        read.read(MedMnistData(archive=tmp_path / "a.npz"), ("0", "1"))
    with pytest.raises(SiteDataError, match=r"cannot be read as a numpy archive \(FileNotFoundError\)"):
        read.read(MedMnistData(archive=tmp_path / "b.npz"), ("0", "1"))


def bomb(path: Path, name: str, shape: tuple[int, ...], num_bytes: int) -> None:
    """An array whose header says `shape`, followed by so many zeros, which pack to nearly nothing."""
    head = BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "|u1", "fortran_order": False, "shape": shape})
    with (
        zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive,
        archive.open(f"{name}.npy", "w") as file,
    ):
        file.write(head.getvalue())
        for _ in range(num_bytes // 2**20):
            file.write(bytes(2**20))


def test_archives_that_unpack_to_gigabytes_are_refused_by_their_headers(tmp_path):
    path = tmp_path / "a.npz"
    bomb(path, "train_images", (6, 28, 28), 2**20)
    bomb(path, "train_labels", (2**40,), 2**20)
    with pytest.raises(SiteDataError, match="train_labels of 1,099,511,627,776 bytes; expected at most"):
        read.read(MedMnistData(archive=path), ("0", "1"))
    bomb(tmp_path / "b.npz", "train_images", (6, 2**20, 2**20), 2**20)
    with pytest.raises(SiteDataError, match="says 6 images of 1048576 x 1048576 pixels"):
        read.read(MedMnistData(archive=tmp_path / "b.npz"), ("0", "1"))
    bomb(tmp_path / "c.npz", "train_images", (2**40, 28, 28), 2**20)
    with pytest.raises(SiteDataError, match="says 1,099,511,627,776 images"):
        read.read(MedMnistData(archive=tmp_path / "c.npz"), ("0", "1"))


def test_a_header_that_is_said_to_be_gigabytes_long_is_not_read(tmp_path):
    with (
        zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_DEFLATED) as archive,
        archive.open("train_images.npy", "w") as file,
    ):
        file.write(b"\x93NUMPY\x02\x00" + (2**31).to_bytes(4, "little"))
    with pytest.raises(SiteDataError, match="a header of an impossible length"):
        read.read(MedMnistData(archive=tmp_path / "a.npz"), ("0", "1"))


def test_what_numpy_does_not_write_is_refused(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w", zipfile.ZIP_LZMA) as archive:
        archive.writestr("train_images.npy", bytes(100))
    with pytest.raises(SiteDataError, match="packed in another way than numpy's"):
        read.read(MedMnistData(archive=tmp_path / "a.npz"), ("0", "1"))


def test_an_image_that_is_not_there_is_refused(tmp_path):
    path = medmnist(tmp_path / "a.npz", (28, 28))
    with pytest.raises(BadImage, match="has 6 images in train_images, found no image 6"):
        decode(NpzEntry(path, "train_images", 6), 28, "nearest")
