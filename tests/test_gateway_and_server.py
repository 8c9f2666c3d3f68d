"""The gateway's connection and the server's Fleet API, the real ones, joined in one process by TLS on loopback."""

import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import numpy as np
import pytest
from flwr.client.grpc_rere_client import node_auth_client_interceptor
from flwr.proto.fleet_pb2 import ActivateNodeRequest

from client.gateway import connection as connections
from client.gateway.connection import CallFailed, Connection, MessageGone, Offer, reply
from client.gateway.reasons import reason
from client.preflight import connection as preflight
from common import keys, release, wire
from common.config import StudyConfig
from common.metrics import empty
from common.polling import wait_until
from common.processes.ports import accepts_connections, free_ports
from common.weights import digest
from common.wire import codec, flower_codec
from common.wire.gateway_calls import INLINE_BYTES, LINE_OPTIONS
from server.deployment import certificates
from server.rounds.flower_sites import FlowerSites
from server.rounds.sites import Deadline, Reply
from server.transport import gateway_record, hub
from tests.fleet import Fleet, fleet
from tests.places import ROOT

SECONDS = 30.0


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    with fleet(tmp_path, monkeypatch) as running:
        yield running


@pytest.fixture
def gateway(server: Fleet) -> Iterator[Connection]:
    made = server.connection()
    yield made
    made.cut()


@pytest.fixture
def sites(server: Fleet, monkeypatch: pytest.MonkeyPatch) -> FlowerSites:
    """The ServerApp's side."""
    grid = server.grid(monkeypatch)
    connected = hub.connect(grid)
    assert connected is not None
    return FlowerSites(grid, {"north": server.node}, *connected)


def connect(gateway: Connection) -> Iterator[None]:
    """Connected as long as somebody keeps what is returned."""
    gateway.activate()
    wakes = gateway.wakes([])
    next(wakes)
    return wakes


def soon(condition: Callable[[], bool]) -> bool:
    return wait_until(condition, SECONDS, poll_s=0.01)


def test_a_message_reaches_the_gateway_and_its_answer_the_server_at_once(
    server: Fleet, gateway: Connection, sites: FlowerSites
) -> None:
    wakes = connect(gateway)
    assert gateway.next_offer() is None
    sent = sites.push("north", flower_codec.probe(), "probe", ttl=60.0)
    next(wakes)  # woken by the message, not by the passing of time
    offer = gateway.next_offer()
    assert offer is not None
    assert offer.message_id == sent
    assert gateway.next_offer() is None
    gateway.send(offer, reply(offer, gateway.content(offer)), 0.5)
    assert sites.announcements.wait(0.0, SECONDS) == {sent}
    (answered,) = sites.grid.pull_messages([str(sent)])
    assert flower_codec.is_probe(answered.content)


def test_the_server_knows_the_gateways_version_and_how_long_its_heartbeat_took(
    server: Fleet, gateway: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "NOTHING_S", 0.05)
    monkeypatch.setattr(gateway_record, "WRITE_S", 0.0)
    wakes = connect(gateway)

    def facts() -> gateway_record.GatewayFacts | None:
        return gateway_record.read(server.folder / gateway_record.FILE).get(server.node)

    assert facts() is not None
    assert soon(lambda: (now := facts()) is not None and now.round_trip_ms is not None)
    known = facts()
    assert known is not None
    assert known.version == release.version()
    assert known.round_trip_ms is not None
    assert known.round_trip_ms < 1000 * SECONDS
    wakes.close()  # type: ignore[attr-defined]


def plans(make_study: Callable[..., StudyConfig], weights: dict[str, np.ndarray]) -> dict[str, wire.Plan]:
    study = make_study(sites={"train": ("north",)})
    plan = wire.RoundPlan(plan_id="p1", site="north", study=study, round=1, train=True, weights=weights)
    return {"north": plan}


