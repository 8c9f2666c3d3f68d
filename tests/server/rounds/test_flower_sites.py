"""Plans out, answers in, over a Flower grid that lives in memory and a clock that does not run."""

import json
import logging
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from common import wire
from common.config import StudyConfig
from common.lazy_arrays import Stored
from common.metrics import empty
from common.wire import codec, flower_codec
from common.wire.gateway_calls import INLINE_BYTES
from common.wire.signed_heads import sign
from server.rounds import flower_sites
from server.rounds.flower_sites import LATE_S, FlowerSites
from server.rounds.sites import Deadline
from server.storage.audit_heads import FILE, AuditHeads
from server.transport.weight_files import WeightFiles

NODES = {"north": 11, "south": 22, "east": 33}


class Clock:
    """Moves only when somebody sleeps."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert 0 < seconds <= flower_sites.LONGEST_POLL_S
        self.now += seconds


class Grid:
    """Answers of nodes, each to be had from a time on."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.sent: list[Message] = []
        self.batches: list[int] = []
        self.refused: set[int] = set()
        self.answers: dict[int, tuple[float, Callable[[Message], Message]]] = {}
        self.connected: set[int] = set(NODES.values())

    def get_node_ids(self) -> Iterable[int]:
        return list(self.connected)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        batch = list(messages)
        self.batches.append(len(batch))
        ids = []
        for message in batch:
            number = f"m{len(self.sent)}"
            message.metadata.__dict__["_message_id"] = number
            self.sent.append(message)
            ids.append("" if message.metadata.dst_node_id in self.refused else number)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        for message in self.sent:
            node = message.metadata.dst_node_id
            if message.metadata.message_id in wanted and node in self.answers:
                from_s, reply = self.answers[node]
                if self.clock.now >= from_s:
                    yield reply(message)

    def answer(self, site: str, after_s: float, reply: Callable[[Message], Message] | None = None) -> None:
        self.answers[NODES[site]] = (self.clock.now + after_s, reply or answers_as())


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)  # Flower lets a Message be built only inside a task
    clock = Clock()
    monkeypatch.setattr(flower_sites, "time", clock)
    return clock


@pytest.fixture
def grid(clock: Clock) -> Grid:
    return Grid(clock)


@pytest.fixture
def fleet(grid: Grid) -> FlowerSites:
    return FlowerSites(grid, NODES)  # type: ignore[arg-type]


@pytest.fixture
def plans(make_study: Callable[..., StudyConfig]) -> dict[str, wire.Plan]:
    study = make_study(sites={"train": tuple(NODES)})
    weights = {"w": np.arange(4, dtype=np.float32)}
    return {
        site: wire.RoundPlan(
            plan_id=f"plan-{site}", site=site, study=study, round=1, train=True, weights=weights
        )
        for site in NODES
    }


def answers_as(**changes: Any) -> Callable[[Message], Message]:
    def reply(message: Message) -> Message:
        plan = flower_codec.from_records(message.content)
        assert isinstance(plan, wire.RoundPlan)
        answer = wire.RoundAnswer(
            plan_id=plan.plan_id, site=plan.site, round=1, scores={"validation": empty(3)}, num_examples=4, num_steps=1,
            train_loss=0.5, train_s=1.0, evaluate_s=1.0, delta={"w": np.ones(4, np.float32)},
        )  # fmt: skip
        return Message(flower_codec.to_records(answer.model_copy(update=changes)), reply_to=message)

    return reply


def test_answers_are_handed_over_in_the_order_in_which_they_come(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan]
) -> None:
    grid.answer("north", after_s=30.0)
    grid.answer("south", after_s=10.0)
    grid.answer("east", after_s=20.0)
    replies = list(fleet.ask(plans, Deadline(60)))
    assert [reply.site for reply in replies] == ["south", "east", "north"]
    # looked for every 5 % of the time waited: an answer after 20 s is seen after 21 s at the latest
    for reply, seconds in zip(replies, (10, 20, 30), strict=True):
        assert seconds <= reply.after_s <= 1.05 * seconds
        assert isinstance(reply.answer, wire.RoundAnswer)


