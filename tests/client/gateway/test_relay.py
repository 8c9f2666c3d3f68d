"""The gateway's two threads, with a server and a trainer made of plain objects."""

import logging
import queue
import threading
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from flwr.app import RecordDict

from client.gateway import relay as relays
from client.gateway.connection import CallFailed, MessageGone
from client.gateway.relay import Relay

LOST = CallFailed(grpc.StatusCode.UNAVAILABLE, "Socket closed")
WAIT_S = 30.0


@dataclass(frozen=True)
class Offer:
    message_id: str
    ttl: float = 3600.0


@dataclass(eq=False)
class Server:
    """What waits for the site, and what the site handed over; every connection is to it."""

    waiting: list[Offer] = field(default_factory=list)
    refusals: list[CallFailed] = field(default_factory=list)
    """Errors of the next activations."""
    connections: "queue.Queue[Connection]" = field(default_factory=queue.Queue)
    sent: "queue.Queue[tuple[str, str]]" = field(default_factory=queue.Queue)
    in_hand: list[list[str]] = field(default_factory=list)
    failures: list[Exception] = field(default_factory=list)
    """Errors of the next answers that are handed over."""
    contents: int = 0

    def connect(self) -> Any:
        connection = Connection(self)
        self.connections.put(connection)
        return connection


class Connection:
    def __init__(self, server: Server) -> None:
        self.server, self.words = server, queue.Queue[Exception | None | bool]()
        self.is_cut = threading.Event()

    def activate(self) -> None:
        if self.server.refusals:
            raise self.server.refusals.pop(0)

    def wakes(self, in_hand: Iterable[str]) -> Iterator[None]:
        self.server.in_hand.append(sorted(in_hand))
        yield
        while (word := self.words.get(timeout=WAIT_S)) is True:
            yield
        if word is not None:
            raise word

    def wake(self) -> None:
        self.words.put(True)

    def lose(self) -> None:
        self.words.put(LOST)

    def next_offer(self) -> Offer | None:
        return self.server.waiting.pop(0) if self.server.waiting else None

    def content(self, offer: Offer) -> RecordDict:
        self.server.contents += 1
        return RecordDict()

    def send(self, offer: Offer, answer: Any, seconds: float) -> None:
        if self.server.failures:
            raise self.server.failures.pop(0)
        self.server.sent.put((offer.message_id, answer))

    def cut(self) -> None:
        self.is_cut.set()
        self.words.put(LOST)

    close = cut


class Trainer:
    """Answers, once it may."""

    def __init__(self) -> None:
        self.asked: queue.Queue[str] = queue.Queue()
        self.may = threading.Event()
        self.may.set()

    def answer(self, *_: object) -> str:
        self.asked.put("asked")
        assert self.may.wait(WAIT_S)
        return "answer"


@pytest.fixture
def server() -> Server:
    return Server()


@pytest.fixture
def trainer(monkeypatch: pytest.MonkeyPatch) -> Trainer:
    made = Trainer()
    monkeypatch.setattr(relays, "forward", SimpleNamespace(answer=made.answer))
    monkeypatch.setattr(relays, "reply", lambda offer, content: content)
    monkeypatch.setattr(relays, "FIRST_PAUSE_S", 0.01)
    monkeypatch.setattr(relays, "LONGEST_PAUSE_S", 0.02)
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    return made


@pytest.fixture
def relay(server: Server, trainer: Trainer) -> Iterator[Relay]:
    made = Relay(server.connect, None, "SHA256:x")  # type: ignore[arg-type]
    yield made
    made.stop()


def connection_of(server: Server) -> Connection:
    return server.connections.get(timeout=WAIT_S)


def sent_by(server: Server) -> tuple[str, str]:
    return server.sent.get(timeout=WAIT_S)


def test_what_waits_is_answered_one_after_the_other(server: Server, relay: Relay) -> None:
    server.waiting = [Offer("m1"), Offer("m2")]
    relay.start()
    assert [sent_by(server), sent_by(server)] == [("m1", "answer"), ("m2", "answer")]
    connection = connection_of(server)
    server.waiting = [Offer("m3")]
    connection.wake()
    assert sent_by(server) == ("m3", "answer")
    assert server.connections.empty()  # one connection carried all of them


