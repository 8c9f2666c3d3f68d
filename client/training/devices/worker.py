"""The process of one further device: it computes the gradient of its part of every batch.

    python -m client.training.devices.worker SOCKET WEIGHTS IMAGES    file descriptors that the trainer hands over

It holds a copy of the model, and neither images of its own nor an optimizer. It ends when the trainer does.
"""

import signal
import sys
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path

import torch
import torch.multiprocessing  # registers how tensors of a GPU are handed over
from torch import nn

from client.model import build
from client.model.parameters import freeze, train_mode
from client.training.backward import Backward, Scale, seed_dropout
from client.training.devices import flat
from client.training.devices.messages import (
    Broken,
    Done,
    Gradient,
    GradientWanted,
    Message,
    Part,
    Ready,
    Round,
    Study,
    receive,
    send,
)
from client.training.devices.shared_memory import SharedMemory
from client.training.hardware import determinism
from client.training.hardware.out_of_memory import is_out_of_memory
from client.training.hardware.precision import weights_dtype
from client.training.hardware.prefetch import Prepared
from client.training.losses import Slopes
from common.seeds import derive


class Worker:
    """Answers the trainer's messages, one after another."""

    def __init__(self, study: Study, memory: SharedMemory) -> None:
        torch.set_num_threads(study.threads)
        self._device = torch.device(study.device)
        if self._device.type == "cuda":
            torch.cuda.set_device(self._device)
        self._model = build.of_study(
            study.study, Path(study.weights_dir) if study.weights_dir else None
        ).model
        self._memory = memory

    def begin(self, begun: Round) -> Ready:
        """Make the model ready for a begun."""
        determinism.apply(begun.local.determinism)
        freeze(self._model, begun.parts)
        train_mode(self._model, begun.parts)
        dtype = weights_dtype(begun.local.precision)
        self._model.to(self._device, dtype)
        if begun.local.channels_last:
            self._model.to(memory_format=torch.channels_last)
        if begun.local.compile and self._model._compiled_call_impl is None:
            self._model.compile()
        state = self._model.state_dict()
        with torch.no_grad():
            for name, tensor in begun.held.items():
                state[name].copy_(tensor)
        self._trained = flat.trained(self._model)
        self._round = begun
        self._passes = Backward(
            model=self._model,
            local=begun.local,
            loss=begun.loss,
            weights_C=begun.weights_C.to(self._device, dtype),
            device=self._device,
            slopes=Slopes(0, self._device, by_step=False),
        )
        num_weights = flat.size(self._trained)
        if self._device.type != "cuda":
            self._weights, self._gradient = flat.in_memory(self._memory, num_weights, dtype)
            return Ready(num_weights, None)
        self._weights, self._gradient = (
            torch.zeros(num_weights, dtype=dtype, device=self._device) for _ in range(2)
        )
        torch.cuda.synchronize(self._device)
        return Ready(num_weights, bytes(ForkingPickler.dumps((self._weights, self._gradient))))

    def compute(self, part: Part, images: SharedMemory) -> Done:
        """Add the gradient of a part to that of the step."""
        if part.is_first:
            _forget_gradients(self._trained)
            flat.read(self._weights, self._trained)
            seed_dropout(derive(self._round.seed, "dropout", part.step), self._device)
        self._passes.slopes.begin()
        images_BCHW = images.view(part.shape, part.dtype)
        if part.is_channels_last:
            images_BCHW = images_BCHW.permute(0, 3, 1, 2)
        prepared = Prepared(images_BCHW, part.mirrored_B, part.finishing)
        scale = Scale(part.scale, lambda loss: loss * part.scale)
        loss_sum = torch.zeros((), dtype=torch.float64, device=self._device)
        try:
            for loss in self._passes.losses(
                prepared,
                part.labels_B,
                (0, len(part.labels_B)),
                part.micro_batch_size,
                part.weight,
                scale,
            ):
                loss_sum += loss
            return Done(float(loss_sum), self._passes.slopes.take().cpu())
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
        _forget_gradients(self._trained)
        torch.cuda.empty_cache()
        return Done(0.0, torch.zeros(0), lacks_memory=True)

    def gradient(self) -> Gradient:
        """Put the gradient of the step where the trainer reads it."""
        without = flat.write_gradients(self._trained, self._gradient)
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)  # the trainer reads it by another stream
        return Gradient(without)


def _forget_gradients(trained: list[nn.Parameter]) -> None:
    for parameter in trained:
        parameter.grad = None


def main(connection: Connection, flats: SharedMemory, images: SharedMemory) -> None:
    """Answer until the trainer has gone."""
    worker: Worker | None = None
    while True:
        try:
            message = receive(connection)
        except (EOFError, OSError):
            return
        try:
            if isinstance(message, Study):
                worker = Worker(message, flats)
                continue
            assert worker is not None, "the study comes first"
            send(connection, _answer(worker, message, images))
        except Exception as error:
            send(connection, Broken(f"{type(error).__name__}: {error}"))
            raise


def _answer(worker: Worker, message: Message, images: SharedMemory) -> Message:
    match message:
        case Round():
            return worker.begin(message)
        case Part():
            return worker.compute(message, images)
        case GradientWanted():
            return worker.gradient()
        case _:
            raise TypeError(f"found {type(message).__name__}, which is no question")


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the trainer's, with which this process ends
    socket, flats, images = (int(number) for number in sys.argv[1:])
    main(Connection(socket), SharedMemory(flats), SharedMemory(images))
