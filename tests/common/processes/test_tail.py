"""A file that grows is read by whole lines, each once."""

from pathlib import Path

import pytest

from common.bounded_log import BoundedLog
from common.processes.tail import GrowingFile, Tail


def test_each_whole_line_is_read_once(tmp_path: Path) -> None:
    path = tmp_path / "log"
    reader = GrowingFile(path)
    assert reader.read_lines() == b""
    path.write_bytes(b"one\ntw")
    assert reader.read_lines() == b"one\n"
    assert reader.read_lines() == b""
    path.write_bytes(b"one\ntwo\n")
    assert reader.read_lines() == b"two\n"


def test_a_file_that_was_started_again_is_read_from_its_beginning(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"a long first line\n")
    reader = GrowingFile(path, path.stat().st_size)
    path.write_bytes(b"short\n")
    assert reader.read_lines() == b"short\n"


def test_a_log_that_was_set_aside_is_read_to_its_end_first(tmp_path: Path) -> None:
    path = tmp_path / "log"
    log = BoundedLog(path, most_bytes=14)  # three lines
    reader = GrowingFile(path)
    log.write(b"one\n")
    assert reader.read_lines() == b"one\n"
    log.write(b"two\n")
    log.write(b"three\n")
    log.write(b"four\n")
    log.close()
    said = b"the lines before this one are in log.1\n"
    assert reader.read_lines() == b"two\nthree\n" + said + b"four\n"
    assert reader.read_lines() == b""


def test_of_a_log_that_was_set_aside_twice_what_is_left_is_read(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"one\n")
    reader = GrowingFile(path)
    reader.read_lines()
    path.replace(tmp_path / "gone")
    (tmp_path / "log.1").write_bytes(b"two\n")
    path.write_bytes(b"three\n")
    assert reader.read_lines() == b"three\n"


def test_a_tail_prints_what_it_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"an earlier start\n\xff now\n")
    assert Tail(path, len(b"an earlier start\n"))() == "\ufffd now\n"
    assert capsys.readouterr().out == "\ufffd now\n"
