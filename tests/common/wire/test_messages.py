"""Messages survive both ways of travelling bit for bit, and nothing else gets through."""

import io
import json
import math
import pickle

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given, settings
from hypothesis import strategies as st

from common import wire
from common.config import ClassifierConfig, FedProx, SitesConfig, StudyConfig
from common.errors import WireError
from common.heads.result import HeadResult
from common.metrics import count
from common.metrics.calibration import calibration_counts
from common.metrics.paired import pair
from common.metrics.replicates import NUM_REPLICATES, replicates
from common.weights import TensorSpec, digest
from common.wire import ImageSummary, Sizes, codec, flower_codec, head_steps

STUDY = StudyConfig(
    name="demo",
    classes=("benign", "malignant"),
    sites=SitesConfig(train=("north", "south")),
    model=ClassifierConfig(encoder="convnext_t"),
    rounds=3,
    algorithm=FedProx(mu=0.1),
)
SCORE = count(np.array([[0.9, 0.1], [0.25, 0.75]]), np.array([0, 1]), loss_sum=0.1 + 0.2)
# Values that a careless detour through text, float32 or a copy would change.
ARRAYS = {
    "stem.weight": np.array([[1 / 3, -0.0], [5e-324, 1e308]], np.float64),
    "head.bias": np.array([np.nan, np.inf, 1e-45], np.float32),
    "scale": np.array(0.1, np.float32),
    "none": np.zeros((0, 3), np.float32),
    "turned": np.arange(6, dtype=np.float32).reshape(2, 3).T,
}
LAYOUT = {name: TensorSpec(shape=a.shape, dtype=str(a.dtype)) for name, a in ARRAYS.items()}

MESSAGES = {
    "approval plan": wire.ApprovalPlan(plan_id="p0", site="north", study=STUDY, hold_s=30),
    "enrol plan": wire.EnrolPlan(plan_id="p1", site="north", study=STUDY, want_weights=True),
    "round plan": wire.RoundPlan(
        plan_id="p2", site="north", study=STUDY, round=2, train=True, weights=ARRAYS
    ),
    "round plan with a notice": wire.RoundPlan(
        plan_id="p3",
        site="north",
        study=STUDY,
        round=3,
        train=True,
        notice="its norm is 9, expected 2",
        weights=ARRAYS,
    ),
    "enrolment": wire.Enrolment(
        plan_id="p1",
        site="north",
        layout=LAYOUT,
        weights_digest="ab",
        frozen_digest="cd",
        preprocessing={"image_size": 64, "mean": [0.5, 0.5, 0.5], "interpolation": "bicubic"},
        train_counts=(3, 4),
        validation_counts=(1, 0),
        test_counts=(1, 0),
        device="cpu",
        weights=ARRAYS,
    ),
    "enrolment without weights": wire.Enrolment(
        plan_id="p1",
        site="south",
        layout=LAYOUT,
        weights_digest="ab",
        frozen_digest="cd",
        preprocessing={},
        train_counts=(3, 4),
        validation_counts=(1, 0),
        test_counts=(1, 0),
        device="cpu",
        weights={},
    ),
    "enrolment with a summary": wire.Enrolment(
        plan_id="p1",
        site="south",
        layout=LAYOUT,
        weights_digest="ab",
        frozen_digest="cd",
        preprocessing={},
        train_counts=(3, 4),
        validation_counts=(1, 0),
        test_counts=(1, 0),
        device="cpu",
        images=ImageSummary(
            sizes=Sizes(width=(600, 1024), height=(450, 450)), mean=(0.7, 0.5, 0.6), std=(0.1, 0.2, 0.3)
        ),
        weights={},
    ),
    "head plan": wire.HeadPlan(
        plan_id="h1",
        site="north",
        study=STUDY,
        round=3,
        weights_digest="ab",
        step=head_steps.GradientsStep(
            objectives=(head_steps.Objective(name="svm", loss="squared_hinge", class_weights=(0.1, 1.9)),)
        ),
        arrays=ARRAYS,
    ),
    "head answer": wire.HeadAnswer(
        plan_id="h1",
        site="north",
        round=3,
        step="score",
        train_counts=(3, 4),
        results=(
            HeadResult(
                title="federated.lda",
                score=SCORE,
                paired=pair(np.array([True, False]), np.array([True, True]), np.array([0, 1]), "ab", 2),
                interval=(-0.1, 1 / 3),
            ),
            HeadResult(title="local.svm_rbf", problem="one_class"),
        ),
        seconds=0.1,
        arrays=ARRAYS,
    ),
    "overlap plan": wire.OverlapPlan(plan_id="p4", site="north", study=STUDY),
    "overlap plan that tells": wire.OverlapPlan(plan_id="p5", site="north", study=STUDY, shared=("0a" * 16,)),
    "overlap answer": wire.OverlapAnswer(
        plan_id="p4",
        site="north",
        check="1f" * 8,
        same=("0a" * 16, "0b" * 16),
        similar=("0c" * 16, "0d" * 16),
    ),
    "answer": wire.RoundAnswer(
        plan_id="p2",
        site="north",
        round=2,
        scores={"validation": SCORE, "test": SCORE},
        num_examples=7,
        num_steps=1,
        train_loss=1 / 3,
        train_s=0.1,
        evaluate_s=0.2,
        delta=ARRAYS,
    ),
    "answer with calibration counts": wire.RoundAnswer(
        plan_id="p2",
        site="north",
        round=2,
        scores={"test": SCORE},
        calibration=calibration_counts(np.array([[0.9, 0.1], [0.3, 0.7]]), np.array([0, 1]), 20),
        num_examples=0,
        num_steps=0,
        train_loss=None,
        train_s=0.0,
        evaluate_s=0.2,
        delta={},
    ),
    "answer with a loss that is not finite": wire.RoundAnswer(
        plan_id="p2",
        site="north",
        round=2,
        scores={"validation": SCORE, "test": SCORE},
        num_examples=7,
        num_steps=1,
        train_loss=math.inf,
        train_s=0.1,
        evaluate_s=0.2,
        delta={},
    ),
    "answer with sums over test patients": wire.RoundAnswer(
        plan_id="p2",
        site="north",
        round=4,
        scores={"test": SCORE},
        replicates=replicates(np.eye(2, 7), np.ones((2, NUM_REPLICATES)) / 3, "0a" * 8),
        num_examples=0,
        num_steps=0,
        train_loss=None,
        train_s=0.0,
        evaluate_s=0.2,
        delta={},
    ),
    "approval answer": wire.ApprovalAnswer(plan_id="p0", site="north", decision="no", reason="no vote"),
    "failure": wire.Failure(
        plan_id="p2", site="north", error="memory", case="1a2b", advice="lower micro_batch_size"
    ),
}
every_message = pytest.mark.parametrize("message", MESSAGES.values(), ids=MESSAGES.keys())


