"""Codec of messages as bytes, as they pass between gateway and trainer and within one process.

The bytes hold a header, which is JSON text with the message's fields, and named arrays. Only JSON and numeric
arrays are decoded, nothing that can run. `flower_codec.py` has the other form, Flower's records; only that one
needs Flower.
"""

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import Field, TypeAdapter, ValidationError

from common import wire
from common.errors import WireError
from common.formats import json_text, tensors
from common.lazy_arrays import Stored
from common.text import one_line
from common.weights import Arrays, contiguous
from common.wire import (
    Answer,
    ApprovalAnswer,
    ApprovalPlan,
    Enrolment,
    EnrolPlan,
    Failure,
    HeadAnswer,
    HeadPlan,
    MaskAnswer,
    MaskPlan,
    OverlapAnswer,
    OverlapPlan,
    Plan,
    RoundAnswer,
    RoundPlan,
    arrays_of,
)

SCHEMA = 3
"""Version of the messages. It rises when one changes its meaning; both sides must have the same."""

CHUNK_BYTES = 4 * 2**20
"""Largest piece on the trainer's socket, in bytes; gRPC refuses messages over its own limit."""

LARGEST_MESSAGE = 8 * 2**30
"""Largest message, in bytes: the tensors of a model of two billion numbers."""

LARGEST_HEADER = 96 * 2**20
"""Largest header, in bytes: the hashes of as many images as can be compared."""

MOST_VALUES = 4 * 10**6
"""Most values of a header. Each takes many times its bytes in memory, so they are counted before it is read."""

LARGEST_INDEX = 16 * 2**20
"""Largest index of the tensors in safetensors bytes, which names each with its type, shape and place."""

_HEADER = "consilium.header"
"""Tensor that holds the header in safetensors bytes."""

_MESSAGES: TypeAdapter[Plan | Answer] = TypeAdapter(Annotated[Plan | Answer, Field(discriminator="kind")])

_ARRAY_FIELDS = {
    kind.model_fields["kind"].default: kind.ARRAYS
    for kind in (
        ApprovalPlan,
        EnrolPlan,
        RoundPlan,
        HeadPlan,
        OverlapPlan,
        MaskPlan,
        ApprovalAnswer,
        Enrolment,
        RoundAnswer,
        HeadAnswer,
        OverlapAnswer,
        MaskAnswer,
        Failure,
    )
    if kind.ARRAYS
}
"""Field that holds the arrays, by kind of message; kinds without arrays are left out."""

NO_HEADER = "found a header that is not a Consilium message; are both sides of the same version?"


# --- bytes: between gateway and trainer -------------------------------------------------------


def to_bytes(message: Plan | Answer) -> bytes:
    """One message as safetensors bytes; the header is a byte tensor."""
    return join(header_of(message), arrays_of(message))


def from_bytes(data: bytes | bytearray) -> Plan | Answer:
    """The message in `data`. Raises WireError for anything else."""
    header, arrays = split(data)
    return message_of(header, arrays)


def from_file(path: Path) -> Plan | Answer:
    """The message in a file, whose arrays stay in the file until each is read. Raises WireError.

    The caller removes the file when nothing is read from the message any more. Raises FileNotFoundError.
    """
    if (size := path.stat().st_size) > LARGEST_MESSAGE:
        raise WireError(f"found a message of {size:,} bytes, expected at most {LARGEST_MESSAGE:,}")
    try:
        places = dict(tensors.places(path, LARGEST_INDEX))
        header = Stored(path, {_HEADER: places.pop(_HEADER)})[_HEADER].tobytes().decode()
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WireError(
            f"found {size} bytes that are not a Consilium message ({type(error).__name__}); "
            "are both sides of the same version?"
        ) from error
    return message_of(header, Stored(path, places))


def join(header: str, arrays: Arrays) -> bytes:
    """Header and arrays as safetensors bytes; the header is not read."""
    fields = np.frombuffer(header.encode(), np.uint8)
    return tensors.to_bytes({_HEADER: fields} | {name: contiguous(a) for name, a in arrays.items()})


def split(data: bytes | bytearray) -> tuple[str, dict[str, Any]]:
    """Undo `join`. Raises WireError."""
    require_size(data)
    try:
        arrays = tensors.from_bytes(data)
        return arrays.pop(_HEADER).tobytes().decode(), arrays
    except (KeyError, ValueError, TypeError, AttributeError) as error:
        raise WireError(
            f"found {len(data)} bytes that are not a Consilium message ({type(error).__name__}); "
            "are both sides of the same version?"
        ) from error


