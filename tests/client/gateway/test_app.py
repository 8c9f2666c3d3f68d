"""The gateway: forwards what it does not understand, and adds nothing of its own."""

import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from client.gateway import app
from client.gateway.link import serve
from common import wire
from common.config import StudyConfig
from common.heads.result import HeadResult
from common.metrics import Score, empty
from common.metrics.paired import Paired
from common.wire import ImageSummary, Sizes, codec
from tests.places import ROOT

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _inside_a_task(monkeypatch: pytest.MonkeyPatch) -> None:
    """Flower lets a Message be built only by a process that runs one of its tasks."""
    for name in ("_task_id", "_run_id", "_node_id"):
        monkeypatch.setattr(TaskIdentity, name, 1)
    monkeypatch.setattr("common.log.start", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)


@pytest.fixture
def plan(make_study: MakeStudy) -> wire.RoundPlan:
    weights = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32(2.5)}
    return wire.RoundPlan(
        plan_id="p1", site="north", study=make_study(), round=1, train=True, weights=weights
    )


def message(content: RecordDict, ttl: float = 60.0) -> Message:
    sent = Message(content, dst_node_id=7, message_type=MessageType.QUERY, ttl=ttl, group_id="p1")
    sent.metadata.__dict__["_message_id"] = "m1"  # as the SuperLink does
    return sent


def context(socket: Path | None) -> Context:
    config = {"site": "north"} | ({} if socket is None else {"trainer": str(socket)})
    return Context(run_id=1, node_id=7, node_config=config, state=RecordDict(), run_config={})


@contextmanager
def trainer(answer: Callable[[bytes], bytes], socket: Path) -> Iterator[Path]:
    server = serve(answer, socket)
    try:
        yield socket
    finally:
        server.stop(grace=None).wait()


def test_a_plan_reaches_the_trainer_and_its_answer_the_server_both_unchanged(
    plan: wire.RoundPlan, tmp_path: Path
) -> None:
    said = wire.RoundAnswer(
        plan_id="p1", site="north", round=1, score=empty(3), num_examples=5, num_steps=2,
        train_loss=float("nan"), train_s=1.0, evaluate_s=0.5,
        delta={"head.weight": np.full((2, 3), np.inf, np.float32), "scale": np.float32(-1)},
    )  # fmt: skip
    seen: list[bytes] = []

    def answer(request: bytes) -> bytes:
        seen.append(request)
        return codec.to_bytes(said)

    with trainer(answer, tmp_path / "t.sock") as socket:
        reply = app.answer(message(codec.to_records(plan)), context(socket))
    header, arrays = codec.split(seen[0])
    expected_header, expected = codec.split(codec.to_bytes(plan))
    assert header == expected_header
    assert {name: (a.shape, a.tobytes()) for name, a in arrays.items()} == {
        name: (a.shape, a.tobytes()) for name, a in expected.items()
    }
    answered = codec.from_records(reply.content)
    assert isinstance(answered, wire.RoundAnswer)
    assert codec.to_bytes(answered) == codec.to_bytes(said)
    assert reply.metadata.reply_to_message_id == "m1"


def test_records_are_forwarded_unread_even_if_no_plan_says_such_a_thing(tmp_path: Path) -> None:
    """A gateway of an older version must pass on what only server and trainer understand."""
    content = codec.to_records(wire.Failure(plan_id="1", site="x", error="data", case="1", advice="-"))
    content["consilium"] = ConfigRecord({"header": '{"schema": 99, "kind": "new"}'})
    seen: list[str] = []

    def answer(request: bytes) -> bytes:
        seen.append(codec.split(request)[0])
        return request

    with trainer(answer, tmp_path / "t.sock") as socket:
        reply = app.answer(message(content), context(socket))
    assert seen == ['{"schema": 99, "kind": "new"}']
    assert reply.content.config_records["consilium"]["header"] == seen[0]


def test_a_probe_is_answered_by_the_gateway_alone() -> None:
    reply = app.answer(message(codec.probe()), context(None))
    assert codec.is_probe(reply.content)
    assert not codec.is_probe(
        codec.to_records(wire.Failure(plan_id="1", site="x", error="data", case="1", advice="-"))
    )


def failure(reply: Message) -> wire.Failure:
    answer = codec.from_records(reply.content)
    assert isinstance(answer, wire.Failure), answer
    return answer


