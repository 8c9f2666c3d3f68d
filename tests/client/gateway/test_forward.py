"""What the gateway forwards: it adds nothing of its own, and reads nothing."""

import logging
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.app import ConfigRecord, RecordDict

from client.gateway import forward as forwarding
from client.gateway.connection import CallFailed, MessageGone
from client.gateway.link import SocketLink, serve
from common import wire
from common.config import StudyConfig
from common.errors import WireError
from common.heads.result import HeadResult
from common.masking.roster import Announcement
from common.metrics import Score, empty
from common.metrics.calibration import CalibrationCounts
from common.metrics.paired import Paired
from common.metrics.replicates import Replicates
from common.metrics.subgroups import SubgroupCounts
from common.weights import digest
from common.wire import ImageSummary, Sizes, codec, flower_codec
from common.wire.gateway_calls import INLINE_BYTES
from common.wire.signed_heads import SignedHead, sign

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _log_is_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)


@pytest.fixture
def plan(make_study: MakeStudy) -> wire.RoundPlan:
    weights = {"head.weight": np.arange(6, dtype=np.float32).reshape(2, 3), "scale": np.float32(2.5)}
    return wire.RoundPlan(
        plan_id="p1", site="north", study=make_study(), round=1, train=True, weights=weights
    )


KEY = ec.generate_private_key(ec.SECP384R1())


class Server:
    """Files of arrays that are on the server, and what was uploaded there."""

    def __init__(self, **files: bytes) -> None:
        self.files, self.uploaded = files, dict[str, bytes]()
        self.failing: Exception | None = None

    def download(self, name: str, timeout_s: float) -> Iterator[bytes]:
        for start in range(0, len(self.files[name]), 1000):
            if self.failing is not None and start > 3000:
                raise self.failing
            yield self.files[name][start : start + 1000]

    def upload(self, pieces: Iterable[bytes], timeout_s: float) -> str:
        if self.failing is not None:
            raise self.failing
        self.uploaded["u"] = b"".join(pieces)
        return "u"

    def signed(self, audit_head: str) -> SignedHead:
        return sign("north", audit_head, KEY)


def forward(content: RecordDict, socket: Path, server: Server | None = None, ttl: float = 60.0) -> RecordDict:
    link = SocketLink(socket)
    try:
        return forwarding.answer(content, link, server or Server(), ttl)
    finally:
        link.close()


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
        plan_id="p1", site="north", round=1, scores={"validation": empty(3)}, num_examples=5, num_steps=2,
        train_loss=float("nan"), train_s=1.0, evaluate_s=0.5,
        delta={"head.weight": np.full((2, 3), np.inf, np.float32), "scale": np.float32(-1)},
    )  # fmt: skip
    seen: list[bytes] = []

    def answer(request: bytes) -> bytes:
        seen.append(request)
        return codec.to_bytes(said)

    with trainer(answer, tmp_path / "t.sock") as socket:
        reply = forward(flower_codec.to_records(plan), socket)
    header, arrays = codec.split(seen[0])
    expected_header, expected = codec.split(codec.to_bytes(plan))
    assert header == expected_header
    assert {name: (a.shape, a.tobytes()) for name, a in arrays.items()} == {
        name: (a.shape, a.tobytes()) for name, a in expected.items()
    }
    answered = flower_codec.from_records(reply)
    assert isinstance(answered, wire.RoundAnswer)
    assert codec.to_bytes(answered) == codec.to_bytes(said)


def test_records_are_forwarded_unread_even_if_no_plan_says_such_a_thing(tmp_path: Path) -> None:
    """A gateway of an older version must pass on what only server and trainer understand."""
    content = flower_codec.to_records(wire.Failure(plan_id="1", site="x", error="data", case="1", advice="-"))
    content["consilium"] = ConfigRecord({"header": '{"schema": 99, "kind": "new"}'})
    seen: list[str] = []

    def answer(request: bytes) -> bytes:
        seen.append(codec.split(request)[0])
        return request

    with trainer(answer, tmp_path / "t.sock") as socket:
        reply = forward(content, socket)
    assert seen == ['{"schema": 99, "kind": "new"}']
    assert reply.config_records["consilium"]["header"] == seen[0]


def test_the_head_of_the_trainers_log_is_signed_and_goes_with_its_answer(
    plan: wire.RoundPlan, tmp_path: Path
) -> None:
    said = codec.to_bytes(wire.Failure(plan_id="p1", site="north", error="data", case="1", advice="x"))
    server = serve(lambda _: said, tmp_path / "t.sock", lambda: "ab" * 32)
    try:
        reply = forward(flower_codec.to_records(plan), tmp_path / "t.sock")
    finally:
        server.stop(grace=None).wait()
    head = flower_codec.signed_head(reply)
    assert head is not None
    assert (head.site, head.head, head.is_right()) == ("north", "ab" * 32, True)
    assert codec.to_bytes(flower_codec.from_records(reply)) == said


