"""A gate that holds a trainer before a round, until the script that watches opens it.

    python -m benchmarks.faults.held FOLDER trainer SITE.yaml ...

The rest is the product's own `consilium-site`; only the step into a round waits for a word. A fault is then
put into the round where it belongs, however quick or slow rounds are. Imports nothing of this package,
so that the file can also be laid into a container.
"""

import json
import os
import runpy
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FREE = 2**31
"""A number of rounds that no study has."""
_LOOK_S = 0.02


@dataclass(frozen=True)
class Gate:
    """The rounds that one trainer may work on, in a folder that both sides see."""

    folder: Path

    # --- the script's side ---------------------------------------------------------------

    def let(self, rounds: int) -> None:
        """Let the trainer work on the rounds up to `rounds`, and hold it before the next."""
        self._write("open", rounds)

    def open(self) -> None:
        """Hold the trainer no more."""
        self.let(FREE)

    def holds(self, number: int) -> bool:
        """True while the trainer has the plan of round `number` in hand, and may not work on it."""
        return self._read("held", 0) == number and self._read("open", FREE) < number

    # --- the trainer's side --------------------------------------------------------------

    def wait(self, number: int) -> None:
        """Return when round `number` may be worked on."""
        if number <= self._read("open", FREE):
            return
        self._write("held", number)
        while number > self._read("open", FREE):
            time.sleep(_LOOK_S)

    def _read(self, name: str, default: int) -> int:
        path = self.folder / name
        return int(path.read_text()) if path.exists() else default

    def _write(self, name: str, number: int) -> None:
        """Whole or not at all: the other side may read at any moment."""
        partial = self.folder / f".{name}-{os.getpid()}-{threading.get_ident()}"
        partial.write_text(str(number))
        partial.replace(self.folder / name)


def gated(answer: Callable[..., bytes], gate: Gate) -> Callable[..., bytes]:
    """A trainer's method `answer` that waits at the gate first."""

    def wait_and_answer(trainer: object, request: bytes) -> bytes:
        gate.wait(round_of(request))
        return answer(trainer, request)

    return wait_and_answer


def round_of(request: bytes) -> int:
    """The round that a plan is for; 0 for another question."""
    from common.wire import codec

    fields = json.loads(codec.split(request)[0])
    return int(fields["round"]) if fields["kind"] == "round" else 0


def main() -> None:
    from client.trainer import Trainer

    gate = Gate(Path(sys.argv.pop(1)))
    Trainer.answer = gated(Trainer.answer, gate)  # type: ignore[method-assign]
    runpy.run_module("client.cli", run_name="__main__")


if __name__ == "__main__":
    main()