def test_a_trainer_that_does_not_answer_is_named_without_a_path(
    plan: wire.RoundPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    socket = tmp_path / "MUELLER.sock"
    answer = failure(app.answer(message(codec.to_records(plan), ttl=0.3), context(socket)))
    assert (answer.error, answer.plan_id, answer.site) == ("unreachable", "p1", "north")
    assert "MUELLER" not in answer.model_dump_json()
    assert str(tmp_path) not in answer.model_dump_json()
    assert answer.case in caplog.text


def test_a_trainer_that_answers_nonsense_is_another_version(plan: wire.RoundPlan, tmp_path: Path) -> None:
    with trainer(lambda _: b"MUELLER", tmp_path / "t.sock") as socket:
        answer = failure(app.answer(message(codec.to_records(plan)), context(socket)))
    assert answer.error == "message"
    assert "MUELLER" not in answer.model_dump_json()


def test_a_gateway_without_the_address_of_its_trainer_says_that_it_failed(plan: wire.RoundPlan) -> None:
    assert failure(app.answer(message(codec.to_records(plan)), context(None))).error == "internal"


def test_a_path_too_long_for_a_socket_is_told_in_the_gateways_log_only(
    plan: wire.RoundPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    reply = app.answer(message(codec.to_records(plan)), context(tmp_path / ("MUELLER" * 20)))
    assert failure(reply).error == "unreachable"
    assert "MUELLER" not in failure(reply).model_dump_json()
    assert "name a shorter one" in caplog.text


_ANSWERS_WITHOUT_TORCH = """
import sys
from pathlib import Path
from flwr.app import Context, Message, MessageType, RecordDict
from flwr.supercore.task_identity import TaskIdentity
from client.gateway import app, link
from common import wire
from common.wire import codec

TaskIdentity.task_id = TaskIdentity.run_id = TaskIdentity.node_id = 1
socket = Path(sys.argv[1])
server = link.serve(lambda request: request, socket)
sent = codec.to_records(wire.Failure(plan_id="1", site="x", error="data", case="1", advice="-"))
message = Message(sent, dst_node_id=7, message_type=MessageType.QUERY, ttl=60.0)
message.metadata.__dict__["_message_id"] = "m1"
context = Context(1, 7, {"trainer": str(socket)}, RecordDict(), {})
reply = codec.from_records(app.app(message, context).content)
server.stop(None).wait()
assert reply.error == "data", reply
heavy = {"torch", "timm", "PIL", "sklearn", "client.trainer", "client.config"} & sys.modules.keys()
sys.exit(f"loaded {heavy}" if heavy else 0)
"""


def test_a_gateway_answers_as_flowers_app_without_loading_torch_or_the_trainer(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _ANSWERS_WITHOUT_TORCH, str(tmp_path / "t.sock")],
        cwd=ROOT, timeout=120, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


# Everything that can leave a hospital. A change here needs the same change in docs/what-leaves.md,
# which is what hospitals read before they agree.
LEAVES: dict[type[Any], set[str]] = {
    wire.ApprovalAnswer: {"kind", "plan_id", "site", "decision", "reason"},
    wire.Enrolment: {
        "kind", "plan_id", "site", "layout", "weights_digest", "frozen_digest", "preprocessing",
        "train_counts", "test_counts", "withheld", "device", "images", "weights",
    },
    ImageSummary: {"sizes", "mean", "std"},
    Sizes: {"width", "height"},
    wire.OverlapAnswer: {"kind", "plan_id", "site", "check", "same", "similar"},
    wire.RoundAnswer: {
        "kind", "plan_id", "site", "round", "score", "num_examples", "num_steps", "train_loss",
        "train_s", "evaluate_s", "delta",
    },
    wire.HeadAnswer: {
        "kind", "plan_id", "site", "round", "step", "train_counts", "results", "seconds", "arrays",
    },
    HeadResult: {"title", "score", "problem", "paired", "interval"},
    Paired: {"right_C4", "num_groups", "products"},
    wire.Failure: {"kind", "plan_id", "site", "error", "case", "advice", "reason"},
    Score: {"confusion_CC", "histogram_C2B", "calibration_2K", "confidence_K", "loss_sum", "num_bins"},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_field_that_leaves_a_hospital_is_listed(kind: type[Any]) -> None:
    assert set(kind.model_fields) == LEAVES[kind]


def test_no_other_kind_of_answer_exists() -> None:
    answers = {
        wire.ApprovalAnswer, wire.Enrolment, wire.RoundAnswer, wire.HeadAnswer, wire.OverlapAnswer, wire.Failure,
    }  # fmt: skip
    assert set(wire.Answer.__args__) == answers  # type: ignore[attr-defined]
    parts = {Score, ImageSummary, Sizes, HeadResult, Paired}
    assert answers | parts == LEAVES.keys()
