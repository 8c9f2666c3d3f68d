"""Files of decoded images: what is damaged, two processes at once, and one that is killed."""

import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from client.data import image_cache
from common.errors import StorageError
from tests.places import ROOT

SHAPE = (70, 2, 2, 3)  # two portions of what is verified together, 64 and 6
LARGE = 2**20
IMAGES = np.arange(70 * 12, dtype=np.int64).astype(np.uint8).reshape(SHAPE)
NUM_BYTES = 70 * 12 + 70 * 4 + 52  # pixels, a checksum an image, and the tail


def images() -> Iterator[np.ndarray]:
    return iter(IMAGES)


def nobody_decodes() -> Iterator[np.ndarray]:
    raise AssertionError("these images are there already")


def keep(folder: Path, source: Callable[[], Iterator[np.ndarray]] = images) -> np.ndarray:
    return image_cache.keep(folder, "a", SHAPE, source, LARGE, num_threads=1)


def test_what_was_kept_is_found_and_not_decoded_again(tmp_path):
    assert np.array_equal(keep(tmp_path), IMAGES)
    assert np.array_equal(keep(tmp_path, nobody_decodes), IMAGES)
    assert [(path.name, path.stat().st_size) for path in tmp_path.iterdir()] == [("a.rgb", NUM_BYTES)]
    assert (tmp_path / "a.rgb").stat().st_mode & 0o077 == 0  # patients' images


def flip_a_bit(data: bytes, place: int) -> bytes:
    return data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda data: b"", "has 0 bytes, expected 1,172"),
        (lambda data: data[:-1], "has 1,171 bytes, expected 1,172"),
        (lambda data: data + b"x", "has 1,173 bytes"),
        (lambda data: flip_a_bit(data, 0), r"is damaged in 1 image\(s\)"),
        (lambda data: flip_a_bit(data, 70 * 12 - 1), r"is damaged in 1 image\(s\)"),
        (lambda data: data[: 12 * 30] + bytes(12 * 2) + data[12 * 32 :], r"is damaged in 2 image\(s\)"),
        (lambda data: flip_a_bit(data, 70 * 12), "its end is damaged"),
        (lambda data: flip_a_bit(data, NUM_BYTES - 1), "its end is damaged"),
        (lambda data: data[: 12 * 30].ljust(NUM_BYTES, b"\0"), "was never finished"),
        (lambda data: bytes(NUM_BYTES), "was never finished"),
    ],
)
def test_a_damaged_file_is_detected_and_made_again(damage, said, tmp_path, caplog):
    keep(tmp_path)
    path = tmp_path / "a.rgb"
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    with caplog.at_level(logging.WARNING, "consilium"):
        assert np.array_equal(keep(tmp_path), IMAGES)
    (record,) = caplog.records
    assert re.search(said, record.message)
    assert "made again" in record.message
    assert path.read_bytes() == whole


def test_a_file_of_another_shape_is_not_taken_though_it_has_as_many_bytes(tmp_path):
    keep(tmp_path)
    other = IMAGES.reshape(70, 1, 4, 3)
    found = image_cache.keep(tmp_path, "a", other.shape, lambda: iter(other), LARGE)
    assert np.array_equal(found, other)


def test_the_longest_unused_files_make_room(tmp_path):
    for age, name in enumerate(("old", "used", "new")):
        image_cache.keep(tmp_path, name, SHAPE, images, LARGE)
        os.utime(tmp_path / f"{name}.rgb", (age, age))
    image_cache.keep(tmp_path, "used", SHAPE, nobody_decodes, LARGE)
    # Room for three, one of which is the new one.
    image_cache.keep(tmp_path, "a", SHAPE, images, 3 * NUM_BYTES)
    assert {path.name for path in tmp_path.iterdir()} == {"a.rgb", "used.rgb", "new.rgb"}


