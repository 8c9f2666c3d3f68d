"""Sites behind Flower: sends plans, yields each answer as it arrives, and never waits without a deadline.

Flower's own `send_and_receive` polls every 3 s and returns all replies at the end. Here each answer is yielded
when it arrives, so the server's log shows a site as soon as it is done. The SuperLink announces answers
(`server/transport/hub.py`). Weights go through files that are written once for all sites
(`server/transport/weight_files.py`). Sites are known by the name under which their key was enrolled, not by the name
in their answers.
"""

import time
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Protocol

from flwr.app import ArrayRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from common import log, wire
from common.errors import WireError
from common.lazy_arrays import Stored
from common.weights import Arrays, num_bytes
from common.wire import codec, flower_codec
from common.wire.gateway_calls import INLINE_BYTES
from server.rounds.failures import noticed
from server.rounds.sites import Deadline, Reply
from server.storage.audit_heads import AuditHeads
from server.transport.weight_files import MOST_BYTES, WeightFiles

FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0
"""Pause between two polls for answers that are not announced. On a small machine a poll takes CPU time from the
trainers, so the pause grows with the wait: an answer is seen at most 5 % late."""
LATE_S = 60.0
"""Time after a deadline in which an answer still arrives, and is logged as late. Not longer: until then a plan
may also reach a site that reconnects, which then works in vain."""
_NODE_UNAVAILABLE = 5
"""Flower's code for a site without a heartbeat; Flower takes up to 60 s to notice."""
ONLINE_S = 10.0
"""Pause between two checks of the connections."""
PROBE_S = 20.0
"""Time without an answer after which a site is probed. Flower delivers a message to a gateway once: a gateway
that is killed and restarted has lost it, and no error says so."""


SPARE_BYTES = 64 * 2**20
"""Bytes that an answer may have beyond twice the study's weights."""


class Announcements(Protocol):
    """Says which messages have been answered."""

    def wait(self, waited_s: float, left_s: float) -> set[str] | None:
        """Wait for answers, at most `left_s` seconds, after a wait of `waited_s` so far.

        Returns the ids of answered messages; None where all have to be looked at.
        """


class Polling:
    """No announcements: all messages are looked at after a pause."""

    def wait(self, waited_s: float, left_s: float) -> set[str] | None:
        time.sleep(min(max(FIRST_POLL_S, 0.05 * waited_s), LONGEST_POLL_S, left_s))
        return None


@dataclass(frozen=True)
class _Sent:
    """A plan that was sent and whose answer may still arrive."""

    plan: wire.Plan
    expires: float
    file: str | None = None
    """Name of the file with its arrays, if they are beside the message."""


@dataclass
class _Encodings:
    """Arrays of plans, encoded once for all sites that get them."""

    files: WeightFiles | None
    _made: dict[int, ArrayRecord | Path] = field(default_factory=dict)

    def of(self, arrays: Arrays) -> ArrayRecord | Path:
        """A record that is part of the message, or the path of a file."""
        key = id(arrays)
        if key not in self._made:
            if self.files is None or num_bytes(arrays) <= INLINE_BYTES:
                self._made[key] = flower_codec.array_record(arrays)
            else:
                self._made[key] = self.files.share(partial(codec.save_arrays, arrays))
        return self._made[key]

    def close(self) -> None:
        """Remove the shared files; the links of the sites stay."""
        for made in self._made.values():
            if isinstance(made, Path):
                made.unlink()


