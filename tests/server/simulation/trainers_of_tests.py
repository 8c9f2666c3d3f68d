"""Trainers that processes of their own open by name: one that waits for the test, and one that takes its process down.

Files in the folder HELD_TRAINERS are what test and trainer say to each other.
"""

import os
from pathlib import Path

from client.hosted import HostedTrainer
from common import wire
from common.polling import wait_until
from common.wire import codec

FOLDER = "HELD_TRAINERS"
_PATIENCE_S = 300.0


class Held(HostedTrainer):
    """Before round 2 it leaves a file of the study's name, with its parent's number, and waits for the file `go`."""

    def answer(self, request: bytes) -> bytes:
        plan, folder = codec.from_bytes(request), Path(os.environ[FOLDER])
        if isinstance(plan, wire.RoundPlan) and plan.round == 2:
            whole = folder / f".{plan.study.name}"
            whole.write_text(str(os.getppid()))
            whole.replace(folder / plan.study.name)
            wait_until((folder / "go").exists, _PATIENCE_S)
        return super().answer(request)


class Deadly(HostedTrainer):
    """It ends its process in the study `dies`, and in the one of a site of that name."""

    def answer(self, request: bytes) -> bytes:
        plan = codec.from_bytes(request)
        if isinstance(plan, wire.RoundPlan) and plan.study.name in ("dies", "local-dies"):
            os._exit(3)
        return super().answer(request)