def test_an_answer_is_handed_over_before_the_next_one_is_there(
    fleet: FlowerSites, grid: Grid, clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    grid.answer("north", after_s=0.0)
    grid.answer("south", after_s=50.0)
    first = next(iter(fleet.ask(plans, Deadline(60))))
    assert first.site == "north"
    assert clock.now == 1000.0


def test_the_deadline_ends_the_wait_for_a_site_that_says_nothing(
    fleet: FlowerSites, grid: Grid, clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    grid.answer("north", after_s=1.0)
    grid.answer("south", after_s=61.0)
    assert [reply.site for reply in fleet.ask(plans, Deadline(60))] == ["north"]
    assert clock.now == pytest.approx(1060)


def test_the_deadline_travels_with_the_plan_and_leaves_room_for_a_late_answer(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan]
) -> None:
    list(fleet.ask(plans, Deadline(2)))
    assert {message.metadata.ttl for message in grid.sent} == {2 + LATE_S}


def test_every_site_gets_its_own_plan_on_its_own_node(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan]
) -> None:
    list(fleet.ask(plans, Deadline(1)))
    got = {message.metadata.dst_node_id: flower_codec.from_records(message.content) for message in grid.sent}
    assert {node: plan.site for node, plan in got.items()} == {11: "north", 22: "south", 33: "east"}
    assert grid.batches == [1, 1, 1]


def test_the_same_weights_are_encoded_once_for_all_sites(
    fleet: FlowerSites, plans: dict[str, wire.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[object] = []
    encode = flower_codec.array_record
    monkeypatch.setattr(
        flower_codec, "array_record", lambda arrays: (encoded.append(arrays), encode(arrays))[1]
    )
    list(fleet.ask(plans, Deadline(1)))
    assert len(encoded) == 1


def answer_of(fleet: FlowerSites, plans: dict[str, wire.Plan], site: str) -> wire.Answer:
    return next(reply.answer for reply in fleet.ask(plans, Deadline(5)) if reply.site == site)


def test_a_site_is_who_its_key_says_and_not_who_it_claims_to_be(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan]
) -> None:
    grid.answer("south", 0.0, answers_as(site="north"))
    (reply,) = fleet.ask(plans, Deadline(1))
    assert reply.site == "south"
    assert isinstance(reply.answer, wire.Failure)
    assert (reply.answer.error, reply.answer.site) == ("message", "south")
    assert "answered as 'north'" in reply.answer.advice


def test_the_signed_head_of_an_answer_is_kept(
    grid: Grid, plans: dict[str, wire.Plan], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """North sends a head, south sends none, and east's gateway could not reach its trainer and has none."""
    fleet = FlowerSites(grid, NODES, audit_heads=AuditHeads(tmp_path, {}))  # type: ignore[arg-type]
    key = ec.generate_private_key(ec.SECP384R1())

    def signing(message: Message) -> Message:
        head = sign("north", "ab" * 32, key)
        return Message(flower_codec.with_head(answers_as()(message).content, head), reply_to=message)

    def unreachable(message: Message) -> Message:
        return Message(flower_codec.refuse(message.content, "unreachable", "1", "x"), reply_to=message)

    grid.answer("north", 0.0, signing)
    grid.answer("south", 0.0)
    grid.answer("east", 0.0, unreachable)
    with caplog.at_level(logging.WARNING, "consilium"):
        assert len(list(fleet.ask(plans, Deadline(1)))) == 3
    (line,) = (tmp_path / FILE).read_text().splitlines()
    kept = json.loads(line)
    assert (kept["site"], kept["plan_id"], kept["head"]) == ("north", "plan-north", "ab" * 32)
    assert "south: no signed head" in caplog.text
    assert "east: no signed head" not in caplog.text


def test_an_error_of_flower_is_a_site_that_cannot_be_reached(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan]
) -> None:
    secret = "/data/MUELLER.jpg"  # Flower puts the text of an exception in here
    grid.answer("south", 0.0, lambda message: Message(Error(code=3, reason=secret), reply_to=message))
    failure = answer_of(fleet, plans, "south")
    assert isinstance(failure, wire.Failure)
    assert (failure.error, failure.plan_id) == ("unreachable", "plan-south")
    assert "error 3" in failure.advice
    assert "MUELLER" not in failure.advice


def garbage(message: Message) -> Message:
    return Message(RecordDict({"consilium": ConfigRecord({"header": "{"})}), reply_to=message)


def echo(message: Message) -> Message:
    return Message(message.content, reply_to=message)


@pytest.mark.parametrize("reply", [garbage, echo], ids=["garbage", "its own plan"])
def test_what_is_no_answer_is_a_failure_of_that_site_only(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan], reply: Callable[[Message], Message]
) -> None:
    grid.answer("north", 0.0)
    grid.answer("south", 0.0, reply)
    answers = {reply.site: reply.answer for reply in fleet.ask(plans, Deadline(1))}
    assert isinstance(answers["north"], wire.RoundAnswer)
    assert isinstance(answers["south"], wire.Failure)
    assert answers["south"].error == "message"