def gathered(parts: Iterable[bytes], most: int = LARGEST_MESSAGE) -> bytes:
    """Undo `chunks`. Raises WireError as soon as there are more than `most` bytes."""
    whole = bytearray()
    for part in parts:
        if len(whole) + len(part) > most:
            raise WireError(f"found a message of more than {most:,} bytes; nothing of it was read")
        whole += part
    return bytes(whole)


def require_size(packed: bytes | bytearray) -> None:
    """Raises WireError for safetensors bytes that are too large, or whose index is, before anything is read."""
    if len(packed) > LARGEST_MESSAGE:
        raise WireError(f"found a message of {len(packed):,} bytes, expected at most {LARGEST_MESSAGE:,}")
    index = int.from_bytes(packed[:8], "little")
    if index > LARGEST_INDEX:
        raise WireError(f"found an index of tensors of {index:,} bytes, expected at most {LARGEST_INDEX:,}")


def chunks(data: bytes) -> Iterator[bytes]:
    """`data` in pieces that gRPC accepts."""
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES):
        yield bytes(view[start : start + CHUNK_BYTES])


# --- arrays in a file, beside the header ---------------------------------------------------------


def save_arrays(arrays: Arrays, path: Path) -> None:
    """Write named arrays to a safetensors file."""
    with path.open("wb", buffering=0) as file:
        tensors.write(file, {name: contiguous(array) for name, array in arrays.items()})


def with_header(header: str, pieces: Iterator[bytes], size: int) -> Iterator[bytes]:
    """What `join` makes of a header and arrays, from a safetensors file of the arrays in pieces, `size` bytes.

    The header becomes the last tensor, so that only the file's index is rewritten. Raises WireError.
    """
    start = b""
    while len(start) < 8 or len(start) < 8 + int.from_bytes(start[:8], "little"):
        piece = next(pieces, b"")
        if not piece:
            raise WireError("found arrays that end within their index")
        start += piece
        if len(start) > 8 + LARGEST_INDEX + len(piece):
            raise WireError(f"found an index of tensors of more than {LARGEST_INDEX:,} bytes")
    index_bytes = int.from_bytes(start[:8], "little")
    try:
        index = json_text.loads(start[8 : 8 + index_bytes])
    except ValueError as error:
        raise WireError("found arrays without an index") from error
    fields, end = header.encode(), size - 8 - index_bytes
    index[_HEADER] = {"dtype": "U8", "shape": [len(fields)], "data_offsets": [end, end + len(fields)]}
    text = json.dumps(index, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)  # arrays stay aligned to 8 bytes
    yield len(text).to_bytes(8, "little") + text + start[8 + index_bytes :]
    yield from pieces
    yield fields


# --- the header: a message's fields as JSON ---------------------------------------------------


def header_of(message: Plan | Answer) -> str:
    """The message's fields as text, without its arrays."""
    return json.dumps({"schema": SCHEMA} | message.model_dump(mode="json"), allow_nan=True)


def require_plain(header: str) -> None:
    """Raises WireError for a header that would take much memory to read."""
    if len(header) > LARGEST_HEADER:
        raise WireError(f"found a header of {len(header):,} characters, expected at most {LARGEST_HEADER:,}")
    if (values := sum(map(header.count, ",[{"))) > MOST_VALUES:
        raise WireError(f"found a header of about {values:,} values, expected at most {MOST_VALUES:,}")


def message_of(header: str, arrays: Mapping[str, Any]) -> Plan | Answer:
    """The message with these fields and arrays. Raises WireError."""
    # No error below quotes the header: it may be a site's, and an error's text may leave the site.
    require_plain(header)
    if len(arrays) > wire.MOST_TENSORS:
        raise WireError(f"found {len(arrays):,} tensors, expected at most {wire.MOST_TENSORS:,}")
    try:
        fields = json_text.loads(header)
    except (ValueError, RecursionError) as error:
        raise WireError(NO_HEADER) from error
    if not isinstance(fields, dict) or "schema" not in fields:
        raise WireError(NO_HEADER)
    schema, kind = fields.pop("schema"), fields.get("kind")
    if schema != SCHEMA or isinstance(schema, bool):
        number = f"schema {schema}" if isinstance(schema, int) else "another schema"
        raise WireError(
            f"found messages of {number}, expected {SCHEMA}; install the same version on both sides"
        )
    holder = _ARRAY_FIELDS.get(kind) if isinstance(kind, str) else None
    if holder is not None:
        fields[holder] = arrays
    elif arrays:
        raise WireError("found tensors in a message of a kind that has none")
    try:
        return _MESSAGES.validate_python(fields)
    except ValidationError as error:
        # A location may hold a name that the sender made up.
        wrong = "; ".join(
            f"{one_line('.'.join(map(str, d['loc'])), 200)}: {d['type']}" for d in error.errors()[:5]
        )
        raise WireError(f"found a message that breaks its schema ({wrong})") from None
