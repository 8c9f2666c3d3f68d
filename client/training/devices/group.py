"""A site's further devices, as its trainer sees them: they add to the gradient of every step.

The trainer computes on the site's first device. It alone draws order and augmentation, keeps the optimizer and adds
the penalty, so a study does not change with the number of devices. Each batch is cut in order into parts of equal
size; the gradients of the parts, each divided by the weight of the whole batch, are added in the order of the devices.
Only dropout is drawn by each device for itself.
"""

import os
import socket
import subprocess
import sys
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from multiprocessing.connection import Connection
from multiprocessing.reduction import ForkingPickler
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing  # registers how tensors of a GPU are handed over
from torch import Tensor, nn

from client.model.parameters import TensorNames
from client.training.devices import flat, messages
from client.training.devices.shared_memory import SharedMemory, new_descriptor
from client.training.hardware.prefetch import Prepared
from client.training.losses import Loss, Slopes
from common.config import LocalConfig, StudyConfig
from common.errors import DeviceLost
from common.seeds import derive


@dataclass(frozen=True)
class Step:
    """What all parts of one step share."""

    number: int
    micro_batch_size: int
    weight: float
    """Of the whole batch."""
    scale: float
    """Of fp16's losses; 1 in every other precision."""


class FurtherDevices:
    """All devices of a site but its first. Their processes start with the first round and live as long as this."""

    def __init__(
        self,
        devices: Sequence[torch.device],
        study: StudyConfig,
        weights_dir: Path | None,
        trained: frozenset[str],
    ) -> None:
        """`trained` names the tensors that change at this site in any of the study's rounds."""
        self._devices = tuple(devices)
        self._study, self._weights_dir, self._trained = study, weights_dir, trained
        self._processes: list[_Process] = []
        self._model: nn.Module | None = None

    def __len__(self) -> int:
        return len(self._devices)

    def begin(
        self,
        model: nn.Module,
        parts: TensorNames,
        local: LocalConfig,
        loss: Loss,
        weights_C: Tensor,
        seed: int,
    ) -> None:
        """Start a round of training of `model`. Raises DeviceLost, after which the next round may begin."""
        self._model = model
        with _Losses(self):
            for device in self._devices[len(self._processes) :]:
                self._processes.append(_Process(device, self._study, self._weights_dir))
            state = model.state_dict()
            now = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
            held = {name: state[name].cpu() for name in self._trained - now if name in state}
            for number, process in enumerate(self._processes, start=1):
                own_seed = derive(seed, "device", number)
                process.send(messages.Round(parts, local, loss, weights_C.cpu(), own_seed, held))
            for process in self._processes:
                process.take_flats(flat.trained(model), weights_C.dtype)

    def begin_step(self) -> None:
        """The weights of a step are as they are now; what was left of a try before is dropped."""
        assert self._model is not None, "a round has begun"
        trained = flat.trained(self._model)
        with _Losses(self):
            for process in self._processes:
                process.begin_step(trained)
            _wait_for(self._processes)

    def hand_out(self, prepared: Prepared, labels_B: Tensor, step: Step) -> tuple[int, int]:
        """Send each device its part of these images; returns the trainer's own."""
        own, *others = parts(len(labels_B), len(self._devices) + 1)
        with _Losses(self):
            for process, span in zip(self._processes, others, strict=True):
                process.hand_out(prepared, labels_B, span, step)
        return own

    def collect(self, slopes: Slopes) -> float:
        """Wait until the parts are computed on; returns their summed loss.

        Raises torch.OutOfMemoryError if a device lacks memory, DeviceLost if it has gone.
        """
        with _Losses(self):
            done = [process.collect() for process in self._processes]
        if any(part is not None and part.lacks_memory for part in done):
            raise torch.OutOfMemoryError("a further device of this site is out of memory")
        for part in done:
            if part is not None:
                slopes.add(part.slopes_B)
        return sum(part.loss_sum for part in done if part is not None)

    def add_gradients(self) -> None:
        """Add what the devices have found for this step to the gradient of the trainer's model, in their order."""
        assert self._model is not None, "a round has begun"
        trained = flat.trained(self._model)
        with _Losses(self):
            asked = [process for process in self._processes if process.has_part]
            for process in asked:
                process.send(messages.GradientWanted())
            for process in asked:
                process.add_gradient(trained)

    def close(self) -> None:
        """End the processes; a round that begins starts them again."""
        processes, self._processes = self._processes, []
        for process in processes:
            process.end()


def parts(num_images: int, num_parts: int) -> list[tuple[int, int]]:
    """Start and end of each device's part; sizes differ by one at most, and the first are the larger ones."""
    size, larger = divmod(num_images, num_parts)
    ends = [size * number + min(number, larger) for number in range(num_parts + 1)]
    return list(pairwise(ends))


class _Losses:
    """After an error it is not known what a process is at, so all are ended."""

    def __init__(self, devices: FurtherDevices) -> None:
        self._devices = devices

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is not None:
            self._devices.close()


