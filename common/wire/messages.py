"""What the server and a site say to each other, and how it is written down.

A message is one validated object: a kind, named fields and named arrays. It travels in two
ways, as Flower records between server and gateway and as safetensors bytes between gateway
and trainer; this is the only file that spells a key of either. The gateway turns one form
into the other without reading it, so it needs neither torch nor the study's meaning.

Nothing that can run is ever decoded: JSON and numeric arrays only.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import ConfigDict, Field, StringConstraints, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from common.config import Name, StudyConfig
from common.errors import WireError
from common.heads import Fourier, HeadForm
from common.heads.result import HeadResult
from common.metrics import Score
from common.settings import Frozen
from common.summary import ImageSummary
from common.weights import Arrays, TensorSpec, contiguous

SCHEMA = 1
"""Raised when a message changes its meaning; the two sides must agree on it."""

CHUNK_BYTES = 4 * 2**20
"""Largest piece on the trainer's socket; gRPC refuses messages over its own limit."""

TRAINER_SERVICE, TRAINER_METHOD = "consilium.Trainer", "Answer"
"""gRPC method on the trainer's socket: a stream of chunks in, a stream of chunks out."""

CHECK_HEADER = "consilium-check"
"""Marks a call that is made to find out whether the connection works."""

LONGEST_NOTICE = 2000
"""Characters of what a plan may say to a site's log."""

MOST_TOKENS = 2**20
"""Images of a site that can be compared with others'."""

Token = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{32}$")]
"""A keyed hash of what one image shows: 128 bits as hexadecimal digits (`client/governance/image_hashes.py`)."""
Tokens = Annotated[tuple[Token, ...], Field(max_length=MOST_TOKENS)]

_HEADER = "consilium.header"
_RECORD, _ARRAYS, _PROBE = "consilium", "arrays", "consilium.probe"
_PACKED = "safetensors"


class Message(Frozen):
    """Base of every message. `ARRAYS` names the field, if any, that holds tensors."""

    # A loss that is not finite must arrive, so that admission can name the site that sent it.
    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True, allow_inf_nan=True)
    ARRAYS: ClassVar[str | None] = None

    plan_id: Annotated[str, Field(min_length=1, max_length=64)]
    """Set by the server; an answer carries the id of the plan it answers."""
    site: str
    """The site this plan is for, or this answer is from, as the server enrolled it."""


# --- plans: server to site -------------------------------------------------------------------


class EnrolPlan(Message):
    """Build the model and the data set, and describe both."""

    kind: Literal["enrol"] = "enrol"
    study: StudyConfig
    want_weights: bool
    """One site is asked to send the first weights along."""
    first_round: Annotated[int, Field(ge=1)] = 1
    """The round that comes next; 1 starts the study over, more resumes it."""


class RoundPlan(Message):
    """Score the weights that come along and, if `train`, train from them."""

    kind: Literal["round"] = "round"
    ARRAYS: ClassVar[str | None] = "weights"
    study: StudyConfig
    round: Annotated[int, Field(ge=1)]
    train: bool
    notice: Annotated[str, Field(max_length=LONGEST_NOTICE, pattern=r"^[^\x00-\x1f\x7f]*$")] | None = None
    """Why the server refused this site's last answer, for the site's own log: one line of it."""
    weights: Annotated[Any, Field(exclude=True)]
    """Arrays: every tensor of the study's layout."""


class OverlapPlan(Message):
    """Say which images there are, as keyed hashes that only sites with the same secret can make."""

    kind: Literal["overlap"] = "overlap"
    study: StudyConfig
    shared: Tokens = ()
    """Of the hashes that this site sent, those that a training site sent too: for its data manager, who can
    tell which images they are. Such a plan is answered without hashes."""


class ViewRequest(Frozen):
    """Sums that are wanted of the training features on one view (`common/heads/fitted.py`)."""

    name: Name
    """Its arrays are `view/NAME/shift`, `scale` and, if it has them, `components`."""
    fourier: Fourier | None = None
    class_weights: tuple[Annotated[float, Field(ge=0)], ...]
    """Of an image in the second moments, by class."""
    squares: bool = False
    moments: Literal["none", "float32", "float64"] = "none"
    """Second moments; float32 where they only steer a search."""