def test_what_breaks_off_leaves_nothing(tmp_path):
    def breaks() -> Iterator[np.ndarray]:
        yield IMAGES[0]
        raise KeyError("a broken image")

    with pytest.raises(KeyError):
        keep(tmp_path, breaks)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_said_before_anything_is_decoded(tmp_path, monkeypatch):
    def full(*_: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(
        StorageError, match=r"could not be written to .*: No space left on device\. Free some"
    ):
        keep(tmp_path, nobody_decodes)
    assert list(tmp_path.iterdir()) == []


# --- real processes ----------------------------------------------------------------------------

OTHER = """
import sys
from pathlib import Path
import numpy as np
from client.data import image_cache

def images():
    for number in range(70):
        if number == 40:
            print("half way", flush=True)
            sys.stdin.readline()
        yield np.full((2, 2, 3), number, np.uint8)

found = image_cache.keep(Path(sys.argv[1]), sys.argv[2], (70, 2, 2, 3), images, 2**20)
print(found[69, 0, 0, 0], flush=True)
sys.stdin.readline()
"""


class Other:
    """Another process, which stops half way through keeping images and waits to be told to go on."""

    def __init__(self, folder: Path, name: str = "a") -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", OTHER, str(folder), name],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=ROOT,
        )  # fmt: skip

    def says(self) -> str:
        assert self._process.stdout is not None
        return self._process.stdout.readline().strip()

    def goes_on(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.write("\n")
        self._process.stdin.flush()

    def is_killed(self) -> None:
        self._process.send_signal(signal.SIGKILL)
        self._process.wait()

    def __enter__(self) -> "Other":
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.communicate()


class Waiting(logging.Handler):
    """Set when this process has said that it waits for another."""

    def __init__(self) -> None:
        super().__init__()
        self.seen = threading.Event()

    def emit(self, record: logging.LogRecord) -> None:
        if "waiting for it" in record.getMessage():
            self.seen.set()


@pytest.fixture
def waiting(caplog: pytest.LogCaptureFixture) -> Iterator[threading.Event]:
    handler = Waiting()
    logging.getLogger("consilium").addHandler(handler)
    with caplog.at_level(logging.INFO, "consilium"):
        yield handler.seen
    logging.getLogger("consilium").removeHandler(handler)


def in_a_thread(folder: Path, source: Callable[[], Iterator[np.ndarray]]) -> Callable[[], np.ndarray]:
    """Begins to keep; what it returns waits for the images."""
    found: list[np.ndarray] = []
    thread = threading.Thread(target=lambda: found.append(keep(folder, source)))
    thread.start()

    def images() -> np.ndarray:
        thread.join(60)
        return found[0]

    return images


def test_a_second_process_waits_for_the_first_and_takes_what_it_made(tmp_path, waiting):
    with Other(tmp_path) as first:
        assert first.says() == "half way"
        second = in_a_thread(tmp_path, nobody_decodes)
        assert waiting.wait(60)
        first.goes_on()
        assert first.says() == "69"
        assert second()[:, 0, 0, 0].tolist() == list(range(70))  # while the first still has it in use
    assert [path.name for path in tmp_path.iterdir()] == ["a.rgb"]


def test_when_the_first_is_killed_the_second_decodes(tmp_path, waiting):
    with Other(tmp_path) as first:
        assert first.says() == "half way"
        second = in_a_thread(tmp_path, images)
        assert waiting.wait(60)
        first.is_killed()
        assert np.array_equal(second(), IMAGES)
    assert [path.name for path in tmp_path.iterdir()] == ["a.rgb"]


def test_room_is_made_of_what_the_dead_left_and_not_of_what_the_living_write(tmp_path):
    with Other(tmp_path, "dead") as dead, Other(tmp_path, "living") as living:
        assert (dead.says(), living.says()) == ("half way", "half way")
        dead.is_killed()
        assert {path.name for path in tmp_path.iterdir()} == {"dead.partial", "living.partial"}
        keep(tmp_path)
        assert {path.name for path in tmp_path.iterdir()} == {"a.rgb", "living.partial"}
        living.goes_on()
        assert living.says() == "69"
    assert {path.name for path in tmp_path.iterdir()} == {"a.rgb", "living.rgb"}


def test_a_process_that_writes_nothing_for_an_hour_is_not_waited_for(tmp_path):
    with Other(tmp_path) as first:
        assert first.says() == "half way"
        os.utime(tmp_path / "a.partial", (1, 1))
        with pytest.raises(StorageError, match=r"has written nothing for .* minutes; end it"):
            keep(tmp_path, nobody_decodes)
        assert (tmp_path / "a.partial").exists()