def test_an_answer_that_flower_itself_cannot_read_costs_one_site_and_not_the_study(
    fleet: FlowerSites, grid: Grid, plans: dict[str, wire.Plan]
) -> None:
    def breaks(message: Message) -> Message:
        raise ValueError("not an object of Flower's")

    for site, reply in (("north", answers_as()), ("south", breaks), ("east", answers_as())):
        grid.answer(site, 0.0, reply)
    answers = {reply.site: reply.answer for reply in fleet.ask(plans, Deadline(1))}
    assert isinstance(answers["south"], wire.Failure)
    assert answers["south"].error == "message"
    assert {type(answers[site]) for site in ("north", "east")} == {wire.RoundAnswer}


@pytest.mark.parametrize("how", ["no id", "nothing"])
def test_a_plan_that_flower_does_not_take_is_reported_at_once(
    fleet: FlowerSites, grid: Grid, clock: Clock, plans: dict[str, wire.Plan],
    monkeypatch: pytest.MonkeyPatch, how: str,
) -> None:  # fmt: skip
    if how == "no id":
        grid.refused = set(NODES.values())
    else:
        monkeypatch.setattr(grid, "push_messages", lambda messages: [])
    answers = [reply.answer for reply in fleet.ask(plans, Deadline(3600))]
    assert [answer.error for answer in answers if isinstance(answer, wire.Failure)] == ["unreachable"] * 3
    assert clock.now == 1000.0


def test_only_enrolled_sites_are_online_whichever_others_are_connected(
    fleet: FlowerSites, grid: Grid
) -> None:
    grid.connected = {11, 33, 99}
    assert fleet.online() == {"north", "east"}


