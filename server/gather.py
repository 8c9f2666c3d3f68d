"""Plans go out, answers come back as they arrive, and no wait is without a deadline.

Flower's own `send_and_receive` polls every 3 s and hands over all replies at the end; here
each answer is yielded when it arrives, so the server's log shows a site the moment it is
done. Sites are known by the name under which their key was enrolled, never by what they
call themselves.
"""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from flwr.app import ArrayRecord, Message, MessageType
from flwr.serverapp import Grid

from common import log, wire
from common.errors import WireError
from server.sites import Reply

FIRST_POLL_S, LONGEST_POLL_S = 0.1, 2.0
"""Between two looks for answers. Each look costs the SuperLink CPU that on a small machine the
trainers lack, so the pause grows with the wait: an answer is seen at most 5 % late."""


@dataclass(frozen=True)
class Fleet:
    """The enrolled sites behind Flower's SuperLink."""

    grid: Grid
    node_ids: Mapping[str, int]

    def online(self) -> set[str]:
        """Names of the enrolled sites that are connected now."""
        connected = set(self.grid.get_node_ids())
        return {site for site, node_id in self.node_ids.items() if node_id in connected}

    def ask(self, plans: Mapping[str, wire.Plan], deadline_s: float) -> Iterator[Reply]:
        """Send each site its plan and yield the replies in the order in which they come.

        Ends when every site answered or `deadline_s` has passed; who did not answer is for
        the caller to name. Sites that get the same weights share one encoding of them.
        """
        started = time.monotonic()
        shared: dict[int, ArrayRecord] = {}
        waiting: dict[str, str] = {}
        for site, plan in plans.items():
            arrays = wire.arrays_of(plan)
            if id(arrays) not in shared:
                shared[id(arrays)] = wire.array_record(arrays)
            message = Message(
                wire.to_records(plan, shared[id(arrays)]),
                dst_node_id=self.node_ids[site],
                message_type=MessageType.QUERY,
                ttl=deadline_s,
                group_id=plan.plan_id,
            )
            # One push a site: a batch would hold the weights once per site in one request.
            message_id = next(iter(self.grid.push_messages([message])), None)
            if message_id:
                waiting[message_id] = site
            else:
                reason = "Flower did not take the plan for this site; is it too large?"
                yield Reply(site, _failure(plan, "unreachable", reason), time.monotonic() - started)
        shared.clear()
        while waiting:
            for message_id, site in list(waiting.items()):
                answer = self._pull(message_id, plans[site])
                if answer is not None:
                    del waiting[message_id]
                    yield Reply(site, answer, time.monotonic() - started)
            waited = time.monotonic() - started
            if not waiting or waited >= deadline_s:
                return
            time.sleep(min(max(FIRST_POLL_S, 0.05 * waited), LONGEST_POLL_S, deadline_s - waited))

    def _pull(self, message_id: str, plan: wire.Plan) -> wire.Answer | None:
        """The site's answer, None if it has not come yet.

        One pull a site: Flower reads all that it pulls before it hands over any, so one answer
        that cannot be read would cost every site's.
        """
        try:
            messages = list(self.grid.pull_messages([message_id]))
        except Exception as error:  # whatever a site sends that Flower cannot read
            log.logger.exception("the answer of %s cannot be read", plan.site)
            return _failure(plan, "message", f"Flower cannot read the answer ({type(error).__name__})")
        return _answer(messages[0], plan) if messages else None


def _answer(message: Message, plan: wire.Plan) -> wire.Answer:
    """What the site said; whatever is not an answer becomes a Failure of that site."""
    if message.has_error():
        return _failure(plan, "unreachable", f"Flower reports error {message.error.code} for this site")
    try:
        answer = wire.from_records(message.content)
    except WireError as error:
        return _failure(plan, "message", str(error))
    if isinstance(answer, wire.EnrolPlan | wire.RoundPlan):
        return _failure(plan, "message", "the site answered with a plan")
    if answer.site != plan.site:
        return _failure(plan, "message", f"the site answered as {answer.site!r}")
    return answer


def _failure(plan: wire.Plan, error: wire.ErrorKind, advice: str) -> wire.Failure:
    return wire.Failure(plan_id=plan.plan_id, site=plan.site, error=error, case="server", advice=advice)
