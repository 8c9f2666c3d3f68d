"""What the trainer and the process of a further device say to each other, pickled, through a pair of sockets.

Both ends are the same program of the same user on the same machine, and no other process has an end of the pair.
Images, weights and gradients lie in memory that both see; here are their shapes.
"""

import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from typing import Any, TypeAlias

import torch
from torch import Tensor

from client.images import Finishing
from client.model.parameters import TensorNames
from client.training.losses import Loss
from common.config import LocalConfig, StudyConfig


@dataclass(frozen=True)
class Study:
    """The first message: which model the process builds."""

    study: StudyConfig
    weights_dir: str | None
    device: str
    threads: int


@dataclass(frozen=True)
class Round:
    """One call of `fit`. Answered by `Ready`."""

    parts: TensorNames
    local: LocalConfig
    loss: Loss
    weights_C: Tensor
    seed: int
    """Of dropout on this device in this round."""
    held: Mapping[str, Tensor]
    """Tensors that are not trained in this round, and may differ from those that were built."""


@dataclass(frozen=True)
class Ready:
    """The weights and the gradient, flat, in the order of the model."""

    num_weights: int
    flats: bytes | None
    """Both tensors on a GPU, as torch hands them from process to process. None: they are in the shared memory."""


@dataclass(frozen=True)
class Part:
    """Images of one step, which lie in the shared memory. Answered by `Done`."""

    step: int
    is_first: bool
    """Of the step: the weights are read again, and gradients begin at zero."""
    micro_batch_size: int
    weight: float
    """Of the whole batch of the step."""
    scale: float
    shape: tuple[int, ...]
    is_channels_last: bool
    """`shape` is (B, H, W, C) then, else (B, C, H, W)."""
    dtype: torch.dtype
    labels_B: Tensor
    mirrored_B: Tensor | None
    finishing: Finishing | None


@dataclass(frozen=True)
class Done:
    """A part that was computed on."""

    loss_sum: float
    slopes_B: Tensor
    lacks_memory: bool = False


@dataclass(frozen=True)
class GradientWanted:
    """After the last part of a step. Answered by `Gradient`."""


@dataclass(frozen=True)
class Gradient:
    """The gradient lies in the flat tensor now."""

    without: tuple[int, ...]
    """Places of parameters that the loss does not depend on."""


@dataclass(frozen=True)
class Broken:
    """The process could not do as it was asked, and ends."""

    error: str


Message: TypeAlias = Study | Round | Ready | Part | Done | GradientWanted | Gradient | Broken


def send(connection: Connection, message: Message) -> None:
    """Raises OSError if the other end is gone."""
    # Plain pickle copies tensors; multiprocessing's own would hand over file descriptors one by one.
    connection.send_bytes(pickle.dumps(message))


def receive(connection: Connection) -> Any:
    """The next message. Raises EOFError or OSError if the other end is gone."""
    return pickle.loads(connection.recv_bytes())