def test_an_answer_after_the_deadline_is_handed_over_as_late_with_the_next_round(
    fleet: FlowerSites, grid: Grid, clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    for site, after_s in (("north", 1.0), ("east", 1.0), ("south", 65.0)):
        grid.answer(site, after_s)
    assert sorted(reply.site for reply in fleet.ask(plans, Deadline(60))) == ["east", "north"]
    grid.answers.clear()
    grid.answer("south", 5.0)  # to both, the second comes after the first
    second = {"south": plans["south"].model_copy(update={"plan_id": "plan-2"})}
    late, wanted = fleet.ask(second, Deadline(60))
    assert (late.site, late.late, late.answer.plan_id) == ("south", True, "plan-south")
    assert (wanted.site, wanted.late, wanted.answer.plan_id) == ("south", False, "plan-2")


def test_a_plan_that_is_sent_again_is_answered_by_whichever_answer_comes(
    fleet: FlowerSites, grid: Grid, clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    south = {"south": plans["south"]}
    assert list(fleet.ask(south, Deadline(60))) == []
    grid.pull_messages, pull = lambda ids: pull(set(ids) & {"m0"}), grid.pull_messages  # the second is lost
    grid.answer("south", 5.0)
    (reply,) = fleet.ask(south, Deadline(60))
    assert not reply.late
    assert reply.answer.plan_id == "plan-south"


def test_what_can_come_no_more_is_forgotten(
    fleet: FlowerSites, clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    list(fleet.ask({"south": plans["south"]}, Deadline(60)))
    assert len(fleet._sent) == 1
    clock.now += LATE_S + 1
    list(fleet.ask({"north": plans["north"]}, Deadline(1)))
    assert [sent.plan.site for sent in fleet._sent.values()] == ["north"]


def test_the_weights_of_a_plan_on_its_way_are_not_kept(
    fleet: FlowerSites, plans: dict[str, wire.Plan]
) -> None:
    list(fleet.ask(plans, Deadline(1)))
    assert {len(wire.arrays_of(sent.plan)) for sent in fleet._sent.values()} == {0}


def test_a_site_that_loses_its_connection_is_named_while_it_is_waited_for(
    fleet: FlowerSites, grid: Grid, clock: Clock, plans: dict[str, wire.Plan], caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    caplog.set_level(logging.INFO, "consilium")
    grid.answer("north", 0.0)
    grid.answer("east", 0.0)
    sleep = clock.sleep

    def pass_time(seconds: float) -> None:
        sleep(seconds)
        grid.connected = {11, 33} if 1020 < clock.now < 1040 else {11, 22, 33}

    monkeypatch.setattr(clock, "sleep", pass_time)
    list(fleet.ask(plans, Deadline(60)))
    told = [record.getMessage() for record in caplog.records]
    assert told == ["south is not connected; its answer is awaited", "south is connected again"]


class Forgetful(Grid):
    """Hands each message to south once; what came before `restarts_at` is lost with the gateway."""

    restarts_at = 1010.0
    answers_plans = False

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        wanted = set(message_ids)
        for message in self.sent:
            if message.metadata.message_id not in wanted or self.clock.now < self.restarts_at:
                continue
            if flower_codec.is_probe(message.content):
                yield Message(flower_codec.probe(), reply_to=message)
            elif self.answers_plans or int(message.metadata.message_id[1:]) > 0:  # the first one is lost
                yield answers_as()(message)


def test_a_gateway_that_lost_its_plan_is_found_by_a_probe_and_gets_the_plan_again(
    clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    grid = Forgetful(clock)
    (reply,) = FlowerSites(grid, NODES).ask({"south": plans["south"]}, Deadline(3600))
    assert isinstance(reply.answer, wire.RoundAnswer)
    kinds = ["probe" if flower_codec.is_probe(message.content) else "plan" for message in grid.sent]
    assert kinds == ["plan", "probe", "plan"]
    # asked after 20 s, and each look is at most 2 s after the one before
    assert flower_sites.PROBE_S <= reply.after_s <= flower_sites.PROBE_S + 4 * flower_sites.LONGEST_POLL_S


def test_a_site_that_is_at_work_answers_no_probe_and_gets_its_plan_once(
    clock: Clock, plans: dict[str, wire.Plan]
) -> None:
    grid = Forgetful(clock)
    grid.restarts_at, grid.answers_plans = 1300.0, True  # it trains for 300 s, then answers both
    (reply,) = FlowerSites(grid, NODES).ask({"south": plans["south"]}, Deadline(3600))
    assert reply.after_s == pytest.approx(300, abs=2 * flower_sites.LONGEST_POLL_S)
    assert ["probe" if flower_codec.is_probe(message.content) else "plan" for message in grid.sent] == [
        "plan",
        "probe",
    ]


# --- answers that are announced, and weights in files ----------------------------------------


class Announced:
    """Says which messages have been answered, at the times of the answers."""

    def __init__(self, grid: Grid) -> None:
        self.grid = grid

    def wait(self, waited_s: float, left_s: float) -> set[str] | None:
        now = self.grid.clock.now
        due = min((at for at, _ in self.grid.answers.values() if at > now), default=now + 5.0)
        self.grid.clock.now = min(due, now + 5.0, now + left_s)
        if self.grid.clock.now < due:
            return None
        answered = {node for node, (at, _) in self.grid.answers.items() if at == due}
        return {m.metadata.message_id for m in self.grid.sent if m.metadata.dst_node_id in answered}


def test_an_announced_answer_is_seen_at_once_and_no_other_message_is_looked_at(
    grid: Grid, plans: dict[str, wire.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    looked: list[str] = []
    pull = grid.pull_messages
    monkeypatch.setattr(grid, "pull_messages", lambda ids: (looked.extend(ids), pull(ids))[1])
    sites = FlowerSites(grid, NODES, Announced(grid))  # type: ignore[arg-type]
    for site, after_s in (("north", 0.25), ("south", 0.5), ("east", 0.75)):
        grid.answer(site, after_s)
    replies = list(sites.ask(plans, Deadline(60)))
    assert [(reply.site, reply.after_s) for reply in replies] == [
        ("north", 0.25),
        ("south", 0.5),
        ("east", 0.75),
    ]
    assert looked == ["m0", "m1", "m2", "m0", "m1", "m2"]  # all at the beginning, then each when it was due


def test_what_nobody_announces_is_looked_for_all_the_same(
    grid: Grid, clock: Clock, plans: dict[str, wire.Plan], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower answers itself for a site that is not connected, and announces nothing."""
    sites = FlowerSites(grid, NODES, Announced(grid))  # type: ignore[arg-type]
    monkeypatch.setattr(sites.announcements, "wait", lambda *_: setattr(clock, "now", clock.now + 5.0))
    grid.answer("south", 7.0)
    (reply,) = sites.ask({"south": plans["south"]}, Deadline(60))
    assert reply.after_s == 10.0


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "weights"


@pytest.fixture
def with_files(grid: Grid, folder: Path) -> FlowerSites:
    files = WeightFiles(folder)
    files.begin()
    return FlowerSites(grid, NODES, files=files)  # type: ignore[arg-type]


@pytest.fixture
def large(plans: dict[str, wire.Plan]) -> dict[str, wire.Plan]:
    weights = {"w": np.arange(INLINE_BYTES, dtype=np.float32)}
    return {site: plan.model_copy(update={"weights": weights}) for site, plan in plans.items()}


def weight_files(folder: Path) -> set[Path]:
    return {path for path in folder.rglob("*") if path.is_file() and path.name != "limit"}


def test_large_weights_are_one_file_with_a_name_for_each_site(
    with_files: FlowerSites, grid: Grid, large: dict[str, wire.Plan], folder: Path
) -> None:
    list(with_files.ask(large, Deadline(1)))
    files = weight_files(folder)
    assert len(files) == 3
    assert len({path.stat().st_ino for path in files}) == 1
    for message in grid.sent:
        apart = flower_codec.beside(message.content)
        assert apart is not None
        (path,) = (path for path in files if path.name == apart.name)
        assert path.parts[-3] == str(message.metadata.dst_node_id)
        assert path.stat().st_size == apart.size
    size = next(iter(files)).stat().st_size
    limit = int((folder / "11" / "limit").read_text())
    assert limit == 2 * size + 64 * 2**20


def test_small_weights_travel_in_their_message(
    with_files: FlowerSites, grid: Grid, plans: dict[str, wire.Plan], folder: Path
) -> None:
    list(with_files.ask(plans, Deadline(1)))
    assert weight_files(folder) == set()
    assert isinstance(flower_codec.from_records(grid.sent[0].content), wire.RoundPlan)


def test_an_answer_stays_in_its_file_while_it_is_held_and_no_longer(
    with_files: FlowerSites, grid: Grid, large: dict[str, wire.Plan], folder: Path
) -> None:
    plan = large["south"]
    said = wire.RoundAnswer(
        plan_id=plan.plan_id, site="south", round=1, scores={"validation": empty(3)}, num_examples=4, num_steps=1,
        train_loss=0.5, train_s=1.0, evaluate_s=1.0, delta={"w": np.ones(4, np.float32)},
    )  # fmt: skip

    def uploaded(message: Message) -> Message:
        assert with_files.files is not None
        name = with_files.files.write(NODES["south"], [codec.to_bytes(said)])
        return Message(flower_codec.Beside("", name, 1).records(), reply_to=message)

    grid.answer("south", 0.0, uploaded)
    (reply,) = with_files.ask({"south": plan}, Deadline(5))
    assert isinstance(reply.answer, wire.RoundAnswer)
    delta = reply.answer.delta
    assert isinstance(delta, Stored)
    assert len(weight_files(folder)) == 1  # the weights of its plan are gone
    assert delta["w"].tolist() == [1, 1, 1, 1]
    array = delta["w"]
    del reply, delta
    assert weight_files(folder) == set()
    assert array.tolist() == [1, 1, 1, 1]


def test_of_an_answer_that_is_no_message_no_file_stays(
    with_files: FlowerSites, grid: Grid, large: dict[str, wire.Plan], folder: Path
) -> None:
    def uploaded(message: Message) -> Message:
        assert with_files.files is not None
        name = with_files.files.write(NODES["south"], [b"no message at all"])
        return Message(flower_codec.Beside("", name, 1).records(), reply_to=message)

    grid.answer("south", 0.0, uploaded)
    (reply,) = with_files.ask({"south": large["south"]}, Deadline(5))
    assert isinstance(reply.answer, wire.Failure)
    assert "not a Consilium message" in reply.answer.message
    assert weight_files(folder) == set()


@pytest.mark.parametrize("name", ["0" * 32, "../state.db", ""])
def test_an_answer_that_names_a_file_which_was_not_uploaded_is_a_failure_of_its_site(
    with_files: FlowerSites, grid: Grid, large: dict[str, wire.Plan], name: str
) -> None:
    grid.answer(
        "south", 0.0, lambda message: Message(flower_codec.Beside("", name, 1).records(), reply_to=message)
    )
    (reply,) = with_files.ask({"south": large["south"]}, Deadline(5))
    assert isinstance(reply.answer, wire.Failure)
    assert "not uploaded" in reply.answer.advice


def test_a_plan_that_flower_does_not_take_or_that_expired_leaves_no_file(
    with_files: FlowerSites, grid: Grid, clock: Clock, large: dict[str, wire.Plan], folder: Path
) -> None:
    grid.refused = {NODES["south"]}
    list(with_files.ask({"south": large["south"]}, Deadline(5)))
    assert weight_files(folder) == set()
    list(with_files.ask({"north": large["north"]}, Deadline(5)))
    assert len(weight_files(folder)) == 1
    clock.now += LATE_S + 1
    list(with_files.ask({}, Deadline(1)))
    assert weight_files(folder) == set()
