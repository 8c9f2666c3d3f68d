"""The interface between the rounds and the transport.

The rounds send plans to sites by name and get replies. Behind the interface is Flower in a real federation
(`flower_sites.FlowerSites`), and plain function calls in a simulated one. So a whole study is tested without
processes.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from typing import Protocol

from common import wire
from common.errors import WireError
from common.wire import codec
from server.rounds.failures import noticed


@dataclass(frozen=True)
class Reply:
    """One site's answer and how long it took from sending the plan, in seconds."""

    site: str
    answer: wire.Answer
    after_s: float
    late: bool = False
    """The deadline of its plan has passed."""


@dataclass
class Deadline:
    """Seconds from sending the plans until the wait ends.

    The reader of the answers may shorten it while they arrive.
    """

    seconds: float


class Sites(Protocol):
    """Enrolled sites that can be asked."""

    def online(self) -> Set[str]:
        """Names of the sites that are connected now."""

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        """Replies in the order of arrival; ends at the deadline at the latest.

        A plan with an id that was sent before is the same plan: an answer to either counts.
        """


@dataclass(frozen=True)
class InProcessSites:
    """Sites as functions from plan bytes to answer bytes, asked one after the other."""

    trainers: Mapping[str, Callable[[bytes], bytes]]

    def online(self) -> Set[str]:
        """All of them."""
        return set(self.trainers)

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:  # noqa: ARG002
        """Every site in turn; nothing can be late in one process."""
        for site, plan in plans.items():
            started = time.monotonic()
            answer: wire.Plan | wire.Answer
            try:
                answer = codec.from_bytes(self.trainers[site](codec.to_bytes(plan)))
            except WireError as error:
                answer = noticed(plan, "message", str(error))
            if isinstance(answer, wire.Plan):
                raise TypeError(f"{site} answered with a plan")
            yield Reply(site, answer, time.monotonic() - started)
