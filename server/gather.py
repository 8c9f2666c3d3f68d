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

from common import wire
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
            record = shared.setdefault(id(arrays), wire.array_record(arrays))
            message = Message(
                wire.to_records(plan, record),
                dst_node_id=self.node_ids[site],
                message_type=MessageType.QUERY,
                ttl=deadline_s,
                group_id=plan.plan_id,
            )
            # One push a site: a batch would hold the weights once per site in one request.
            (message_id,) = self.grid.push_messages([message])
            if message_id:
                waiting[message_id] = site
        del shared
        while waiting:
            for message in self.grid.pull_messages(list(waiting)):
                site = waiting.pop(message.metadata.reply_to_message_id)
                yield Reply(site, _answer(message, plans[site]), time.monotonic() - started)
            waited = time.monotonic() - started
            if not waiting or waited > deadline_s:
                return
            time.sleep(min(max(FIRST_POLL_S, 0.05 * waited), LONGEST_POLL_S))


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