def shapes(message) -> dict:
    return {name: (array.shape, array.dtype) for name, array in wire.arrays_of(message).items()}


def assert_same(found, expected) -> None:
    assert type(found) is type(expected)
    assert found.model_dump(mode="json") == expected.model_dump(mode="json")
    assert digest(wire.arrays_of(found)) == digest(wire.arrays_of(expected))
    assert shapes(found) == shapes(expected)


@every_message
def test_a_message_survives_bytes(message):
    assert_same(codec.from_bytes(codec.to_bytes(message)), message)


@every_message
def test_a_message_survives_flower_records(message):
    assert_same(flower_codec.from_records(flower_codec.to_records(message)), message)


@every_message
def test_the_gateway_turns_one_form_into_the_other_and_back(message):
    as_bytes = flower_codec.records_to_bytes(flower_codec.to_records(message))
    assert_same(codec.from_bytes(as_bytes), message)
    assert_same(flower_codec.from_records(flower_codec.bytes_to_records(as_bytes)), message)


def test_arrays_are_encoded_once_for_all_sites():
    shared = flower_codec.array_record(ARRAYS)
    records = flower_codec.to_records(MESSAGES["round plan"], shared)
    assert_same(flower_codec.from_records(records), MESSAGES["round plan"])
    assert records.array_records["arrays"] is shared


@pytest.mark.parametrize("size", [0, 1, codec.CHUNK_BYTES, codec.CHUNK_BYTES + 1])
def test_chunks_join_to_what_they_were(size):
    data = bytes(size)
    pieces = list(codec.chunks(data))
    assert b"".join(pieces) == data
    assert all(0 < len(piece) <= codec.CHUNK_BYTES for piece in pieces)


def header_of(message) -> dict:
    return json.loads(codec.split(codec.to_bytes(message))[0])


def altered(message, **changes) -> bytes:
    return codec.join(json.dumps(header_of(message) | changes), wire.arrays_of(message))


SECRET = "patient_Meier_1961.jpg"