class StatisticsStep(Frozen):
    """Send sums over the training images: per class and, where wanted, second moments."""

    kind: Literal["statistics"] = "statistics"
    views: tuple[ViewRequest, ...]
    """None: the features as they are, sums and squares."""


class Problem(Frozen):
    """One head that is fitted in several messages."""

    name: Name
    """Its view is `view/NAME/...`, and `points/NAME` (D + 1, C) is where it is to be evaluated; the last
    row is the bias."""
    loss: Literal["squared_hinge", "softmax"]
    fourier: Fourier | None = None
    class_weights: tuple[Annotated[float, Field(ge=0)], ...]


class GradientsStep(Frozen):
    """Send losses and gradients at these points, summed over the training images."""

    kind: Literal["gradients"] = "gradients"
    problems: Annotated[tuple[Problem, ...], Field(min_length=1)]


class CoefficientsStep(Frozen):
    """Fit these linear heads of the study's votes on the training images and send their coefficients."""

    kind: Literal["coefficients"] = "coefficients"
    votes: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Names of votes in the study; the view of each is `view/NAME/...`."""


class ScoreStep(Frozen):
    """Fit the study's local heads; score them, these heads and the softmax on the test images."""

    kind: Literal["score"] = "score"
    heads: tuple[HeadForm, ...]
    """Arrays of each are `head/TITLE/...`."""


HeadStep: TypeAlias = Annotated[
    StatisticsStep | GradientsStep | CoefficientsStep | ScoreStep, Field(discriminator="kind")
]


class HeadPlan(Message):
    """One step towards the study's classical heads, on features of the weights after `round`."""

    kind: Literal["heads"] = "heads"
    ARRAYS: ClassVar[str | None] = "arrays"
    study: StudyConfig
    round: Annotated[int, Field(ge=0)]
    weights_digest: str
    """Of the weights; a site that has their features at hand needs no more."""
    step: HeadStep
    arrays: Annotated[Any, Field(exclude=True)]
    """Arrays: `weights/...` in the first step a site gets, and what the step names."""


Plan: TypeAlias = EnrolPlan | RoundPlan | HeadPlan | OverlapPlan


# --- answers: site to server -----------------------------------------------------------------


class Enrolment(Message):
    """What a site built, and how much it holds."""

    kind: Literal["enrolment"] = "enrolment"
    ARRAYS: ClassVar[str | None] = "weights"
    layout: dict[str, TensorSpec]
    """Tensors that will travel."""
    weights_digest: str
    """Of the tensors that travel, as this site built them."""
    frozen_digest: str
    """Of the tensors that do not."""
    preprocessing: dict[str, Any]
    """Input size, mean, standard deviation, interpolation."""
    train_counts: tuple[Annotated[int, Field(ge=0)], ...]
    """Training images per class, in the study's order."""
    test_counts: tuple[Annotated[int, Field(ge=0)], ...]
    device: str
    """What computes there, e.g. "cpu" or "NVIDIA H200"."""
    images: ImageSummary | None = None
    """None from a site without images."""
    withheld: bool = False
    """The site's policy keeps small classes, or all scores, to itself: a 0 above may stand for a few
    images, which are then neither trained on nor scored. Says nothing about whether there are any."""
    weights: Annotated[Any, Field(exclude=True)]
    """Arrays: the first weights if they were asked for, else empty."""


class RoundAnswer(Message):
    """The score of the weights that came and, from a training site, the step away from them."""

    kind: Literal["answer"] = "answer"
    ARRAYS: ClassVar[str | None] = "delta"
    round: int
    score: Score
    num_examples: Annotated[int, Field(ge=0)]
    """Images trained on in this round; the weight of the delta. 0 from a site that only scores."""
    num_steps: Annotated[int, Field(ge=0)]
    train_loss: float | None
    """Mean over the images of this round, None without training."""
    train_s: float
    evaluate_s: float
    delta: Annotated[Any, Field(exclude=True)]
    """Arrays: trained minus received, empty from a site that only scores."""


