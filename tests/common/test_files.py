"""A file is whole or absent, and a record reads back as it was written."""

from pathlib import Path

import pytest

from common.errors import StorageError
from common.files import read_json, write_atomically, write_json
from common.settings import Frozen


class Point(Frozen):
    x: int


def test_a_record_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "new" / "point.json"
    assert read_json(path, Point) is None
    write_json(path, Point(x=3))
    assert read_json(path, Point) == Point(x=3)


@pytest.mark.parametrize("content", ["", '{"x": 3', '{"x": "no number"}', '{"y": 3}'])
def test_a_record_that_cannot_be_read_is_an_error_that_says_what_to_do(tmp_path: Path, content: str) -> None:
    path = tmp_path / "point.json"
    path.write_text(content)
    with pytest.raises(StorageError, match=r"point\.json cannot be read \(ValidationError\); remove it"):
        read_json(path, Point)


def test_a_file_that_cannot_be_written_leaves_the_one_before_and_nothing_beside_it(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    (folder / "inside").mkdir(parents=True)  # a folder cannot be replaced by a file
    with pytest.raises(StorageError, match="a could not be written"):
        write_atomically(folder, b"new")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_only_its_owner_reads_a_private_file(tmp_path: Path) -> None:
    write_atomically(tmp_path / "key", b"secret", private=True)
    assert (tmp_path / "key").stat().st_mode & 0o777 == 0o600


def test_a_record_with_a_key_that_stands_twice_is_not_read_in_one_of_two_ways(tmp_path: Path) -> None:
    path = tmp_path / "point.json"
    path.write_text('{"x": 1, "x": 2}')
    with pytest.raises(StorageError, match=r"point\.json cannot be read \(ValueError\); remove it"):
        read_json(path, Point)