@every_message
def test_another_schema_number_is_refused(message):
    with pytest.raises(WireError, match="install the same version on both sides"):
        codec.from_bytes(altered(message, schema=codec.SCHEMA + 1))


@every_message
def test_a_field_too_many_is_refused(message):
    with pytest.raises(WireError, match=r"breaks its schema .*note: extra_forbidden"):
        codec.from_bytes(altered(message, note=SECRET))


@every_message
@pytest.mark.parametrize("field", ["schema", "kind", "plan_id", "site"])
def test_a_missing_field_is_refused(message, field):
    header = header_of(message)
    del header[field]
    with pytest.raises(WireError):
        codec.from_bytes(codec.join(json.dumps(header), wire.arrays_of(message)))


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        ("answer", {"num_examples": SECRET}),
        ("answer", {"num_examples": -1}),
        ("answer", {"scores": {"test": {SECRET: SECRET}}}),
        ("answer", {"schema": SECRET}),
        ("answer", {"schema": [SECRET]}),
        ("answer", {"kind": SECRET}),
        ("answer", {"kind": [SECRET]}),
        ("answer", {"plan_id": SECRET * 10}),
        ("enrolment", {"train_counts": [SECRET]}),
        ("enrolment", {"layout": {"w": {"shape": SECRET, "dtype": "float32"}}}),
        ("enrolment", {"images": {"sizes": None, "mean": [SECRET, 0, 0], "std": [0, 0, 0]}}),
        ("head answer", {"results": [{"title": "x", "problem": SECRET}]}),
        ("head plan", {"step": {"kind": SECRET}}),
        ("overlap answer", {"same": [SECRET]}),
        ("overlap answer", {"check": SECRET}),
        ("overlap plan", {"shared": [SECRET]}),
        ("failure", {"error": SECRET}),
        ("round plan", {"study": STUDY.model_dump(mode="json") | {"name": f"{SECRET}/"}}),
    ],
)
def test_a_refusal_repeats_no_value_of_the_message(name, changes):
    if name == "answer" and "test" in changes.get("scores", ()):
        changes = {"scores": {"test": header_of(MESSAGES[name])["scores"]["test"] | {"loss_sum": SECRET}}}
    with pytest.raises(WireError) as caught:
        codec.from_bytes(altered(MESSAGES[name], **changes))
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "images",
    [
        {"sizes": {"width": [601, 600], "height": [1, 1]}},
        {"sizes": {"width": [0, 600], "height": [1, 1]}},
        {"sizes": {"width": [600, 2**20 + 1], "height": [1, 1]}},
        {"mean": [0.5, 0.5, 1.1]},
        {"std": [0.5, 0.5, math.nan]},
    ],
    ids=["turned round", "nothing", "endless", "beyond white", "no number"],
)
def test_a_summary_of_images_that_cannot_be_is_refused(images):
    known = header_of(MESSAGES["enrolment with a summary"])["images"]
    with pytest.raises(WireError, match=r"breaks its schema \(enrolment\.images"):
        codec.from_bytes(altered(MESSAGES["enrolment with a summary"], images=known | images))


@pytest.mark.parametrize("notice", ["x" * 2001, "one line\nERROR another", "\x1b[2J"])
def test_a_notice_is_one_line_of_a_log(notice):
    with pytest.raises(WireError, match=r"notice: (string_too_long|value_error)"):
        codec.from_bytes(codec.to_bytes(MESSAGES["round plan"].model_copy(update={"notice": notice})))


def test_tensors_where_none_belong_are_refused():
    header = json.dumps(header_of(MESSAGES["failure"]))
    with pytest.raises(WireError, match="tensors in a message"):
        codec.from_bytes(codec.join(header, {"w": np.zeros(1)}))


def test_tensors_cannot_be_smuggled_in_as_json():
    message = codec.from_bytes(altered(MESSAGES["answer with a loss that is not finite"], delta={"w": [1.0]}))
    assert message.delta == {}


@pytest.mark.parametrize("header", ["", "null", "3", "[]", '"text"', "{", "[" * 100_000, '{"schema": 1}'])
def test_a_header_that_is_no_header_is_refused(header):
    with pytest.raises(WireError):
        codec.from_bytes(codec.join(header, {}))


@every_message
def test_a_header_with_a_field_that_stands_twice_is_refused(message):
    """Whoever checks it could read the one and whoever acts on it the other."""
    header = json.dumps(header_of(message))
    with pytest.raises(WireError):
        codec.from_bytes(codec.join(f'{{"site": "south", {header[1:]}', wire.arrays_of(message)))