class HeadAnswer(Message):
    """Sums over a site's training images, or scores on its test images; nothing has a row per image."""

    kind: Literal["head_answer"] = "head_answer"
    ARRAYS: ClassVar[str | None] = "arrays"
    round: int
    step: Literal["statistics", "gradients", "coefficients", "score"]
    train_counts: tuple[Annotated[int, Field(ge=0)], ...]
    """Training images by class behind the arrays; all 0 where there are none."""
    results: tuple[HeadResult, ...] = ()
    seconds: float
    arrays: Annotated[Any, Field(exclude=True)]
    """Arrays: `statistics/VIEW/sums`, `squares`, `moments`; `losses/NAME` and `gradients/NAME`;
    `coefficients/NAME/weights`, `bias`. Empty for a score."""


ErrorKind: TypeAlias = Literal[
    "data", "study", "weights", "policy", "memory", "storage", "message", "unreachable", "internal"
]


class Failure(Message):
    """The site could not do what the plan asked. Says nothing about its images."""

    kind: Literal["failure"] = "failure"
    error: ErrorKind
    case: str
    """Under this number the site's own log tells the whole story."""
    advice: str
    reason: Annotated[str, Field(max_length=2000)] = ""
    """From a site whose policy refuses the plan: the rules by name and the study's own values."""

    @property
    def told(self) -> str:
        """Advice and reason as one sentence."""
        return f"{self.advice}: {self.reason}" if self.reason else self.advice


class OverlapAnswer(Message):
    """The images of a site as keyed hashes, in the order of the hashes, which says nothing of the images'.

    As many of each kind as the site enrolled images: where two of them are alike, one hash stands for
    both and another one for nothing. None at all in the answer to a plan that told what was `shared`.
    """

    kind: Literal["overlap_answer"] = "overlap_answer"
    check: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16}$")]
    """The same at all sites with the same secret, and of no other use."""
    same: Tokens
    """Of the pixels that an image shows."""
    similar: Tokens
    """Of its perceptual hash."""


Answer: TypeAlias = Enrolment | RoundAnswer | HeadAnswer | OverlapAnswer | Failure

_MESSAGES: TypeAdapter[Plan | Answer] = TypeAdapter(Annotated[Plan | Answer, Field(discriminator="kind")])


# --- safetensors bytes: gateway and trainer --------------------------------------------------


def to_bytes(message: Plan | Answer) -> bytes:
    """One message as safetensors; the fields ride along as a byte tensor of JSON."""
    return join(_header(message), arrays_of(message))


def from_bytes(data: bytes | bytearray) -> Plan | Answer:
    """The message in `data`. Raises WireError for anything else."""
    header, arrays = split(data)
    return _message(header, arrays)


def join(header: str, arrays: Arrays) -> bytes:
    """Header and arrays as safetensors bytes, unread."""
    fields = np.frombuffer(header.encode(), np.uint8)
    return to_safetensors({_HEADER: fields} | {name: contiguous(a) for name, a in arrays.items()})


def split(data: bytes | bytearray) -> tuple[str, dict[str, Any]]:
    """Undo `join`. Raises WireError."""
    try:
        arrays = from_safetensors(bytes(data))
        return arrays.pop(_HEADER).tobytes().decode(), arrays
    except (SafetensorError, KeyError, UnicodeDecodeError, ValueError, TypeError) as error:
        raise WireError(
            f"found {len(data)} bytes that are not a Consilium message ({type(error).__name__}); "
            "are both sides of the same version?"
        ) from error


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces that gRPC accepts."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


# --- Flower records: server and gateway ------------------------------------------------------


def to_records(message: Plan | Answer, shared: ArrayRecord | None = None) -> RecordDict:
    """One message as Flower records; `shared` saves encoding the same arrays for every site."""
    arrays = shared if shared is not None else array_record(arrays_of(message))
    return _records(_header(message), arrays)


def from_records(records: RecordDict) -> Plan | Answer:
    """The message in `records`. Raises WireError."""
    header, arrays = _unwrap(records)
    return _message(header, arrays)


def records_to_bytes(records: RecordDict) -> bytes:
    """What the gateway hands to the trainer. Raises WireError."""
    return join(*_unwrap(records))


def bytes_to_records(data: bytes | bytearray) -> RecordDict:
    """What the gateway hands to Flower. Raises WireError."""
    header, arrays = split(data)
    return _records(header, array_record(arrays))


