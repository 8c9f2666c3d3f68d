"""Logs that stop growing, and say what they dropped."""

import os
from pathlib import Path

from common.bounded_log import BoundedLog, Pump, set_aside


def test_a_full_log_is_set_aside_between_two_lines(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", most_bytes=13)
    log.write(b"one\ntwo\n")  # 8 bytes
    log.write(b"thr")  # 11 bytes
    log.write(b"ee\nfour\n")  # the line that was begun is ended in the same file
    log.close()
    assert (tmp_path / "a.log.1").read_bytes() == b"one\ntwo\nthree\n"
    assert (tmp_path / "a.log").read_bytes() == b"the lines before this one are in a.log.1\nfour\n"


def test_lines_that_are_dropped_are_said_to_be(tmp_path: Path) -> None:
    path = tmp_path / "a.log"
    set_aside(path).write_bytes(bytes(3 * 2**19))
    log = BoundedLog(path, most_bytes=5, note=str.upper)
    log.write(b"one\n")
    log.write(b"two\n")
    log.close()
    assert set_aside(path).read_bytes() == b"one\n"
    first, second = path.read_text().splitlines()
    assert first == "THE LINES BEFORE THIS ONE ARE IN A.LOG.1; OLDER LINES, 1.5 MIB, WERE DROPPED"
    assert second == "two"


def test_a_log_and_the_one_before_have_twice_the_limit_at_most(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", most_bytes=1000)
    for number in range(2000):
        log.write(b"line %d\n" % number)
    log.close()
    sizes = {path.name: path.stat().st_size for path in tmp_path.iterdir()}
    assert sizes.keys() == {"a.log", "a.log.1"}
    assert max(sizes.values()) <= 1000 + 100  # the first line, on what was dropped
    kept = "".join((tmp_path / name).read_text() for name in ("a.log.1", "a.log"))
    numbers = [int(line.split()[1]) for line in kept.splitlines() if line.startswith("line")]
    assert numbers == list(range(numbers[0], 2000))  # nothing is missing in between


def test_a_line_without_an_end_is_cut_rather_than_let_grow(tmp_path: Path) -> None:
    log = BoundedLog(tmp_path / "a.log", most_bytes=10)
    for _ in range(10):
        log.write(b"aaaaa")
    log.close()
    assert all(path.stat().st_size <= 100 for path in tmp_path.iterdir())
    assert set_aside(tmp_path / "a.log").exists()


def test_a_log_is_appended_to(tmp_path: Path) -> None:
    for text in (b"one\n", b"two\n"):
        log = BoundedLog(tmp_path / "new" / "a.log", most_bytes=8)
        log.write(text)
        log.close()
    assert (tmp_path / "new" / "a.log").read_bytes() == b"one\ntwo\n"


def test_a_pump_copies_all_that_was_written_before_the_end(tmp_path: Path) -> None:
    source, sink = os.pipe()
    log = BoundedLog(tmp_path / "a.log")
    pump = Pump(source, log)
    written = b"".join(b"line %d\n" % number for number in range(50_000))  # more than a pipe holds
    with os.fdopen(sink, "wb") as file:
        file.write(written)
        file.flush()
        assert not pump.wait(0.0)
    assert pump.wait(10.0)
    os.close(source)
    log.close()
    assert (tmp_path / "a.log").read_bytes() == written
