"""Arrays that are made when they are read: from a file, or by a function."""

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load, save

from common.formats import tensors
from common.lazy_arrays import Computed, Stored

LARGEST_INDEX = 4096


@pytest.fixture
def arrays() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "b": rng.normal(size=(3, 5)).astype(np.float32),
        "a": rng.normal(size=7).astype(np.float32),
        "double": rng.normal(size=(2, 2)),
        "scalar": np.array(2.5, np.float32),
        "none": np.zeros((0, 4), np.float32),
        "bytes": np.arange(5, dtype=np.uint8),
    }


def written(path: Path, arrays: dict[str, np.ndarray], metadata: dict[str, str] | None = None) -> Path:
    with path.open("wb") as file:
        tensors.write(file, arrays, metadata)
    return path


def read(path: Path) -> Stored:
    return Stored(path, dict(tensors.places(path, LARGEST_INDEX)))


def test_a_file_has_the_bytes_that_the_library_makes(tmp_path, arrays):
    path = written(tmp_path / "own", arrays, {"note": "Grüße"})
    assert path.read_bytes() == save(arrays, {"note": "Grüße"})


def test_a_file_larger_than_one_write_is_whole(tmp_path):
    arrays = {"w": np.arange(2**20 + 1, dtype=np.int64)}  # 8 MiB and 8 bytes, written 4 MiB at a time
    path = written(tmp_path / "own", arrays)
    assert load(path.read_bytes())["w"].tolist() == arrays["w"].tolist()


def test_arrays_in_a_file_are_those_that_were_written(tmp_path, arrays):
    found = read(written(tmp_path / "own", arrays))
    assert sorted(found) == sorted(arrays)
    assert len(found) == 6
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype
        assert found[name].shape == array.shape
        assert found[name].tobytes() == array.tobytes()


def test_an_array_outlives_its_file_and_cannot_be_written_to(tmp_path, arrays):
    path = written(tmp_path / "own", arrays)
    array = read(path)["a"]
    path.unlink()
    assert array.tobytes() == arrays["a"].tobytes()
    with pytest.raises(ValueError, match="read-only"):
        array[0] = 1


def test_a_name_is_looked_up_without_reading_the_file(tmp_path, arrays):
    path = written(tmp_path / "own", arrays)
    found = read(path)
    path.unlink()
    assert "a" in found
    assert "z" not in found
    with pytest.raises(FileNotFoundError):
        found["a"]


@pytest.mark.parametrize(
    "damage",
    [
        lambda whole: whole[:-1],
        lambda whole: whole + b"0",
        lambda whole: b"",
        lambda whole: whole[:20],
        lambda whole: whole.replace(b'"F32"', b'"F99"'),
        lambda whole: whole.replace(b"[0,32]", b"[0,33]"),
        lambda whole: whole.replace(b"[2,2]", b"[2,3]"),
        lambda whole: whole.replace(b"[2,2]", b"[-2,-2]"),
        lambda whole: whole.replace(b"[2,2]", b"[2.0,2.0]"),
        lambda whole: whole.replace(b"[0,32]", b"[8,40]"),
        lambda whole: whole.replace(b"[0,32]", b'["0","3"]'),
        lambda whole: whole.replace(b'"a"', b'"b"'),  # a name that stands twice
        lambda whole: (2**40).to_bytes(8, "little") + whole[8:],
    ],
)  # fmt: skip
def test_what_is_no_whole_file_has_no_places(tmp_path, arrays, damage):
    path = written(tmp_path / "own", arrays)
    damaged = damage(path.read_bytes())
    path.write_bytes(damaged)
    with pytest.raises((ValueError, KeyError)):
        read(path)
    with pytest.raises((ValueError, KeyError)):
        tensors.from_bytes(damaged)


def test_arrays_in_bytes_are_views_of_them(arrays):
    data = save(arrays)
    found = tensors.from_bytes(data)
    assert {name: array.tobytes() for name, array in found.items()} == {
        n: a.tobytes() for n, a in arrays.items()
    }
    assert {name: (array.shape, array.dtype) for name, array in found.items()} == {
        name: (array.shape, array.dtype) for name, array in arrays.items()
    }
    assert np.shares_memory(found["a"], np.frombuffer(data, np.uint8))
    assert tensors.to_bytes(arrays) == data


def test_an_index_that_is_too_large_is_not_read(tmp_path):
    path = written(tmp_path / "own", {f"{number:0200}": np.zeros(1) for number in range(20)})
    with pytest.raises(ValueError, match="expected at most 4,096"):
        read(path)


def test_what_is_computed_is_computed_when_it_is_read_and_not_kept():
    calls = []

    def double(name: str) -> np.ndarray:
        calls.append(name)
        return np.full(2, 2.0 * len(name))

    found = Computed({"w": 1, "bias": 2}, double)
    assert (list(found), len(found), "w" in found, "z" in found) == (["w", "bias"], 2, True, False)
    assert calls == []
    assert found["bias"].tolist() == [8, 8]
    assert found["bias"].tolist() == [8, 8]
    assert calls == ["bias", "bias"]
    with pytest.raises(KeyError):
        found["z"]