def array_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as Flower carries them: all in one, since it asks for two objects an array, one after
    the other, and a ViT of 300 tensors would wait 600 times for the line to a hospital.
    """
    if not arrays:
        return ArrayRecord()
    packed = to_safetensors({name: contiguous(array) for name, array in arrays.items()})
    return ArrayRecord({_PACKED: FlowerArray("uint8", (len(packed),), _PACKED, packed)})


def _records(header: str, arrays: ArrayRecord) -> RecordDict:
    return RecordDict({_RECORD: ConfigRecord({"header": header}), _ARRAYS: arrays})


def _unwrap(records: RecordDict) -> tuple[str, dict[str, Any]]:
    try:
        header = records.config_records[_RECORD]["header"]
        record = records.array_records[_ARRAYS]
        arrays = from_safetensors(record[_PACKED].data) if record else {}
    except (SafetensorError, KeyError, ValueError, TypeError) as error:
        raise WireError(
            f"found Flower records that are not a Consilium message ({type(error).__name__}); "
            "are both sides of the same version?"
        ) from error
    if not isinstance(header, str):
        raise WireError(f"found a header of type {type(header).__name__}, expected text")
    if len(record) > 1:
        raise WireError(f"found {len(record)} packed arrays in Flower records, expected one that holds all")
    return header, arrays


def refuse(records: RecordDict, error: ErrorKind, case: str, advice: str) -> RecordDict:
    """The gateway's own answer when the trainer cannot give one. Raises WireError."""
    header, _ = _unwrap(records)
    try:
        fields = json.loads(header)
        failure = Failure(
            plan_id=fields["plan_id"], site=fields["site"], error=error, case=case, advice=advice
        )
    except (ValueError, KeyError, TypeError, ValidationError):
        raise WireError("found a header without a plan's id and site") from None
    return to_records(failure)


def probe() -> RecordDict:
    """A message that a gateway answers itself, with the same, once it is done with those before.

    A gateway works on one message at a time and forgets it when it is killed. So a probe that is
    answered before the plan that was sent earlier says that the plan is lost.
    """
    return RecordDict({_PROBE: ConfigRecord({"schema": SCHEMA})})


def is_probe(records: RecordDict) -> bool:
    """True for a probe, and for the answer to one."""
    return _PROBE in records


# --- shared by both --------------------------------------------------------------------------


def arrays_of(message: Plan | Answer) -> Arrays:
    """The tensors of a message, empty for a kind without any."""
    arrays: Arrays = getattr(message, message.ARRAYS) if message.ARRAYS else {}
    return arrays


def _header(message: Plan | Answer) -> str:
    return json.dumps({"schema": SCHEMA} | message.model_dump(mode="json"), allow_nan=True)


_NO_HEADER = "found a header that is not a Consilium message; are both sides of the same version?"


def _message(header: str, arrays: Mapping[str, Any]) -> Plan | Answer:
    # No text below repeats what was found: it may be a site's, and errors may be sent.
    try:
        fields = json.loads(header)
    except (ValueError, RecursionError) as error:
        raise WireError(_NO_HEADER) from error
    if not isinstance(fields, dict) or "schema" not in fields:
        raise WireError(_NO_HEADER)
    schema, kind = fields.pop("schema"), fields.get("kind")
    if schema != SCHEMA or isinstance(schema, bool):
        number = f"schema {schema}" if isinstance(schema, int) else "another schema"
        raise WireError(
            f"found messages of {number}, expected {SCHEMA}; install the same version on both sides"
        )
    holder = _ARRAY_FIELDS.get(kind) if isinstance(kind, str) else None
    if holder is not None:
        fields[holder] = dict(arrays)
    elif arrays:
        raise WireError("found tensors in a message of a kind that has none")
    try:
        return _MESSAGES.validate_python(fields)
    except ValidationError as error:
        wrong = "; ".join(f"{'.'.join(map(str, d['loc']))}: {d['type']}" for d in error.errors()[:5])
        raise WireError(f"found a message that breaks its schema ({wrong})") from None


_ARRAY_FIELDS = {
    kind.model_fields["kind"].default: kind.ARRAYS
    for kind in (
        EnrolPlan,
        RoundPlan,
        HeadPlan,
        OverlapPlan,
        Enrolment,
        RoundAnswer,
        HeadAnswer,
        OverlapAnswer,
        Failure,
    )
    if kind.ARRAYS
}