def answer_of_round(delta: dict[str, np.ndarray]) -> wire.RoundAnswer:
    return wire.RoundAnswer(
        plan_id="p1", site="north", round=1, scores={"validation": empty(3)}, num_examples=4, num_steps=1,
        train_loss=0.5, train_s=1.0, evaluate_s=1.0, delta=delta,
    )  # fmt: skip


def receive(
    connection: Connection, offer: Offer, after_a_piece: Callable[[], None] = lambda: None
) -> wire.Plan | wire.Answer:
    """The plan of an offer whose weights lie beside it."""
    apart = flower_codec.beside(connection.content(offer))
    assert apart is not None
    pieces = []
    for piece in connection.download(apart.name, SECONDS):
        pieces.append(piece)
        after_a_piece()
    return codec.from_bytes(b"".join(codec.with_header(apart.header, iter(pieces), apart.size)))


def test_weights_go_both_ways_through_files_and_leave_none_behind(
    server: Fleet,
    gateway: Connection,
    sites: FlowerSites,
    make_study: Callable[..., StudyConfig],
    tmp_path: Path,
) -> None:
    weights = {"w": np.arange(INLINE_BYTES, dtype=np.float32)}
    delta = {"w": np.full(INLINE_BYTES, 0.5, np.float32)}
    received: list[wire.Plan | wire.Answer] = []
    wakes = connect(gateway)

    def answer() -> None:
        for _ in wakes:
            if (offer := gateway.next_offer()) is not None:
                received.append(receive(gateway, offer))
                data = codec.to_bytes(answer_of_round(delta))
                name = gateway.upload(iter([data[:1000], data[1000:]]), SECONDS)
                content = flower_codec.Beside("", name, len(data)).records()
                gateway.send(offer, reply(offer, content), 0.1)
                return

    answering = threading.Thread(target=answer)
    answering.start()
    (heard,) = sites.ask(plans(make_study, weights), Deadline(SECONDS))
    answering.join(SECONDS)
    assert isinstance(heard.answer, wire.RoundAnswer)
    assert digest(heard.answer.delta) == digest(delta)
    (plan,) = received
    assert isinstance(plan, wire.RoundPlan)
    assert digest(plan.weights) == digest(weights)
    del heard  # its arrays are in the file that was uploaded
    left = [path.name for path in (tmp_path / "weights").rglob("*") if path.is_file()]
    assert left == ["limit"]


def test_an_answer_may_have_twice_the_weights_and_64_mib_and_no_more(
    server: Fleet, gateway: Connection
) -> None:
    gateway.activate()
    server.files.limit(server.node, 10)
    assert gateway.upload(iter([b"12345", b"67890"]), SECONDS)
    with pytest.raises(CallFailed, match="RESOURCE_EXHAUSTED"):
        gateway.upload(iter([b"12345", b"678901"]), SECONDS)
    assert not list((server.folder / "weights").rglob("*.part"))


def test_flowers_server_lets_little_of_a_call_wait_to_be_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or each site that sends fast takes 100 MiB of the server's memory."""
    made: list[dict[str, object]] = []
    former = grpc.server

    def noted(*arguments: object, options: Iterable[tuple[str, object]], **rest: object) -> grpc.Server:
        made.append(dict(options))
        return former(*arguments, options=options, **rest)

    monkeypatch.setattr(grpc, "server", noted)
    with fleet(tmp_path, monkeypatch):
        assert grpc.server is noted
    (flowers,) = [options for options in made if "grpc.keepalive_time_ms" in options]
    assert set(LINE_OPTIONS) <= flowers.items()
    assert set(LINE_OPTIONS) <= set(connections._OPTIONS)


def test_a_list_of_messages_in_hand_has_an_end(server: Fleet, gateway: Connection) -> None:
    gateway.activate()
    with pytest.raises(CallFailed, match="too many messages in hand"):
        next(gateway.wakes(["x" * 2**16]))


