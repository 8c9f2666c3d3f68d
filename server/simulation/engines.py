"""Engines of a simulation: what carries a study with all its sites on this machine.

Every engine runs the same rounds and the same trainers, so the same study ends with the same bits. They differ in what
lies between the two. `processes` has all that hospitals have, and is the one to believe about faults and networks.
`inline` has nothing in between, and is the one to try many things with.

A trainer is opened by a function that the caller hands in: this package belongs to the server and knows no trainer.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol, TypeAlias

from common.errors import ConfigError

EngineName: TypeAlias = Literal["processes", "inline"]


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


Engine: TypeAlias = Processes | Inline


def engine(name: EngineName, open_trainer: Callable[[], OpenTrainer], port: int | None = None) -> Engine:
    """The engine of this name; `open_trainer` loads the sites' side, and is called if it is needed here.

    Raises ConfigError for a name or an option that it does not have.
    """
    match name:
        case "processes":
            return Processes(port)
        case "inline":
            if port is not None:
                raise ConfigError(
                    f"port {port} is for the engine `processes`; with `inline` nothing listens, leave it out"
                )
            return Inline(open_trainer())
        case _:
            raise ConfigError(f"found engine {name!r}, expected processes or inline")
