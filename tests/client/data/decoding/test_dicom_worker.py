"""Decoders that end their process, hang or fill the memory, in the process where they may do so."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from client.data.decoding import dicom_worker
from client.data.references import BadImage

PROGRAM = """
import os, threading
import numpy as np
from client.data.decoding import dicom_worker
dicom_worker._decode = lambda path, number: {what}
dicom_worker.serve()
"""
MIB = 2**20


@pytest.fixture(autouse=True)
def _no_process_is_left() -> Iterator[None]:
    def clear() -> None:
        while not dicom_worker._WAITING.empty():
            dicom_worker._WAITING.get_nowait().end()

    clear()
    yield
    clear()


@pytest.fixture
def decodes(monkeypatch: pytest.MonkeyPatch):
    """`decodes("np.ones(4)")`: what the process answers from now on."""
    return lambda what: monkeypatch.setattr(dicom_worker, "_PROGRAM", PROGRAM.format(what=what))


def frame(most_bytes: int = MIB) -> np.ndarray:
    return dicom_worker.frame(Path("a.dcm"), 3, most_bytes)


def test_values_come_back_as_they_are_and_one_process_serves_all(decodes):
    decodes("np.array([[number, os.getpid()]], '>i4')")
    first, second = frame(), frame()
    assert first.dtype == np.dtype(">i4")
    assert first.shape == (1, 2)
    assert first[0, 0] == 3
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("what", "said"),
    [
        ("os.abort()", "ends the program that decodes it"),
        ("np.ones(2**21, np.uint8)", "ends the program"),  # more than was allowed to come back
        ("print('no answer', flush=True) or np.ones(2**32, np.uint8)", r"cannot be decoded \(MemoryError\)"),
    ],
)
def test_what_a_decoder_does_costs_the_frame_only(what, said, decodes):
    decodes(what)
    with pytest.raises(BadImage, match=said):
        frame()


def test_a_frame_that_takes_for_ever_is_given_up(decodes, monkeypatch):
    decodes("threading.Event().wait()")
    monkeypatch.setattr(dicom_worker, "DEADLINE_S", 0.1)
    with pytest.raises(BadImage, match="is not decoded after 0 s"):
        frame()
    assert set() == dicom_worker._ALL


def test_a_process_that_went_home_is_replaced(decodes):
    decodes("np.ones(1)")
    assert frame() == 1  # in a new process, for none is left
    dicom_worker._WAITING.queue[0]._process.kill()
    assert frame() == 1
