"""A trainer among others in one process: a simulated site that shares a Python with its neighbours and the server.

In a hospital a trainer has a process of its own. Here its answers must not depend on who else computes in the process,
nor change what the others compute. So what torch, NumPy and Python keep for a whole process (generators of random
numbers, threads, switches of determinism) is put in place before each answer and taken away after it. What a trainer
logs goes to a file of its own, because it may name files of the site.
"""

import random
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch
from torch.backends import cudnn

from client.config import load_site
from client.data.readers import read
from client.trainer import Trainer
from client.training.hardware.device import choose_device
from common import log


@dataclass(frozen=True)
class ProcessState:
    """What torch, NumPy and Python keep once for a whole process, and a trainer may change or draw from."""

    python: Any
    numpy: Any
    torch_cpu: torch.Tensor
    torch_cuda: torch.Tensor | None
    """Of `device`; None on a CPU."""
    device: torch.device
    threads: int
    deterministic: bool
    warn_only: bool
    fills_memory: bool
    cudnn: tuple[bool, bool, bool]
    """Deterministic, benchmark, TF32."""
    tf32: bool

    @classmethod
    def now(cls, device: torch.device) -> Self:
        """As it stands."""
        return cls(
            python=random.getstate(),
            numpy=np.random.get_state(),
            torch_cpu=torch.get_rng_state(),
            torch_cuda=torch.cuda.get_rng_state(device) if device.type == "cuda" else None,
            device=device,
            threads=torch.get_num_threads(),
            deterministic=torch.are_deterministic_algorithms_enabled(),
            warn_only=torch.is_deterministic_algorithms_warn_only_enabled(),
            fills_memory=torch.utils.deterministic.fill_uninitialized_memory,  # type: ignore[attr-defined]
            cudnn=(cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32),
            tf32=torch.backends.cuda.matmul.allow_tf32,
        )

    def restore(self) -> None:
        """Put it back in place."""
        random.setstate(self.python)
        np.random.set_state(self.numpy)
        torch.set_rng_state(self.torch_cpu)
        if self.torch_cuda is not None:
            torch.cuda.set_rng_state(self.torch_cuda, self.device)
        if torch.get_num_threads() != self.threads:
            torch.set_num_threads(self.threads)
        torch.use_deterministic_algorithms(self.deterministic, warn_only=self.warn_only)
        torch.utils.deterministic.fill_uninitialized_memory = self.fills_memory  # type: ignore[attr-defined]
        cudnn.deterministic, cudnn.benchmark, cudnn.allow_tf32 = self.cudnn
        torch.backends.cuda.matmul.allow_tf32 = self.tf32


class HostedTrainer:
    """The trainer of one simulated site. Not thread-safe, nor two of them at the same time in one process."""

    def __init__(self, settings: Path, log_file: Path, turn: int = 0) -> None:
        """Read the site's settings; the trainer itself comes with the first plan. Raises ConfigError.

        `turn` is the site's number among those of this machine, which take turns over the GPUs.
        """
        self._site = load_site(settings)
        self._device = choose_device(self._site.devices[0], turn)
        self._log_file, self._turn = log_file, turn
        self._trainer: Trainer | None = None
        self._inside: ProcessState | None = None

    def answer(self, request: bytes) -> bytes:
        """One plan's bytes in, one answer's bytes out, as `Trainer.answer`. Raises ConfigError, StorageError."""
        outside = ProcessState.now(self._device)
        with ExitStack() as stack:
            stack.callback(outside.restore)
            stack.enter_context(log.only_to(self._log_file))
            stack.enter_context(read.reading_once())
            if self._inside is None:
                _as_in_a_new_process(self._device)
            else:
                self._inside.restore()
            if self._trainer is None:
                self._trainer = Trainer(self._site, turn=self._turn)
            reply = self._trainer.answer(request)
            self._inside = ProcessState.now(self._device)
        return reply

    def audit_head(self) -> str:
        """Hash of the audit log's last line; empty before the first answer."""
        return "" if self._trainer is None else self._trainer.audit_head()

    def rest(self) -> None:
        """Let go of model and images. The next plan finds a trainer that was started again."""
        self._trainer, self._inside = None, None


def _as_in_a_new_process(device: torch.device) -> None:
    """The generators as they are when a program starts; the seed of Python's and NumPy's is 0 there."""
    random.seed(0)
    np.random.seed(0)
    fresh = torch.Generator()
    torch.set_rng_state(fresh.get_state())
    if device.type == "cuda":
        torch.cuda.set_rng_state(torch.Generator(device).get_state(), device)