@dataclass(frozen=True)
class FlowerSites:
    """The enrolled sites behind Flower's SuperLink."""

    grid: Grid
    node_ids: Mapping[str, int]
    announcements: Announcements = field(default_factory=Polling)
    files: WeightFiles | None = None
    """None: arrays travel within Flower's messages."""
    audit_heads: AuditHeads | None = None
    """Keeps the signed heads of the sites' audit logs; None: they are not kept."""
    _sent: dict[str, _Sent] = field(default_factory=dict)
    """Sent plans by Flower's message id, those of earlier rounds included."""

    def online(self) -> set[str]:
        """Names of the enrolled sites that are connected now."""
        connected = set(self.grid.get_node_ids())
        return {site for site, node_id in self.node_ids.items() if node_id in connected}

    def ask(self, plans: Mapping[str, wire.Plan], deadline: Deadline) -> Iterator[Reply]:
        """Send each site its plan and yield the replies in the order in which they come.

        Ends when every site has answered or the deadline has passed. The caller names the sites without an
        answer. Sites that get the same weights share one encoding of them.
        """
        started = time.monotonic()
        yield from self._send(plans, deadline, started)
        awaited = {plan.plan_id for plan in plans.values()}
        awaited &= {sent.plan.plan_id for sent in self._sent.values()}  # without those that were not taken
        watch, probes = _Watch(self, started), _Probes(self, started + _hold_s(plans))
        answered: set[str] | None = None
        while awaited:
            for message_id, sent in list(self._sent.items()):
                if answered is not None and message_id not in answered:
                    continue
                answer = self._pull(message_id, sent.plan)
                if answer is None:
                    continue
                self._forget(message_id)
                late = sent.plan.plan_id not in awaited
                awaited.discard(sent.plan.plan_id)
                yield Reply(sent.plan.site, answer, time.monotonic() - started, late)
            waited = time.monotonic() - started
            if not awaited or waited >= deadline.seconds:
                break
            silent = {site for site, plan in plans.items() if plan.plan_id in awaited}
            watch.look(silent)
            forgotten = probes.look(silent - watch.gone)
            yield from self._send({site: plans[site] for site in forgotten}, deadline, started)
            answered = self.announcements.wait(waited, deadline.seconds - waited)
        for message_id, sent in list(self._sent.items()):
            if sent.expires < time.monotonic():
                self._forget(message_id)

    def _send(self, plans: Mapping[str, wire.Plan], deadline: Deadline, started: float) -> Iterator[Reply]:
        """Push every plan; a site whose plan Flower does not take has failed at once."""
        encodings, ttl = _Encodings(self.files), deadline.seconds + LATE_S
        try:
            for site, plan in plans.items():
                encoded, file = encodings.of(wire.arrays_of(plan)), None
                if isinstance(encoded, Path):
                    file, content = self._offer(site, plan, encoded)
                else:
                    content = flower_codec.to_records(plan, encoded)
                message_id = self.push(site, content, plan.plan_id, ttl)
                if message_id:
                    self._sent[message_id] = _Sent(_without_arrays(plan), time.monotonic() + ttl, file)
                else:
                    self._take_back(site, file)
                    reason = (
                        "Flower did not take the plan for this site; was its key revoked, or is it too large?"
                    )
                    yield Reply(site, noticed(plan, "unreachable", reason), time.monotonic() - started)
        finally:
            encodings.close()

    def _offer(self, site: str, plan: wire.Plan, shared: Path) -> tuple[str, RecordDict]:
        """Offer a file of arrays to a site; returns its name and the message that names it."""
        assert self.files is not None, "only WeightFiles make paths"
        node, size = self.node_ids[site], shared.stat().st_size
        most = MOST_BYTES
        if isinstance(plan, wire.RoundPlan):
            # A change has one byte for a number that an answer may give in four.
            most = (2 if plan.base is None else 8) * size + SPARE_BYTES
        self.files.limit(node, most)
        name = self.files.offer(node, shared)
        return name, flower_codec.Beside(codec.header_of(plan), name, size).records()

    def _forget(self, message_id: str) -> None:
        sent = self._sent.pop(message_id)
        self._take_back(sent.plan.site, sent.file)

    def _take_back(self, site: str, file: str | None) -> None:
        if self.files is not None and file is not None:
            self.files.remove(self.node_ids[site], file)

    def push(self, site: str, content: RecordDict, group: str, ttl: float) -> str | None:
        """Give one message to Flower; returns its id, None if Flower did not take it.

        One push a message: a batch would hold the weights once per site in one request.
        """
        message = Message(
            content,
            dst_node_id=self.node_ids[site],
            message_type=MessageType.QUERY,
            ttl=ttl,
            group_id=group,
        )
        return next(iter(self.grid.push_messages([message])), None) or None

    def _pull(self, message_id: str, plan: wire.Plan) -> wire.Answer | None:
        """The site's answer, None if it has not come yet.

        One pull per site: Flower reads all messages of a pull before it returns any, so one unreadable answer
        would lose the answers of all sites.
        """
        try:
            messages = list(self.grid.pull_messages([message_id]))
        except Exception as error:  # Flower raises many kinds for a message it cannot read
            log.logger.exception("the answer of %s cannot be read", plan.site)
            return noticed(plan, "message", f"Flower cannot read the answer ({type(error).__name__})")
        return self._answer(messages[0], plan) if messages else None

    def _answer(self, message: Message, plan: wire.Plan) -> wire.Answer:
        """The site's answer. A message that is no answer becomes a Failure of that site."""
        if message.has_error():
            code = message.error.code
            reason = f"the plan did not get through, Flower reports error {code}"
            return noticed(
                plan, "unreachable", "its gateway is not connected" if code == _NODE_UNAVAILABLE else reason
            )
        try:
            answer = self._decode(message.content, plan.site)
        except WireError as error:
            return noticed(plan, "message", str(error))
        signed = flower_codec.signed_head(message.content)
        # A gateway that could not reach its trainer has no head to send.
        if self.audit_heads is not None and (signed is not None or not isinstance(answer, wire.Failure)):
            self.audit_heads.keep(plan.site, plan.plan_id, signed)
        if isinstance(answer, wire.Plan):
            return noticed(plan, "message", "the site answered with a plan")
        if answer.site != plan.site:
            return noticed(plan, "message", f"the site answered as {answer.site!r}")
        return answer

    def _decode(self, content: RecordDict, site: str) -> wire.Plan | wire.Answer:
        """The message, from its records or the file that they name. Raises WireError."""
        apart = flower_codec.beside(content)
        if apart is None:
            return flower_codec.from_records(content)
        if self.files is None:
            raise WireError("the answer names a file, and this server takes none")
        path = self.files.take(self.node_ids[site], apart.name)
        try:
            message = codec.from_file(path)
        except BaseException:
            path.unlink()
            raise
        # The file goes when nothing holds the arrays any more: updates of a round stay on disk, not in memory.
        arrays = wire.arrays_of(message)
        if isinstance(arrays, Stored):
            weakref.finalize(arrays, path.unlink, missing_ok=True)
        else:
            path.unlink()
        return message