@pytest.mark.parametrize("said", ["", "2026-11-26T12:00:00+00:00", "AB" * 32, "ab" * 33])
def test_nothing_but_a_hash_is_signed_for_the_trainer(
    plan: wire.RoundPlan, tmp_path: Path, said: str
) -> None:
    """A trainer that was taken over must not get a signature with which one can connect."""
    server = serve(lambda request: request, tmp_path / "t.sock", lambda: said)
    try:
        reply = forward(flower_codec.to_records(plan), tmp_path / "t.sock")
    finally:
        server.stop(grace=None).wait()
    assert flower_codec.signed_head(reply) is None


def test_a_probe_is_answered_by_the_gateway_alone() -> None:
    assert flower_codec.is_probe(forward(flower_codec.probe(), Path("nobody.sock")))
    assert not flower_codec.is_probe(
        flower_codec.to_records(wire.Failure(plan_id="1", site="x", error="data", case="1", advice="-"))
    )


def failure(reply: RecordDict) -> wire.Failure:
    answer = flower_codec.from_records(reply)
    assert isinstance(answer, wire.Failure), answer
    return answer


def test_a_trainer_that_does_not_answer_is_named_without_a_path(
    plan: wire.RoundPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    socket = tmp_path / "MUELLER.sock"
    answer = failure(forward(flower_codec.to_records(plan), socket, ttl=0.3))
    assert (answer.error, answer.plan_id, answer.site) == ("unreachable", "p1", "north")
    assert "MUELLER" not in answer.model_dump_json()
    assert str(tmp_path) not in answer.model_dump_json()
    assert answer.case in caplog.text


def test_a_trainer_that_answers_nonsense_is_another_version(plan: wire.RoundPlan, tmp_path: Path) -> None:
    with trainer(lambda _: b"MUELLER", tmp_path / "t.sock") as socket:
        answer = failure(forward(flower_codec.to_records(plan), socket))
    assert answer.error == "message"
    assert "MUELLER" not in answer.model_dump_json()


def test_a_path_too_long_for_a_socket_stands_in_the_gateways_log_only(
    plan: wire.RoundPlan, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    answer = failure(forward(flower_codec.to_records(plan), tmp_path / ("MUELLER" * 20)))
    assert answer.error == "unreachable"
    assert "MUELLER" not in answer.model_dump_json()
    assert "name a shorter one" in caplog.text


# --- arrays beside the message ---------------------------------------------------------------


@pytest.fixture
def large(plan: wire.RoundPlan, tmp_path: Path) -> tuple[wire.RoundPlan, RecordDict, Server]:
    """A plan with 1 MiB of weights in a file on the server."""
    weights = {"w": np.arange(2**18, dtype=np.float32), "scale": np.float32(2.5)}
    plan = plan.model_copy(update={"weights": weights})
    codec.save_arrays(weights, tmp_path / "weights")
    server = Server(f1=(tmp_path / "weights").read_bytes())
    return plan, flower_codec.Beside(codec.header_of(plan), "f1", len(server.files["f1"])).records(), server


def test_a_plan_with_weights_in_a_file_is_the_same_plan_to_the_trainer(
    large: tuple[wire.RoundPlan, RecordDict, Server], tmp_path: Path
) -> None:
    plan, content, server = large
    seen: list[bytes] = []

    def answer(request: bytes) -> bytes:
        seen.append(request)
        return b""

    with trainer(answer, tmp_path / "t.sock") as socket:
        forward(content, socket, server)
    received = codec.from_bytes(seen[0])
    assert isinstance(received, wire.RoundPlan)
    assert digest(received.weights) == digest(plan.weights)
    assert received.model_copy(update={"weights": {}}) == plan.model_copy(update={"weights": {}})


def test_a_large_answer_is_uploaded_as_it_is_and_named(
    large: tuple[wire.RoundPlan, RecordDict, Server], tmp_path: Path
) -> None:
    _, content, server = large
    answered = bytes(INLINE_BYTES + 1)
    with trainer(lambda _: answered, tmp_path / "t.sock") as socket:
        apart = flower_codec.beside(forward(content, socket, server))
    assert apart == flower_codec.Beside("", "u", INLINE_BYTES + 1)
    assert server.uploaded["u"] == answered


def test_a_small_answer_travels_in_its_message(
    large: tuple[wire.RoundPlan, RecordDict, Server], tmp_path: Path
) -> None:
    _, content, server = large
    said = wire.Failure(plan_id="p1", site="north", error="data", case="1", advice="-")
    with trainer(lambda _: codec.to_bytes(said), tmp_path / "t.sock") as socket:
        assert flower_codec.from_records(forward(content, socket, server)) == said
    assert server.uploaded == {}


@pytest.mark.parametrize("when", ["download", "upload"])
def test_a_line_that_breaks_is_not_reported_as_a_fault_of_the_trainer(
    large: tuple[wire.RoundPlan, RecordDict, Server], tmp_path: Path, when: str
) -> None:
    """The message can be answered on the next connection, so there is nothing to tell yet."""
    plan, content, server = large
    server.failing = CallFailed(grpc.StatusCode.UNAVAILABLE, "Socket closed")
    if when == "upload":
        content = flower_codec.to_records(plan)
    with (
        trainer(lambda _: bytes(2 * INLINE_BYTES), tmp_path / "t.sock") as socket,
        pytest.raises(CallFailed, match="Socket closed"),
    ):
        forward(content, socket, server)


def test_weights_that_the_server_has_taken_back_are_of_no_interest_any_more(
    large: tuple[wire.RoundPlan, RecordDict, Server], tmp_path: Path
) -> None:
    _, content, server = large
    server.failing = MessageGone("no such weights; their round is over")
    with trainer(lambda _: b"", tmp_path / "t.sock") as socket, pytest.raises(MessageGone):
        forward(content, socket, server)


def test_an_answer_that_the_server_does_not_take_for_its_size_is_a_failure_of_this_site(
    large: tuple[wire.RoundPlan, RecordDict, Server], tmp_path: Path
) -> None:
    plan, _, server = large
    server.failing = CallFailed(grpc.StatusCode.RESOURCE_EXHAUSTED, "the answer is larger")
    with trainer(lambda _: bytes(2 * INLINE_BYTES), tmp_path / "t.sock") as socket:
        answer = failure(forward(flower_codec.to_records(plan), socket, server))
    assert (answer.error, answer.plan_id) == ("message", "p1")


def test_a_message_that_does_not_say_what_it_is_cannot_be_answered_in_its_name(tmp_path: Path) -> None:
    with pytest.raises(WireError):
        forward(RecordDict({"consilium": ConfigRecord({"header": "{"})}), tmp_path / "t.sock")


# Everything that can leave a hospital. A change here needs the same change in docs/what-leaves.md,
# which is what hospitals read before they agree.
LEAVES: dict[type[Any], set[str]] = {
    wire.ApprovalAnswer: {"kind", "plan_id", "site", "decision", "reason"},
    wire.Enrolment: {
        "kind", "plan_id", "site", "layout", "weights_digest", "frozen_digest", "preprocessing",
        "train_counts", "validation_counts", "test_counts", "withheld", "device", "images", "weights",
    },
    ImageSummary: {"sizes", "mean", "std"},
    Sizes: {"width", "height"},
    wire.OverlapAnswer: {"kind", "plan_id", "site", "check", "same", "similar"},
    wire.RoundAnswer: {
        "kind", "plan_id", "site", "round", "scores", "own", "subgroups", "num_examples", "num_steps",
        "train_loss", "train_s", "evaluate_s", "epsilon", "delta", "calibration", "score_bins",
        "replicates",
    },
    SubgroupCounts: {"confusion_VCC"},
    Replicates: {"num_patients", "test_set", "sums"},
    CalibrationCounts: {"losses_T", "reliability_T2K", "confidence_TK", "histogram_CB"},
    wire.HeadAnswer: {
        "kind", "plan_id", "site", "round", "step", "train_counts", "results", "outliers", "seconds", "epsilon",
        "score_bins", "arrays",
    },
    wire.MaskAnswer: {
        "kind", "plan_id", "site", "round", "keys", "envelopes", "seed_shares", "key_shares", "census",
    },
    Announcement: {"mask_key", "envelope_key", "signature"},
    HeadResult: {"title", "score", "problem", "paired", "interval"},
    Paired: {"right_C4", "num_groups", "products"},
    wire.Failure: {"kind", "plan_id", "site", "error", "case", "advice", "reason"},
    Score: {
        "confusion_CC", "histogram_C2B", "calibration_2K", "confidence_K", "loss_sum", "num_bins", "left_out_C",
        "noise",
    },
    SignedHead: {"site", "head", "signature", "key"},
}  # fmt: skip


@pytest.mark.parametrize("kind", LEAVES, ids=lambda kind: kind.__name__)
def test_every_field_that_leaves_a_hospital_is_listed(kind: type[Any]) -> None:
    assert set(kind.model_fields) == LEAVES[kind]


def test_no_other_kind_of_answer_exists() -> None:
    answers = {
        wire.ApprovalAnswer, wire.Enrolment, wire.RoundAnswer, wire.HeadAnswer, wire.OverlapAnswer, wire.MaskAnswer,
        wire.Failure,
    }  # fmt: skip
    assert set(wire.Answer.__args__) == answers  # type: ignore[attr-defined]
    parts = {
        Score, SubgroupCounts, Replicates, CalibrationCounts, ImageSummary, Sizes, HeadResult, Paired, SignedHead,
        Announcement,
    }  # fmt: skip
    assert answers | parts == LEAVES.keys()
