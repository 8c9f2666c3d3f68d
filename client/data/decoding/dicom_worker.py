"""Worker processes that decode compressed DICOM frames, since some decoders end their process.

GDCM, the only decoder for lossless JPEG, answers some damaged files with abort(), and no `try` catches that.
So it runs outside the trainer. A worker that dies, or that takes over a minute for one frame, costs that frame
and not the trainer. The kernel limits its memory. An idle worker ends by itself.
"""

import atexit
import json
import os
import queue
import resource
import select
import struct
import subprocess
import sys
import threading
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt
from pydicom.pixels.decoders.base import JPEGBaseline8BitDecoder, JPEGExtended12BitDecoder
from pydicom.pixels.utils import pixel_array

from client.data.references import BadImage

MOST_MIB = 2048
"""Address space of a process that decodes; some 300 MiB of it are libraries."""
DEADLINE_S = 60.0
_IDLE_S = 20.0
_PROGRAM = "from client.data.decoding import dicom_worker; dicom_worker.serve()"
_SIZE = struct.Struct("<Q")
_HEAD = 2**16
"""Bytes that a request, or an answer without its values, may have."""


def frame(path: Path, number: int, most_bytes: int) -> npt.NDArray[Any]:
    """The values of one frame as they are stored, without a conversion of colours, in at most `most_bytes`.

    Raises BadImage.
    """
    request = json.dumps([str(path.absolute()), number]).encode()
    for _ in range(2):  # an idle worker may just have exited
        try:
            worker = _WAITING.get_nowait()
        except queue.Empty:
            worker = _Worker()
        answer = worker.answer(request, most_bytes + _HEAD)
        if answer is not None:
            _WAITING.put(worker)
            return _array(answer)
        if worker.is_late:
            raise BadImage(f"is not decoded after {DEADLINE_S:.0f} s; export it again")
    raise BadImage("ends the program that decodes it, so it is damaged; export it again")


class _Worker:
    """A worker process; it answers one request after another."""

    def __init__(self) -> None:
        self.is_late = False
        self._process = subprocess.Popen(
            [sys.executable, "-c", _PROGRAM],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,  # decoders write there what they read
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)},
        )
        _ALL.add(self)

    def answer(self, request: bytes, most_bytes: int) -> bytes | None:
        """None if the process ended before it had answered, or its answer is longer than `most_bytes`."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        clock = threading.Timer(DEADLINE_S, self._too_late)
        clock.daemon = True
        clock.start()
        try:
            _send(self._process.stdin, request)
            return _receive(self._process.stdout, most_bytes)
        except (OSError, EOFError):
            self.end()
            return None
        finally:
            clock.cancel()

    def _too_late(self) -> None:
        self.is_late = True
        self._process.kill()

    def end(self) -> None:
        self._process.kill()
        self._process.communicate()
        _ALL.discard(self)


_WAITING: queue.LifoQueue[_Worker] = queue.LifoQueue()
_ALL: set[_Worker] = set()


@atexit.register
def _end_all() -> None:
    for worker in list(_ALL):
        worker.end()


def serve() -> None:
    """Main loop of a worker: reads requests, writes arrays, ends when no request comes for a while."""
    resource.setrlimit(resource.RLIMIT_AS, (MOST_MIB * 2**20, MOST_MIB * 2**20))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    source, sink = sys.stdin.buffer, os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_WRONLY), 1)  # a decoder that prints must not do so into an answer
    for decoder in (JPEGBaseline8BitDecoder, JPEGExtended12BitDecoder):
        # Pillow transforms the colours of some JPEG by itself, and does not say of which.
        decoder.remove_plugin("pillow")
    while select.select([source], [], [], _IDLE_S)[0]:
        try:
            path, number = json.loads(_receive(source, _HEAD))
        except EOFError:
            return
        try:
            array = np.ascontiguousarray(_decode(path, number))
        except BaseException as error:
            _send(sink, json.dumps({"error": type(error).__name__}).encode())
        else:
            head = json.dumps({"dtype": array.dtype.str, "shape": array.shape}).encode()
            _send(sink, head + b"\n" + array.tobytes())


def _decode(path: str, number: int) -> npt.NDArray[Any]:
    return pixel_array(path, index=number, raw=True)


def _array(answer: bytes) -> npt.NDArray[Any]:
    head, _, values = answer.partition(b"\n")
    properties = json.loads(head)
    if "error" in properties:
        raise BadImage(f"has pixels that cannot be decoded ({properties['error']})")
    return np.frombuffer(values, properties["dtype"]).reshape(properties["shape"])


def _send(file: IO[bytes], data: bytes) -> None:
    file.write(_SIZE.pack(len(data)))
    file.write(data)
    file.flush()


def _receive(file: IO[bytes], most_bytes: int) -> bytes:
    (size,) = _SIZE.unpack(_exactly(file, _SIZE.size))
    if size > most_bytes:
        raise EOFError
    return _exactly(file, size)


def _exactly(file: IO[bytes], size: int) -> bytes:
    data = file.read(size)
    if len(data) < size:
        raise EOFError
    return data