@dataclass
class _Watch:
    """Logs when an awaited site loses its connection, and when it is connected again."""

    fleet: FlowerSites
    started: float
    gone: set[str] = field(default_factory=set)
    looked: float | None = None

    def look(self, awaited: set[str]) -> None:
        now = time.monotonic()
        if self.looked is not None and now - self.looked < ONLINE_S:
            return
        self.looked = now
        offline = awaited - self.fleet.online()
        for site in sorted(offline - self.gone):
            log.warn(f"{site} is not connected; its answer is awaited", site=site)
        for site in sorted((self.gone - offline) & awaited):
            log.event(f"{site} is connected again", site=site)
        self.gone = offline


@dataclass
class _Probes:
    """Finds sites that have forgotten their plan."""

    fleet: FlowerSites
    asked: float
    """Time at which the plans, or the last probes, were sent."""
    out: dict[str, str] = field(default_factory=dict)
    """Sites by the message id of their probe."""
    idle: set[str] = field(default_factory=set)
    """Sites that answered a probe; the answer to their plan has one more poll to arrive in."""

    def look(self, silent: set[str]) -> list[str]:
        """Sites of `silent` that are idle and have not answered their plan."""
        forgotten = sorted(self.idle & silent)
        for site in forgotten:
            log.warn(
                f"{site} has lost its plan, as a gateway does that was restarted; it is sent again", site=site
            )
        self.idle = set()
        for message_id in list(self.out):
            for message in self.fleet.grid.pull_messages([message_id]):
                site = self.out.pop(message_id)
                if not message.has_error():  # an error is Flower's answer for a site that is not connected
                    self.idle.add(site)
        now = time.monotonic()
        if now - self.asked >= PROBE_S:
            self.asked = now
            for site in sorted(silent - set(self.out.values())):
                probe_id = self.fleet.push(site, flower_codec.probe(), "probe", ttl=3600.0)
                if probe_id:
                    self.out[probe_id] = site
        return forgotten


def _hold_s(plans: Mapping[str, wire.Plan]) -> float:
    """Seconds for which sites may hold their answers back; until then silence means nothing."""
    return max((plan.hold_s for plan in plans.values() if isinstance(plan, wire.ApprovalPlan)), default=0.0)


def _without_arrays(plan: wire.Plan) -> wire.Plan:
    """`plan` without its arrays: weights of an earlier round are not kept for an answer that may still come."""
    return plan.model_copy(update={plan.ARRAYS: {}}) if plan.ARRAYS else plan
