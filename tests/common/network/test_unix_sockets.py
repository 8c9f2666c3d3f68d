"""Paths of Unix sockets: 107 bytes and no more, and a short folder where there is one."""

import socket
import tempfile
from pathlib import Path

import pytest

from common.network import unix_sockets


def test_the_longest_path_allowed_is_the_longest_that_the_kernel_takes(tmp_path: Path) -> None:
    room = unix_sockets.LONGEST - len(str(tmp_path)) - 1
    fits, not_fits = tmp_path / ("x" * room), tmp_path / ("x" * (room + 1))
    assert unix_sockets.too_long(fits) is None
    with socket.socket(socket.AF_UNIX) as probe:
        probe.bind(str(fits))
    why = unix_sockets.too_long(not_fits)
    assert why is not None
    assert "has 108 bytes, and a Unix socket's may have 107" in why
    with socket.socket(socket.AF_UNIX) as probe, pytest.raises(OSError, match="too long"):
        probe.bind(str(not_fits))


def test_bytes_count_and_not_letters() -> None:
    assert unix_sockets.too_long(Path("/") / ("ü" * 53)) is None  # 1 + 2 * 53 = 107
    assert unix_sockets.too_long(Path("/") / ("ü" * 54)) is not None
    assert unix_sockets.too_long(Path("/") / ("\udcff" * 106)) is None  # bytes that are not UTF-8


def test_a_deep_folder_for_temporary_files_is_passed_by(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 90)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    folder = unix_sockets.short_folder("10.sock")
    try:
        assert unix_sockets.too_long(folder / "10.sock") is None
        assert folder.stat().st_mode & 0o777 == 0o700
        assert deep not in folder.parents
    finally:
        folder.rmdir()


def test_the_usual_folder_for_temporary_files_is_taken_if_it_is_short(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    folder = unix_sockets.short_folder("10.sock")
    folder.rmdir()
    assert folder.parent == Path("/tmp")


def test_without_any_short_folder_it_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("d" * 90)))
    monkeypatch.setattr(unix_sockets, "_SHORT_FOLDERS", ())
    with pytest.raises(OSError, match="short enough"):
        unix_sockets.short_folder("10.sock")
