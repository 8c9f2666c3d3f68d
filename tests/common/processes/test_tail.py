"""A file that grows is read by whole lines, each once."""

from pathlib import Path

import pytest

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


def test_a_tail_prints_what_it_returns(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"an earlier start\n\xff now\n")
    assert Tail(path, len(b"an earlier start\n"))() == "\ufffd now\n"
    assert capsys.readouterr().out == "\ufffd now\n"