@pytest.mark.slow
def test_a_line_that_goes_silent_is_noticed_within_20_seconds_and_the_gateway_is_back_at_once(
    server: Fleet,
) -> None:
    """As with a pulled cable, nothing is closed."""
    with silent_line(server) as (address, cut):
        gateway = Connection(server.gateway("north").model_copy(update={"server": address}))
        wakes = connect(gateway)
        time.sleep(12)  # twice a sign of life
        cut.set()
        began = time.monotonic()
        with pytest.raises(CallFailed) as caught:
            next(wakes)
        assert 5 < time.monotonic() - began < 25
        gateway.cut()
    assert "went silent" in reason(caught.value, "SHA256:x")
    assert soon(lambda: not server.is_online())  # the server has noticed as well
    back, _wakes = come_back(server)
    assert server.is_online()
    back.cut()


@contextmanager
def silent_line(server: Fleet) -> Iterator[tuple[str, threading.Event]]:
    """An address that leads to the server, until the event is set: then no byte passes, and nothing is closed."""
    (port,) = free_ports(1)
    cut = threading.Event()
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "benchmarks.faults.bad_link",
            str(port),
            server.address.rpartition(":")[2],
            "1000",
            "0",
        ],
        cwd=ROOT,
    )
    cutting = threading.Thread(target=lambda: cut.wait(SECONDS) and process.send_signal(signal.SIGUSR1))
    try:
        assert soon(lambda: accepts_connections(port))
        cutting.start()
        yield f"localhost:{port}", cut
    finally:
        process.kill()
        process.wait()
        cutting.join()


@pytest.mark.parametrize("name", ["0" * 32, "../../state.db", "limit", ""])
def test_a_gateway_reads_no_file_but_those_that_are_offered_to_it(
    server: Fleet, gateway: Connection, name: str
) -> None:
    server.files.limit(server.node, 10)
    gateway.activate()
    with pytest.raises(MessageGone):
        list(gateway.download(name, SECONDS))


def test_weights_of_one_site_cannot_be_read_by_another(server: Fleet, gateway: Connection) -> None:
    shared = server.files.share(lambda path: path.write_bytes(b"weights"))
    name = server.files.offer(server.node, shared)
    gateway.activate()
    assert b"".join(gateway.download(name, SECONDS)) == b"weights"
    server.enrol("south")
    other = server.connection("south")
    try:
        other.activate()
        with pytest.raises(MessageGone):
            list(other.download(name, SECONDS))
        other._node = gateway._node  # with its own key, in the name of another
        with pytest.raises(CallFailed, match="Invalid node ID"):
            list(other.download(name, SECONDS))
    finally:
        other.cut()


# --- a gateway that dies, and one that comes back --------------------------------------------


def message_to(sites: FlowerSites) -> str:
    sent = sites.push("north", flower_codec.probe(), "probe", ttl=60.0)
    assert sent
    return sent


def come_back(server: Fleet, in_hand: list[str] | None = None) -> tuple[Connection, Iterator[None]]:
    """A new process of the same gateway, connected; the caller cuts it."""
    back = server.connection()
    back.activate()
    wakes = back.wakes(in_hand or [])
    next(wakes)
    return back, wakes


