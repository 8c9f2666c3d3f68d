"""Named arrays: arithmetic by name, comparison in sentences, files that are whole or not there."""

import errno
import os
from pathlib import Path

import numpy as np
import pytest

from common import files, weights
from common.errors import StorageError, WireError
from common.weights import TensorSpec


@pytest.fixture
def arrays():
    return {
        "stem.weight": np.array([[1.0, 2.0], [3.0, 4.0]], np.float32),
        "head.bias": np.array([0.5, -0.5], np.float64),
        "scale": np.array(2.0, np.float32),
    }


@pytest.fixture
def layout():
    return {
        "stem.weight": TensorSpec(shape=(2, 2), dtype="float32"),
        "head.bias": TensorSpec(shape=(2,), dtype="float64"),
        "scale": TensorSpec(shape=(), dtype="float32", role="statistic"),
    }


def test_a_layout_fits_the_arrays_it_describes(layout, arrays):
    assert weights.mismatch(layout, arrays) is None
    assert weights.first_difference(layout, dict(layout)) is None


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda a: a.pop("scale"), "scale is missing"),
        (lambda a: a.update(tail=np.zeros(1, np.float32)), "tail is not part of the study"),
        (
            lambda a: a.update({"head.bias": np.zeros(2, np.float32)}),
            "head.bias is float32[2], expected float64[2]",
        ),
        (
            # One number would be broadcast onto two without a word.
            lambda a: a.update({"head.bias": np.zeros(1, np.float64)}),
            "head.bias is float64[1], expected float64[2]",
        ),
        (
            lambda a: a.update(scale=np.array(2, np.int64)),
            "scale is int64[], expected float32[] statistic",
        ),
    ],
)
def test_the_first_array_that_does_not_fit_is_named(layout, arrays, change, sentence):
    change(arrays)
    assert weights.mismatch(layout, arrays) == sentence


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda other: other.pop("scale"), "scale is missing"),
        (lambda other: other.update(tail=other["scale"]), "tail is not part of the study"),
        (
            lambda other: other.update(scale=TensorSpec(shape=(), dtype="float32")),
            "scale is float32[], expected float32[] statistic",
        ),
    ],
)
def test_the_first_difference_of_two_layouts_is_named(layout, change, sentence):
    other = dict(layout)
    change(other)
    assert weights.first_difference(layout, other) == sentence


def test_several_differences_name_the_first_in_the_order_of_names(layout, arrays):
    del arrays["stem.weight"], arrays["head.bias"]
    assert weights.mismatch(layout, arrays) == "head.bias is missing"


def test_subtract_undoes_add(arrays):
    other = {name: array + 1 for name, array in arrays.items()}
    back = weights.subtract(weights.add(arrays, other), other)
    for name, array in arrays.items():
        np.testing.assert_array_equal(back[name], array)
        # NumPy's arithmetic turns an array of shape () into a bare number.
        assert isinstance(back[name], np.ndarray)
        assert (back[name].shape, back[name].dtype) == (array.shape, array.dtype)


def test_subtract_is_trained_minus_received():
    delta = weights.subtract({"w": np.array([3.0])}, {"w": np.array([1.0])})
    assert delta["w"] == [2.0]


@pytest.mark.parametrize("combine", [weights.add, weights.subtract])
def test_arrays_of_two_models_are_not_combined(arrays, combine):
    other = dict(arrays)
    del other["scale"]
    with pytest.raises(WireError, match="scale is on one side only"):
        combine(arrays, other)


@pytest.mark.parametrize("combine", [weights.add, weights.subtract])
def test_combining_leaves_the_arguments_alone(arrays, combine):
    before = {name: array.copy() for name, array in arrays.items()}
    combine(arrays, arrays)
    for name, array in before.items():
        np.testing.assert_array_equal(arrays[name], array)


