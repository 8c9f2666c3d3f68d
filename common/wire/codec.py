"""Messages as bytes and as Flower's records."""

import json
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import numpy as np
from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import Field, TypeAdapter, ValidationError
from safetensors import SafetensorError
from safetensors.numpy import load as from_safetensors
from safetensors.numpy import save as to_safetensors

from common.errors import WireError
from common.weights import Arrays, contiguous
from common.wire import (
    Answer,
    Enrolment,
    EnrolPlan,
    ErrorKind,
    Failure,
    HeadAnswer,
    HeadPlan,
    OverlapAnswer,
    OverlapPlan,
    Plan,
    RoundAnswer,
    RoundPlan,
    arrays_of,
)

SCHEMA = 1
"""Raised when a message changes its meaning; the two sides must agree on it."""


CHUNK_BYTES = 4 * 2**20
"""Largest piece on the trainer's socket; gRPC refuses messages over its own limit."""


_HEADER = "consilium.header"


_RECORD, _ARRAYS, _PROBE = "consilium", "arrays", "consilium.probe"


_PACKED = "safetensors"


_MESSAGES: TypeAdapter[Plan | Answer] = TypeAdapter(Annotated[Plan | Answer, Field(discriminator="kind")])


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
