"""Codec of messages as Flower's records, as they pass between server and gateway.

A message has the header and the arrays that `codec.py` puts into bytes. The gateway turns one form into the other
without reading the header, so it needs neither torch nor the study's meaning. This is the only file that spells a
key of Flower's records.
"""

from dataclasses import dataclass
from typing import Any

from flwr.app import Array as FlowerArray
from flwr.app import ArrayRecord, ConfigRecord, RecordDict
from pydantic import ValidationError

from common.errors import WireError
from common.formats import json_text, tensors
from common.weights import Arrays, contiguous
from common.wire import Answer, ErrorKind, Failure, Plan, arrays_of
from common.wire.codec import (
    NO_HEADER,
    SCHEMA,
    header_of,
    join,
    message_of,
    require_plain,
    require_size,
    split,
)
from common.wire.signed_heads import SignedHead

_RECORD, _ARRAYS, _PROBE, _HEAD = "consilium", "arrays", "consilium.probe", "consilium.audit"
"""Names of Flower's records."""

_FILE, _SIZE = "file", "bytes"
"""Fields of a record whose arrays travel beside Flower's message."""

_PACKED = "safetensors"
"""Name and type of the one Flower array that holds all arrays."""


# --- a message ----------------------------------------------------------------------------------


def to_records(message: Plan | Answer, shared: ArrayRecord | None = None) -> RecordDict:
    """One message as Flower records; `shared` saves encoding the same arrays for every site."""
    arrays = shared if shared is not None else array_record(arrays_of(message))
    return _records(header_of(message), arrays)


def from_records(records: RecordDict) -> Plan | Answer:
    """The message in `records`. Raises WireError."""
    header, arrays = _unwrap(records)
    return message_of(header, arrays)


def array_record(arrays: Arrays) -> ArrayRecord:
    """Named arrays as one Flower array.

    Flower fetches two objects per array, one after the other: a ViT of 300 tensors would wait 600 times for
    the connection to a hospital.
    """
    if not arrays:
        return ArrayRecord()
    packed = tensors.to_bytes({name: contiguous(array) for name, array in arrays.items()})
    return ArrayRecord({_PACKED: FlowerArray("uint8", (len(packed),), _PACKED, packed)})


def probe() -> RecordDict:
    """A message that a gateway returns unchanged, after it has answered the messages before.

    A gateway works on one message at a time and forgets it when it is killed. So a probe that is
    answered before the plan that was sent earlier says that the plan is lost.
    """
    return RecordDict({_PROBE: ConfigRecord({"schema": SCHEMA})})


def is_probe(records: RecordDict) -> bool:
    """True for a probe, and for the answer to one."""
    return _PROBE in records


# --- the head of a site's audit log, beside its answer --------------------------------------------


def with_head(answer: RecordDict, head: SignedHead) -> RecordDict:
    """An answer and the head of its site's audit log."""
    return RecordDict({**answer, _HEAD: ConfigRecord(head.model_dump())})


def signed_head(answer: RecordDict) -> SignedHead | None:
    """The head that came with an answer; None without one, or if it is none."""
    record = answer.config_records.get(_HEAD)
    try:
        return None if record is None else SignedHead.model_validate(dict(record))
    except ValidationError:
        return None


# --- arrays that travel beside Flower's message --------------------------------------------------


@dataclass(frozen=True)
class Beside:
    """A message whose arrays are in a file (`common/wire/gateway_calls.py`)."""

    header: str
    """Empty in an answer: its file is a whole message."""
    name: str
    size: int
    """Bytes of the file."""

    def records(self) -> RecordDict:
        """This message as Flower records."""
        record = ConfigRecord({"header": self.header, _FILE: self.name, _SIZE: self.size})
        return RecordDict({_RECORD: record})


def beside(records: RecordDict) -> Beside | None:
    """The file that a message names; None if its arrays are in it. Raises WireError."""
    record = records.config_records.get(_RECORD)
    if record is None or _FILE not in record:
        return None
    header, name, size = (record.get(key) for key in ("header", _FILE, _SIZE))
    if not isinstance(header, str) or not isinstance(name, str) or not isinstance(size, int):
        raise WireError(NO_HEADER)
    return Beside(header, name, size)


# --- the gateway: from one form to the other --------------------------------------------------


def records_to_bytes(records: RecordDict) -> bytes:
    """Flower records as the trainer's bytes. Raises WireError."""
    return join(*_unwrap(records))


def bytes_to_records(data: bytes | bytearray) -> RecordDict:
    """The trainer's bytes as Flower records. Raises WireError."""
    header, arrays = split(data)
    return _records(header, array_record(arrays))


def refuse(records: RecordDict, error: ErrorKind, case: str, advice: str) -> RecordDict:
    """The gateway's own answer when the trainer cannot give one. Raises WireError."""
    apart = beside(records)
    header = _unwrap(records)[0] if apart is None else apart.header
    require_plain(header)
    try:
        fields = json_text.loads(header)
        failure = Failure(
            plan_id=fields["plan_id"], site=fields["site"], error=error, case=case, advice=advice
        )
    except (ValueError, KeyError, TypeError, ValidationError):
        raise WireError("found a header without a plan's id and site") from None
    return to_records(failure)


# --- records and their parts ------------------------------------------------------------------


def _records(header: str, arrays: ArrayRecord) -> RecordDict:
    return RecordDict({_RECORD: ConfigRecord({"header": header}), _ARRAYS: arrays})


def _unwrap(records: RecordDict) -> tuple[str, dict[str, Any]]:
    try:
        header = records.config_records[_RECORD]["header"]
        record = records.array_records[_ARRAYS]
        if record:
            require_size(record[_PACKED].data)
        arrays = tensors.from_bytes(record[_PACKED].data) if record else {}
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WireError(
            f"found Flower records that are not a Consilium message ({type(error).__name__}); "
            "are both sides of the same version?"
        ) from error
    if not isinstance(header, str):
        raise WireError(f"found a header of type {type(header).__name__}, expected text")
    if len(record) > 1:
        raise WireError(f"found {len(record)} packed arrays in Flower records, expected one that holds all")
    return header, arrays