def _wait_for(processes: Sequence["_Process"]) -> None:
    """Wait for copies from GPU to GPU, which the other process does not wait for."""
    for process in processes:
        if process.device.type == "cuda":
            torch.cuda.synchronize()
            torch.cuda.synchronize(process.device)


class _Process:
    """The process of one device, and what of its answers is still to come."""

    def __init__(self, device: torch.device, study: StudyConfig, weights_dir: Path | None) -> None:
        self.device = device
        self.has_part = False
        """Whether it computes, or has computed, on images of the step."""
        self._is_asked = False
        ours, theirs = socket.socketpair()
        descriptors = [new_descriptor("consilium-weights"), new_descriptor("consilium-images")]
        self._flats, self._images = (SharedMemory(descriptor) for descriptor in descriptors)
        home = str(Path(__file__).parents[3])
        python_path = os.pathsep.join(filter(None, [home, os.environ.get("PYTHONPATH")]))
        command = [sys.executable, "-m", "client.training.devices.worker"]
        self._process = subprocess.Popen(
            [*command, str(theirs.fileno()), *map(str, descriptors)],
            pass_fds=(theirs.fileno(), *descriptors),
            stdin=subprocess.DEVNULL,
            env={**os.environ, "PYTHONPATH": python_path},
        )
        theirs.close()
        self._connection = Connection(ours.detach())
        self.end = weakref.finalize(self, _end, self._process, self._connection, descriptors)
        folder = str(weights_dir) if weights_dir is not None else None
        self.send(messages.Study(study, folder, str(device), torch.get_num_threads()))

    def send(self, message: messages.Message) -> None:
        try:
            messages.send(self._connection, message)
        except OSError as error:
            raise self._lost() from error

    def take_flats(self, trained: Sequence[nn.Parameter], dtype: torch.dtype) -> None:
        """Where weights and gradients of this round lie."""
        ready: messages.Ready = self._receive()
        num_weights = flat.size(trained)
        assert ready.num_weights == num_weights, "both have built the model of one study"
        if ready.flats is None:
            self._weights_W, self._gradient_W = flat.in_memory(self._flats, num_weights, dtype)
        else:
            self._weights_W, self._gradient_W = ForkingPickler.loads(ready.flats)

    def begin_step(self, trained: Sequence[nn.Parameter]) -> None:
        if self._is_asked:
            self.collect()
        self.has_part = False
        flat.write(trained, self._weights_W)

    def hand_out(self, prepared: Prepared, labels_B: Tensor, span: tuple[int, int], step: Step) -> None:
        place = slice(*span)
        if span[0] == span[1]:
            return
        part = prepared.part_BCHW[place]
        is_channels_last = part.is_contiguous(memory_format=torch.channels_last) and not part.is_contiguous()
        if is_channels_last:
            part = part.permute(0, 2, 3, 1)
        shape = tuple(part.shape)
        self._images.view(shape, part.dtype).copy_(part)
        mirrored_B = prepared.mirrored_B
        self.send(
            messages.Part(
                step=step.number,
                is_first=not self.has_part,
                micro_batch_size=step.micro_batch_size,
                weight=step.weight,
                scale=step.scale,
                shape=shape,
                is_channels_last=is_channels_last,
                dtype=part.dtype,
                labels_B=labels_B[place].clone(),
                mirrored_B=None if mirrored_B is None else mirrored_B[place].clone(),
                finishing=prepared.finishing,
            )
        )
        self.has_part = self._is_asked = True

    def collect(self) -> messages.Done | None:
        """What became of the last part; None if there was none."""
        if not self._is_asked:
            return None
        done: messages.Done = self._receive()
        self._is_asked = False
        return done

    def add_gradient(self, trained: Sequence[nn.Parameter]) -> None:
        gradient: messages.Gradient = self._receive()
        flat.add_gradients(self._gradient_W, trained, gradient.without)

    def _receive(self) -> Any:
        try:
            message = messages.receive(self._connection)
        except (EOFError, OSError) as error:
            raise self._lost() from error
        if isinstance(message, messages.Broken):
            raise DeviceLost(
                f"the process of this site's device {self.device} could not go on ({message.error}). The round has "
                "failed here; the next one starts the process again."
            )
        return message

    def _lost(self) -> DeviceLost:
        try:
            code = self._process.wait(timeout=5)
            how = f"was ended by signal {-code}" if code < 0 else f"ended with {code}"
        except subprocess.TimeoutExpired:
            how = "closed its connection"
        return DeviceLost(
            f"the process of this site's device {self.device} {how}, expected it to compute its part of a batch. The "
            "round has failed here; the next one starts the process again. See this log, and the system's for a lack "
            "of memory; `device` with one entry in site.yaml does without it."
        )


def _end(process: subprocess.Popen[bytes], connection: Connection, descriptors: Sequence[int]) -> None:
    connection.close()
    process.kill()  # it keeps nothing that could be lost
    process.wait()
    for descriptor in descriptors:
        os.close(descriptor)
