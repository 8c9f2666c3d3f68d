"""A real trainer that misbehaves in the rounds that a script names.

    python -m benchmarks.faults.bad_trainer SITE.yaml SOCKET SCRIPT.json

The script says by round what to do: the name of a bad answer, or one of the things below that
happen before there is an answer.
"""

import json
import sys
from pathlib import Path

import torch

from benchmarks.faults.answers import BAD, spoiled
from benchmarks.faults.held import round_of
from client.config import load_site
from client.gateway import link
from client.trainer import Trainer
from client.training import fit
from common import log

NONSENSE, REPLAY, MEMORY = "nonsense", "replay", "out of memory"


class BadTrainer:
    """Answers like a trainer, but for the rounds in its script."""

    def __init__(self, trainer: Trainer, script: dict[int, str]) -> None:
        self._trainer, self._script = trainer, script
        self._last = b""

    def answer(self, request: bytes) -> bytes:
        number = round_of(request)
        what = self._script.get(number)
        if what is not None:
            log.warn(f"round {number}: about to be bad: {what}")
        match what:
            case None:
                self._last = self._trainer.answer(request)
                return self._last
            case _ if what in BAD:
                return spoiled(self._trainer.answer(request), what)
            case "nonsense":
                return b"\x08\x00\x00\x00\x00\x00\x00\x00nonsense"
            case "replay":
                return self._last
            case "out of memory":
                return self._without_memory(request)
        raise ValueError(f"the script names {what!r}, which is no fault")

    def _without_memory(self, request: bytes) -> bytes:
        honest = fit.fit

        def no_room(*_: object, **__: object) -> fit.TrainingResult:
            raise torch.OutOfMemoryError("CUDA out of memory while holding /data/MUELLER_ANNA_1961.jpg")

        fit.fit = no_room  # type: ignore[assignment]
        try:
            return self._trainer.answer(request)
        finally:
            fit.fit = honest


def main() -> None:
    settings, socket, script = map(Path, sys.argv[1:4])
    rounds = {int(number): what for number, what in json.loads(script.read_text()).items()}
    trainer = BadTrainer(Trainer(load_site(settings)), rounds)
    link.serve(trainer.answer, socket).wait_for_termination()


if __name__ == "__main__":
    main()