def test_the_norm_is_over_all_entries_of_all_arrays():
    # sqrt(1 + 4 + 4) = 3
    assert weights.norm({"a": np.array([1.0, 2.0], np.float32), "b": np.array([[2.0]])}) == 3.0
    assert weights.norm({}) == 0.0


def test_the_norm_does_not_overflow_in_the_dtype_of_the_arrays():
    # 1e30 squared is beyond float32, the norm is not.
    assert weights.norm({"w": np.array([1e30], np.float32)}) == pytest.approx(1e30, rel=1e-6)


def test_bytes_are_counted_without_names(arrays):
    assert weights.num_bytes(arrays) == 4 * 4 + 2 * 8 + 4


def test_the_digest_does_not_depend_on_the_order_or_the_memory_layout(arrays):
    turned = {name: np.asarray(arrays[name], order="F") for name in reversed(arrays)}
    assert weights.digest(turned) == weights.digest(arrays)


@pytest.mark.parametrize(
    "change",
    [
        lambda a: a.update({"tail": a.pop("scale")}),
        lambda a: a.update({"stem.weight": a["stem.weight"].reshape(4)}),
        lambda a: a.update({"scale": a["scale"].reshape(1)}),
        lambda a: a.update({"head.bias": a["head.bias"].view(np.int64)}),
        lambda a: a.update({"head.bias": np.nextafter(a["head.bias"], 1)}),
        lambda a: a.update({"empty": np.zeros(0, np.float32)}),
    ],
    ids=["name", "shape", "scalar", "dtype", "last bit", "empty array"],
)
def test_the_digest_tells_everything_apart(arrays, change):
    other = dict(arrays)
    change(other)
    assert weights.digest(other) != weights.digest(arrays)


def test_a_file_gives_back_what_was_saved_bit_for_bit(tmp_path, arrays):
    arrays["turned"] = np.arange(6, dtype=np.float32).reshape(2, 3).T  # not contiguous
    path = tmp_path / "new" / "weights.safetensors"
    weights.save_file(path, arrays, {"study": "demo"})
    back, metadata = weights.load_file(path)
    assert metadata == {"study": "demo"}
    assert weights.digest(back) == weights.digest(arrays)
    assert {name: a.shape for name, a in back.items()} == {name: a.shape for name, a in arrays.items()}


def test_a_file_without_metadata_is_read(tmp_path, arrays):
    path = tmp_path / "weights.safetensors"
    weights.save_file(path, arrays, {})
    assert weights.load_file(path)[1] == {}


@pytest.mark.parametrize("damage", ["cut", "empty", "text", "absent", "folder"])
def test_a_file_that_is_not_whole_is_named(tmp_path, arrays, damage):
    path = tmp_path / "weights.safetensors"
    weights.save_file(path, arrays, {})
    match damage:
        case "cut":
            path.write_bytes(path.read_bytes()[:-3])
        case "empty":
            path.write_bytes(b"")
        case "text":
            path.write_text("a README that was renamed" * 10)
        case "absent":
            path.unlink()
        case _:
            path.unlink()
            path.mkdir()
    with pytest.raises(StorageError, match=r"weights.safetensors is not a whole safetensors file"):
        weights.load_file(path)


@pytest.mark.parametrize("call", ["write", "fsync", "replace"])
def test_a_full_disk_leaves_the_old_file_and_nothing_beside_it(tmp_path, monkeypatch, call):
    path = tmp_path / "round.bin"
    files.write_atomically(path, b"old")

    def full(*_args, **_kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    match call:
        case "write":
            opened = Path.open
            monkeypatch.setattr(Path, "open", lambda self, mode="r": _Full(opened(self, mode)))
        case "fsync":
            monkeypatch.setattr(os, "fsync", full)
        case _:
            monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(StorageError, match=r"round.bin could not be written .* No space left on device"):
        files.write_atomically(path, b"new")
    monkeypatch.undo()
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


class _Full:
    """A file on a disk that takes half of what is written."""

    def __init__(self, file):
        self._file = file

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._file.close()

    def write(self, content):
        self._file.write(content[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
