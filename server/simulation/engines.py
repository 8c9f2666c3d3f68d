"""Engines of a simulation: what carries a study with all its sites on this machine.

Every engine runs the same rounds and the same trainers, so the same study ends with the same bits. They differ in what
lies between the two. `processes` has all that hospitals have, and is the one to believe about faults and networks.
`inline` has nothing in between, and is the one to try many things with. `ray` spreads the trainers over the cores, the
GPUs and the machines that Ray has.

A trainer is opened by a function that the caller hands in: this package belongs to the server and knows no trainer.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from common.errors import ConfigError

EngineName: TypeAlias = Literal["processes", "inline", "ray"]


class HostedTrainer(Protocol):
    """The trainer of one site, in the process that asks it."""

    def answer(self, request: bytes) -> bytes:
        """One plan's bytes in, one answer's bytes out."""

    def rest(self) -> None:
        """Let go of model and images; the next plan builds them again."""


OpenTrainer: TypeAlias = Callable[[Path, Path, int], HostedTrainer]
"""The trainer of a site from its site.yaml, the file for its log, and its number on this machine.

Raises ConfigError."""


@dataclass(frozen=True)
class Processes:
    """A server, gateways and trainers as processes, joined by loopback and sockets."""

    port: int | None = None
    """Where the sites connect to. None: 9092, or a free one."""


@dataclass(frozen=True)
class Inline:
    """Server and trainers in this process; the sites work one after the other."""

    open_trainer: OpenTrainer


@dataclass(frozen=True)
class Ray:
    """Trainers in worker processes that Ray places, on this machine or on a cluster that RAY_ADDRESS names."""

    open_trainer: OpenTrainer
    workers: int
    """Sites that work at the same time."""
    gpu_share: float = 0.0
    """Part of a GPU for each worker, or several GPUs."""


Engine: TypeAlias = Processes | Inline | Ray


def engine(
    name: EngineName,
    open_trainer: Callable[[], OpenTrainer],
    port: int | None = None,
    workers: int | None = None,
    gpu_share: float | None = None,
) -> Engine:
    """The engine of this name; `open_trainer` loads the sites' side, and is called if it is needed here.

    `workers` are as many as there are CPU cores, if None. Raises ConfigError for a name or an option that an engine
    does not have.
    """
    if port is not None and name in ("inline", "ray"):
        raise ConfigError(
            f"port {port} is for the engine `processes`; with `{name}` no port of ours is opened, leave it out"
        )
    if name != "ray" and (workers is not None or gpu_share is not None):
        raise ConfigError(f"workers and gpu_share are for the engine `ray`, found {name!r}; leave them out")
    match name:
        case "processes":
            return Processes(port)
        case "inline":
            return Inline(open_trainer())
        case "ray":
            return Ray(open_trainer(), workers or os.cpu_count() or 1, gpu_share or 0.0)
        case _:
            raise ConfigError(f"found engine {name!r}, expected processes, inline or ray")
