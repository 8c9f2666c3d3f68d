"""Who is connected, and when a message counts as complete."""

import queue

import pytest

from server.transport.presence import Presence

NODE, OTHER = 11, 22
PLAN = ""
"""What a plan says about the message that it answers."""


@pytest.fixture
def presence() -> Presence:
    return Presence()


def heard(listener: "queue.SimpleQueue[str]") -> list[str]:
    return [listener.get() for _ in range(listener.qsize())]


def test_a_stream_is_woken_when_the_last_part_of_a_plan_is_stored_and_not_before(presence: Presence) -> None:
    stream = presence.open(NODE, "p")
    presence.registered(NODE, PLAN, ["a", "b"], "s1")
    presence.stored("s1", "a")
    assert not stream.wait(0.0)
    presence.stored("s1", "b")
    assert stream.wait(0.0)
    assert not stream.wait(0.0)  # once


def test_a_plan_whose_parts_are_all_there_wakes_at_once(presence: Presence) -> None:
    stream = presence.open(NODE, "p")
    presence.registered(NODE, PLAN, [], "s1")
    assert stream.wait(0.0)


def test_a_plan_wakes_its_own_node_alone(presence: Presence) -> None:
    stream, other = presence.open(NODE, "p"), presence.open(OTHER, "q")
    presence.registered(NODE, PLAN, [], "s1")
    assert (stream.wait(0.0), other.wait(0.0)) == (True, False)


def test_every_listener_hears_of_an_answer_when_it_is_complete(presence: Presence) -> None:
    listeners = [presence.listen(), presence.listen()]
    presence.registered(1, "m1", ["a"], "s1")
    assert [heard(listener) for listener in listeners] == [[], []]
    presence.stored("s1", "a")
    assert [heard(listener) for listener in listeners] == [["m1"], ["m1"]]


def test_who_has_left_hears_nothing(presence: Presence) -> None:
    listener = presence.listen()
    presence.leave(listener)
    presence.registered(1, "m1", [], "s1")
    assert heard(listener) == []


def test_parts_of_other_sessions_do_not_count(presence: Presence) -> None:
    """Two sites may send the same object, each in a session of its own."""
    listener = presence.listen()
    presence.registered(1, "m1", ["a"], "s1")
    presence.stored("s2", "a")
    presence.stored("unknown", "a")
    assert heard(listener) == []


def test_the_newest_stream_of_a_node_takes_the_place_of_the_former(presence: Presence) -> None:
    former = presence.open(NODE, "p")
    newest = presence.open(NODE, "p")
    assert former.is_over
    assert former.wait(0.0)  # whoever waits is told
    assert not presence.close(former)  # so its node is not gone
    assert presence.close(newest)


@pytest.mark.parametrize(("process", "replaced"), [("p", True), ("another", False)])
def test_only_the_process_of_a_stream_may_replace_it(
    presence: Presence, process: str, replaced: bool
) -> None:
    stream = presence.open(NODE, "p")
    assert presence.replace(NODE, process) is replaced
    assert stream.is_over is replaced


def test_a_node_without_a_stream_is_neither_replaced_nor_woken(presence: Presence) -> None:
    assert not presence.replace(NODE, "p")
    presence.wake(NODE)


def test_an_upload_that_broke_off_is_found_by_what_it_answers(presence: Presence) -> None:
    presence.registered(1, "m1", ["a"], "s1")
    presence.registered(1, "m2", ["b"], "s2")
    assert presence.take_unfinished({"m1", "m3"}) == ["s1"]
    assert presence.take_unfinished({"m1", "m3"}) == []
    listener = presence.listen()
    presence.stored("s1", "a")  # too late
    presence.stored("s2", "b")
    assert heard(listener) == ["m2"]


def test_a_gateway_that_says_nothing_is_silent_until_it_is_heard_again(
    presence: Presence, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [100.0]
    monkeypatch.setattr("server.transport.presence.time.monotonic", lambda: now[0])
    stream = presence.open(NODE, "p")
    stream.heard_at = now[0]
    now[0] = 115.0
    assert stream.silent_s == 15.0
    presence.hear(NODE)
    presence.hear(OTHER)  # not connected
    assert stream.silent_s == 0.0