@pytest.mark.parametrize(
    "reached", ["before the content", "while the trainer works", "half of the answer sent"]
)
def test_a_gateway_that_is_killed_is_offered_its_message_again_when_it_is_back(
    server: Fleet, gateway: Connection, sites: FlowerSites, reached: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wakes = connect(gateway)
    sent = message_to(sites)
    offer = gateway.next_offer()
    assert offer is not None
    if reached != "before the content":
        content = gateway.content(offer)
    if reached == "half of the answer sent":
        with monkeypatch.context() as patch:
            patch.setattr(connections, "push_objects", lambda *_, **__: gateway.cut())
            with pytest.raises(CallFailed):
                gateway.send(offer, reply(offer, content), 0.5)
    gateway.cut()
    assert soon(lambda: not server.is_online())
    back, _ = come_back(server)
    try:
        again = back.next_offer()
        assert again is not None
        assert again.message_id == sent
        back.send(again, reply(again, back.content(again)), 0.5)
        assert sent in (sites.announcements.wait(0.0, SECONDS) or ())
        assert len(list(sites.grid.pull_messages([sent]))) == 1
    finally:
        back.cut()


def a_piece_then(piece: bytes, then: Callable[[], None]) -> Iterator[bytes]:
    """Pieces of an upload in whose midst something happens."""
    yield piece
    then()
    yield piece


@pytest.mark.parametrize("cut_while", ["weights are received", "weights are sent"])
def test_a_gateway_that_is_killed_with_weights_on_the_line_starts_over_with_them(
    server: Fleet,
    gateway: Connection,
    sites: FlowerSites,
    make_study: Callable[..., StudyConfig],
    cut_while: str,
) -> None:
    weights = {"w": np.arange(3 * 2**20, dtype=np.float32)}  # six pieces
    delta = {"w": np.full(3 * 2**20, 0.5, np.float32)}
    sent = codec.to_bytes(answer_of_round(delta))
    wakes = connect(gateway)
    replies: list[Reply] = []
    asking = threading.Thread(
        target=lambda: replies.extend(sites.ask(plans(make_study, weights), Deadline(SECONDS)))
    )
    asking.start()
    next(wakes)
    offer = gateway.next_offer()
    assert offer is not None
    if cut_while == "weights are received":
        with pytest.raises(CallFailed):
            receive(gateway, offer, after_a_piece=gateway.cut)
    else:
        with pytest.raises(CallFailed):
            gateway.upload(a_piece_then(sent[: len(sent) // 2], gateway.cut), SECONDS)
    assert soon(lambda: not server.is_online())
    assert soon(lambda: not list((server.folder / "weights").rglob("*.part")))
    back, _ = come_back(server)
    try:
        again = back.next_offer()
        assert again is not None
        plan = receive(back, again)
        name = back.upload(iter([sent]), SECONDS)
        back.send(again, reply(again, flower_codec.Beside("", name, len(sent)).records()), 0.5)
        asking.join(SECONDS)
    finally:
        back.cut()
    assert isinstance(plan, wire.RoundPlan)
    assert digest(plan.weights) == digest(weights)
    (heard,) = replies
    assert isinstance(heard.answer, wire.RoundAnswer)
    assert digest(heard.answer.delta) == digest(delta)


def test_what_a_gateway_still_has_in_hand_is_not_offered_again(
    server: Fleet, gateway: Connection, sites: FlowerSites
) -> None:
    _wakes = connect(gateway)
    sent = message_to(sites)
    offer = gateway.next_offer()
    assert offer is not None
    content = gateway.content(offer)
    gateway.cut()
    assert soon(lambda: not server.is_online())
    back, _ = come_back(server, [sent])
    try:
        assert back.next_offer() is None
        back.send(offer, reply(offer, content), 0.5)
        assert sites.announcements.wait(0.0, SECONDS) == {sent}
    finally:
        back.cut()


def test_an_answer_that_is_sent_twice_counts_once(
    server: Fleet, gateway: Connection, sites: FlowerSites
) -> None:
    _wakes = connect(gateway)
    sent = message_to(sites)
    offer = gateway.next_offer()
    assert offer is not None
    answer = reply(offer, gateway.content(offer))
    for _ in range(2):
        gateway.send(offer, answer, 0.5)
    (answered,) = sites.grid.pull_messages([sent])
    assert answered.has_content()
    (again,) = sites.grid.pull_messages([sent])
    assert again.has_error()  # Flower knows no such message any more


def test_a_study_that_is_over_wants_no_answer(server: Fleet, gateway: Connection, sites: FlowerSites) -> None:
    _wakes = connect(gateway)
    message_to(sites)
    offer = gateway.next_offer()
    assert offer is not None
    content = gateway.content(offer)
    run_id = offer.about.metadata.run_id
    server.states.state().stop_run(run_id)
    with pytest.raises(MessageGone, match="its study is over"):
        gateway.send(offer, reply(offer, content), 0.5)


def test_an_answer_to_a_study_of_a_database_that_is_gone_is_no_fault_of_the_line(
    server: Fleet, gateway: Connection, sites: FlowerSites
) -> None:
    """Or the gateway would connect again and again to hand it over."""
    _wakes = connect(gateway)
    message_to(sites)
    offer = gateway.next_offer()
    assert offer is not None
    answer = reply(offer, gateway.content(offer))
    answer.metadata.__dict__["_run_id"] = 12345
    with pytest.raises(CallFailed) as caught:
        gateway.send(offer, answer, 0.5)
    assert not caught.value.is_of_the_line


def test_a_gateway_that_is_gone_for_a_moment_is_not_answered_for(
    server: Fleet, gateway: Connection, sites: FlowerSites
) -> None:
    """Flower answers in the name of a node that it has not heard of for a minute, and not earlier."""
    _wakes = connect(gateway)
    sent = message_to(sites)
    gateway.cut()
    assert soon(lambda: sites.online() == set())
    assert list(sites.grid.pull_messages([sent])) == []


# --- who may connect -------------------------------------------------------------------------


def refused(connection: Connection) -> CallFailed:
    try:
        with pytest.raises(CallFailed) as caught:
            connection.activate()
    finally:
        connection.cut()
    return caught.value


def test_a_second_gateway_with_the_same_key_is_refused_while_the_first_is_connected(
    server: Fleet, gateway: Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    _wakes = connect(gateway)
    monkeypatch.setattr(connections, "_PROCESS", "another")
    assert "another gateway of this site" in reason(refused(server.connection()), "SHA256:x")
    assert server.is_online()


def test_a_process_that_lost_its_line_unnoticed_by_the_server_comes_back_at_once(
    server: Fleet, gateway: Connection
) -> None:
    wakes = connect(gateway)
    back, _ = come_back(server)
    try:
        assert next(wakes, None) is None  # the server has ended the former stream
        assert server.is_online()
    finally:
        back.cut()


def test_a_revoked_key_is_cut_off_at_once_and_does_not_come_back(server: Fleet, gateway: Connection) -> None:
    wakes = connect(gateway)
    began = time.monotonic()
    server.revoke(server.node)
    with pytest.raises(CallFailed) as caught:
        next(wakes)
    assert time.monotonic() - began < 4.0  # the next sign of life would have come after 5 s
    assert "revoked" in reason(caught.value, "SHA256:x")
    for call in (lambda: gateway.upload(iter([b"x"]), SECONDS), gateway.next_offer):
        with pytest.raises(CallFailed, match="Invalid node ID"):
            call()
    assert "does not take this site's key" in reason(refused(server.connection()), "SHA256:x")


def test_a_key_that_is_not_enrolled_is_refused(server: Fleet) -> None:
    keys.make_site_key(server.folder / "keys", "stranger")
    assert "does not take this site's key" in reason(refused(server.connection("stranger")), "SHA256:x")


def test_a_key_cannot_activate_the_node_of_another(server: Fleet) -> None:
    """Flower 1.39 looks at the key that is named in the request, whoever signed it."""
    keys.make_site_key(server.folder / "keys", "stranger")
    stranger = server.connection("stranger")
    stranger._public = keys.flower_form(keys.read_public(server.folder / "keys" / "north.pub"))
    failed = refused(stranger)
    assert failed.code == grpc.StatusCode.PERMISSION_DENIED
    assert not server.is_online()


def test_a_gateway_of_another_version_is_refused_with_the_reason(
    server: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "SCHEMA", codec.SCHEMA + 1)
    why = reason(refused(server.connection()), "SHA256:x")
    assert "of another version" in why
    assert f"schema {codec.SCHEMA + 1}, expected schema {codec.SCHEMA}" in why


def test_flowers_own_supernode_of_an_enrolled_site_is_refused_as_another_version(server: Fleet) -> None:
    connection = server.connection()
    request = ActivateNodeRequest(public_key=connection._public, heartbeat_interval=30.0)
    try:
        with pytest.raises(grpc.RpcError) as caught:
            connection._activate(request, timeout=SECONDS)
    finally:
        connection.cut()
    assert "found no version of messages" in caught.value.details()


def test_a_gateway_with_a_wrong_clock_is_refused_with_the_reason(
    server: Fleet, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrong = datetime.now(UTC) + timedelta(seconds=600)
    monkeypatch.setattr(node_auth_client_interceptor, "now", lambda: wrong)
    assert "refused this machine's clock" in reason(refused(server.connection()), "SHA256:x")


def test_a_signature_of_another_key_is_refused(server: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    keys.make_site_key(server.folder / "keys", "stranger")
    public = keys.flower_form(keys.read_public(server.folder / "keys" / "north.pub"))
    monkeypatch.setattr(node_auth_client_interceptor, "public_key_to_bytes", lambda _: public)
    assert "Invalid signature" in refused(server.connection("stranger")).details
    assert not server.is_online()


def test_a_gateway_that_expects_another_certificate_does_not_connect(server: Fleet, tmp_path: Path) -> None:
    other = certificates.make_server_identity(tmp_path / "other", ["localhost"])
    connection = Connection(server.gateway("north").model_copy(update={"ca": other.ca}))
    assert "does not fit ca.pem" in reason(refused(connection), "SHA256:x")


def test_a_key_that_is_revoked_while_an_answer_is_sent_does_not_hand_it_over(
    server: Fleet, gateway: Connection, sites: FlowerSites
) -> None:
    _wakes = connect(gateway)
    sent = message_to(sites)
    offer = gateway.next_offer()
    assert offer is not None
    answer = reply(offer, gateway.content(offer))

    def pieces() -> Iterator[bytes]:
        yield b"half"
        soon(lambda: bool(list((server.folder / "weights").rglob("*.part"))))  # the server takes it
        server.revoke(server.node)
        yield b"and half"

    gateway.upload(pieces(), SECONDS)
    with pytest.raises(CallFailed, match="Invalid node ID"):
        gateway.send(offer, answer, 0.5)
    assert sites.announcements.wait(0.0, 0.1) is None
    assert not [m for m in sites.grid.pull_messages([sent]) if m.has_content()]


def test_a_gateway_asks_for_no_run_and_no_app(server: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a server could send to be run is what `GetFab` answers."""
    source = "".join(path.read_text() for path in (ROOT / "client").rglob("*.py"))
    assert set(re.findall(r'call\("(\w+)"', source)) == {
        "ActivateNode", "ConfirmMessageReceived", "DeactivateNode", "PullMessages", "PullObject", "PushMessages",
        "PushObject", "SendNodeHeartbeat",
    }  # fmt: skip
    assert "GetFab" not in source
    assert "GetRun" not in source
    assert "FleetStub" not in source


def test_the_connection_can_be_checked_while_the_gateway_is_connected(
    server: Fleet, gateway: Connection
) -> None:
    wakes = connect(gateway)
    findings = list(preflight.check(server.gateway("north")))
    assert "the server knows this site's key" in [finding.text for finding in findings]
    assert not [finding.text for finding in findings if finding.rank == "stops"]
    server.presence.wake(server.node)
    assert next(wakes, "over") is None  # the gateway is connected as before
    assert server.is_online()


def test_the_server_app_needs_its_tasks_token(server: Fleet, monkeypatch: pytest.MonkeyPatch) -> None:
    grid = server.grid(monkeypatch)
    grid._token = "guessed"
    connected = hub.connect(grid)
    assert connected is not None
    with pytest.raises(grpc.RpcError) as caught:
        grid.get_node_ids()
    assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