def test_the_site_connects_again_while_its_trainer_works_and_says_what_it_has_in_hand(
    server: Server, relay: Relay, trainer: Trainer
) -> None:
    server.waiting = [Offer("m1")]
    trainer.may.clear()
    relay.start()
    trainer.asked.get(timeout=WAIT_S)
    connection_of(server).lose()
    connection_of(server)
    trainer.may.set()
    assert sent_by(server) == ("m1", "answer")
    assert server.in_hand[:2] == [[], ["m1"]]
    assert trainer.asked.empty()  # it was asked once


def test_a_message_that_is_offered_twice_is_worked_on_once(
    server: Server, relay: Relay, trainer: Trainer
) -> None:
    server.waiting = [Offer("m1"), Offer("m1"), Offer("m2")]
    trainer.may.clear()
    relay.start()
    trainer.asked.get(timeout=WAIT_S)
    trainer.may.set()
    assert [sent_by(server), sent_by(server)] == [("m1", "answer"), ("m2", "answer")]


def test_an_answer_that_did_not_get_through_is_sent_on_the_next_connection(
    server: Server, relay: Relay, trainer: Trainer
) -> None:
    server.waiting, server.failures = [Offer("m1")], [LOST]
    relay.start()
    first = connection_of(server)
    assert sent_by(server) == ("m1", "answer")
    assert first.is_cut.is_set()  # one failed call is reason enough for a new connection
    assert trainer.asked.qsize() == 1


def test_a_message_that_nobody_waits_for_is_put_aside(
    server: Server, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    server.waiting, server.failures = [Offer("m1"), Offer("m2")], [MessageGone("its study is over")]
    relay.start()
    assert sent_by(server) == ("m2", "answer")
    assert "a message is put aside: its study is over" in caplog.text


@pytest.mark.parametrize(
    "failures",
    [[CallFailed(grpc.StatusCode.UNKNOWN, "Run ID not found")], [LOST] * relays.TRIES],
    ids=["an error of the server", "a line that breaks each time"],
)
def test_an_answer_that_the_server_never_takes_does_not_keep_the_others_waiting(
    server: Server, relay: Relay, failures: list[Exception]
) -> None:
    server.waiting, server.failures = [Offer("m1"), Offer("m2")], failures
    relay.start()
    assert sent_by(server) == ("m2", "answer")


def test_a_message_that_breaks_the_gateway_does_not_end_it(
    server: Server, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    server.waiting, server.failures = [Offer("m1"), Offer("m2")], [KeyError("x")]
    relay.start()
    assert sent_by(server) == ("m2", "answer")
    assert "a message cannot be answered" in caplog.text


def test_a_server_that_refuses_is_tried_again_and_the_reason_is_logged_once(
    server: Server, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    refusal = CallFailed(grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp")
    server.refusals, server.waiting = [refusal] * 5, [Offer("m1")]
    relay.start()
    assert sent_by(server) == ("m1", "answer")
    assert caplog.text.count("the server refused this machine's clock") == 1


def test_an_unknown_error_of_a_connection_does_not_end_the_gateway(
    server: Server, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    good: Callable[[], Any] = server.connect
    tries = iter([OSError("no route"), None])

    def connect() -> Any:
        if (error := next(tries, None)) is not None:
            raise error
        return good()

    relay._connect = connect
    server.waiting = [Offer("m1")]
    relay.start()
    assert sent_by(server) == ("m1", "answer")


def test_pauses_grow_to_a_limit_and_begin_again_with_a_connection_that_works(
    server: Server, relay: Relay, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(relays, "FIRST_PAUSE_S", 1.0)
    monkeypatch.setattr(relays, "LONGEST_PAUSE_S", 5.0)
    pauses: list[float] = []
    worked = iter([False, False, False, False, True, False])

    def stay() -> tuple[bool, str]:
        return next(worked), "why"

    def wait(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 6:
            relay._stopped.set()

    monkeypatch.setattr(relay, "_stay_connected", stay)
    monkeypatch.setattr(relay._stopped, "wait", wait)
    relay._keep()
    assert pauses == [2.0, 4.0, 5.0, 5.0, 1.0, 2.0]


def test_the_answer_to_a_message_is_given_up_when_nobody_waits_for_it_any_more(
    server: Server, relay: Relay, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(MessageGone, match="the server was not reached"):
        relay._answer(Offer("m1", ttl=0.01))  # type: ignore[arg-type]
