"""Flower's state in the SuperLink's process, as far as its public API does not reach.

Everything here depends on names that are private to Flower 1.39; `tests/server/transport/test_flower_names.py`
lists them with their signatures and says what to do when a new version of Flower changes one.
"""

from datetime import UTC, datetime
from typing import Any

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import FLWR_IN_MEMORY_DB_NAME, NodeStatus
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.state.schema.linkstate_models import MessageIns, MessageRes
from flwr.supercore.state.schema.linkstate_models import Node as NodeRow
from flwr.supercore.utils import uint64_to_int64
from sqlalchemy import delete, select, update

from server.transport.presence import Presence


def install(presence: Presence) -> None:
    """Let Flower's state tell `presence` when a message is complete, and keep objects in memory.

    Objects serve messages in flight, and a SuperLink that comes back has none of these: its ServerApp has died
    with it.
    """
    register, store, unregister = (
        SqlLinkState.store_message_and_object_tree,
        SqlLinkState.store_object,
        SqlLinkState.delete_node,
    )

    def store_message_and_object_tree(self: Any, message: Any, object_tree: Any, session_id: str) -> Any:
        stored, missing = register(self, message, object_tree, session_id)
        if stored:
            about = message.metadata
            presence.registered(about.dst_node_id, about.reply_to_message_id or "", missing, session_id)
        return stored, missing

    def store_object(self: Any, run_id: int, session_id: str, object_id: str, object_content: bytes) -> bool:
        done = store(self, run_id, session_id, object_id, object_content)
        if done:
            presence.stored(session_id, object_id)
        return done

    def delete_node(self: Any, owner_aid: str, node_id: int) -> None:
        unregister(self, owner_aid, node_id)
        presence.wake(node_id)  # a key that is revoked is cut off at once

    SqlLinkState.store_message_and_object_tree = store_message_and_object_tree  # type: ignore[method-assign]
    SqlLinkState.store_object = store_object  # type: ignore[method-assign]
    SqlLinkState.delete_node = delete_node  # type: ignore[method-assign]
    start = ObjectStoreFactory.__init__

    def in_memory(self: Any, database: str = FLWR_IN_MEMORY_DB_NAME) -> None:  # noqa: ARG001
        start(self, FLWR_IN_MEMORY_DB_NAME)

    ObjectStoreFactory.__init__ = in_memory  # type: ignore[method-assign]


def clean_up(state: Any) -> None:
    """After the start of a SuperLink: no gateway is connected, and messages without objects are removed."""
    with state.session() as session:
        session.execute(delete(MessageRes))
        session.execute(delete(MessageIns))
        session.execute(
            update(NodeRow)
            .where(NodeRow.status == NodeStatus.ONLINE)
            .values(status=NodeStatus.OFFLINE, last_deactivated_at=datetime.now(UTC).isoformat())
        )


def set_offline(state: Any, node: int) -> None:
    """The node's gateway is gone.

    `online_until` stays: until then Flower waits for the node's answer before it gives one in its place, so a
    gateway that comes back within a minute costs no site its round.
    """
    with state.session() as session:
        session.execute(
            update(NodeRow)
            .where(NodeRow.node_id == uint64_to_int64(node), NodeRow.status == NodeStatus.ONLINE)
            .values(status=NodeStatus.OFFLINE, last_deactivated_at=datetime.now(UTC).isoformat())
        )


def offer_again(state: Any, presence: Presence, node: int, in_hand: set[str]) -> None:
    """Offer a node again what it was given and has not answered, without what it still has `in_hand`.

    Half of an answer may have arrived before its gateway died. Flower accepts one answer to a message, so that
    half is removed first.
    """
    with state.session() as session:
        given = set(
            session.scalars(
                select(MessageIns.message_id).where(
                    MessageIns.dst_node_id == uint64_to_int64(node), MessageIns.delivered_at != ""
                )
            )
        )
        given -= in_hand
        for half in presence.take_unfinished(given):
            state._cleanup_push_session(half, cleanup_messages=True)
        answered = set(
            session.scalars(
                select(MessageRes.reply_to_message_id).where(MessageRes.reply_to_message_id.in_(given))
            )
        )
        if again := given - answered:
            session.execute(
                update(MessageIns).where(MessageIns.message_id.in_(again)).values(delivered_at="")
            )