@pytest.mark.parametrize(
    "records",
    [
        RecordDict(),
        RecordDict({"consilium": ConfigRecord({})}),
        RecordDict({"consilium": ConfigRecord({"header": 3}), "arrays": ArrayRecord()}),
        RecordDict({"consilium": ConfigRecord({"header": b"{}"}), "arrays": ArrayRecord()}),
        RecordDict({"consilium": ConfigRecord({"header": "{}"})}),
        RecordDict({"arrays": ArrayRecord()}),
    ],
    ids=["nothing", "no header", "a number", "bytes", "no arrays", "no fields"],
)
def test_flower_records_that_are_no_message_are_refused(records):
    with pytest.raises(WireError):
        flower_codec.from_records(records)
    with pytest.raises(WireError):
        codec.from_bytes(flower_codec.records_to_bytes(records))


def packed(data: bytes, name: str = "safetensors") -> ArrayRecord:
    return ArrayRecord({name: Array("uint8", (len(data),), "safetensors", data)})


def npz(array) -> bytes:
    buffer = io.BytesIO()
    np.savez(buffer, array)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "record",
    [
        packed(b""),
        packed(b"garbage" * 9),
        packed(pickle.dumps([1.0])),
        packed(npz(np.zeros(1))),
        packed(codec.join("{}", {"w": np.zeros(9)})[:-8]),
        packed(codec.join("{}", {"w": np.zeros(9)}), name="weights"),
        ArrayRecord({"w": Array(np.zeros(1, np.float32))}),
        ArrayRecord({**packed(codec.join("{}", {})), "w": Array(np.zeros(1, np.float32))}),
    ],
    ids=[
        "empty",
        "garbage",
        "pickle",
        "archive",
        "too short",
        "another name",
        "Flower's own",
        "one too many",
    ],
)
def test_flower_arrays_that_are_no_arrays_are_refused(record):
    records = RecordDict({"consilium": ConfigRecord({"header": "{}"}), "arrays": record})
    with pytest.raises(WireError):
        flower_codec.from_records(records)
    with pytest.raises(WireError):
        codec.from_bytes(flower_codec.records_to_bytes(records))


def test_all_tensors_of_a_message_travel_as_one_object_of_flower():
    many = {f"layer{number}.weight": np.full(3, number, np.float32) for number in range(300)}
    assert len(flower_codec.array_record(many)) == 1
    assert len(flower_codec.array_record({})) == 0


def test_the_gateways_own_answer_names_the_plan_it_could_not_pass_on():
    records = flower_codec.refuse(
        flower_codec.to_records(MESSAGES["round plan"]), "unreachable", "1a2b", "start it"
    )
    failure = flower_codec.from_records(records)
    assert isinstance(failure, wire.Failure)
    assert (failure.plan_id, failure.site, failure.error) == ("p2", "north", "unreachable")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)


def accepts_or_refuses(data: bytes) -> None:
    """Only WireError may come out of bytes that anybody can send."""
    try:
        message = codec.from_bytes(data)
    except WireError:
        return
    assert isinstance(message, wire.Message)


@given(st.binary(max_size=400))
@settings(derandomize=True, deadline=None)
def test_any_bytes_are_a_message_or_a_wire_error(data):
    accepts_or_refuses(data)


VALID = {name: codec.to_bytes(message) for name, message in MESSAGES.items()}


@given(st.sampled_from(sorted(VALID)), st.data())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_message_with_bytes_changed_or_cut_is_a_message_or_a_wire_error(name, data):
    whole = bytearray(VALID[name])
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, len(whole) - 1))
        whole[place] = data.draw(st.integers(0, 255))
    accepts_or_refuses(bytes(whole[: data.draw(st.integers(0, len(whole)))]))
    accepts_or_refuses(bytes(whole))


HEADERS = {name: header_of(message) for name, message in MESSAGES.items()}


@given(st.sampled_from(sorted(HEADERS)), st.data())
@settings(derandomize=True, deadline=None, max_examples=300)
def test_a_message_with_any_field_replaced_is_a_message_or_a_wire_error(name, data):
    header = dict(HEADERS[name])
    header[data.draw(st.sampled_from(sorted(header)))] = data.draw(json_values)
    accepts_or_refuses(codec.join(json.dumps(header), {}))


@given(json_values)
@settings(derandomize=True, deadline=None)
def test_any_json_as_a_header_is_a_wire_error(value):
    with pytest.raises(WireError):
        codec.from_bytes(codec.join(json.dumps(value), {}))
