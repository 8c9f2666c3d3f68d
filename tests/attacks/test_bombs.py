"""Messages that are small to send and large to read."""

import json

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from safetensors.numpy import save

from common import wire
from common.errors import WireError
from common.wire import codec, flower_codec


def failure_header(**more: object) -> str:
    fields = {"schema": 1, "plan_id": "p", "site": "north", "kind": "failure", "error": "data", "case": "1"}
    return json.dumps(fields | {"advice": "x"} | more)


def test_a_message_without_an_end_is_dropped_before_it_is_whole() -> None:
    taken = 0

    def endless():
        nonlocal taken
        while True:
            taken += 1
            yield bytes(1000)

    with pytest.raises(WireError, match="more than 10,000 bytes; nothing of it was read"):
        codec.gathered(endless(), most=10_000)
    assert taken == 11
    assert codec.gathered([b"ab", b"c"], most=3) == b"abc"


@pytest.mark.parametrize("length", [codec.LARGEST_INDEX + 1, 2**40, 2**64 - 1])
def test_an_index_that_says_it_is_huge_is_not_read(length: int) -> None:
    with pytest.raises(WireError, match="found an index of tensors of"):
        codec.split(length.to_bytes(8, "little") + b"{}")


def test_the_same_index_in_flowers_records_is_not_read() -> None:
    packed = (2**50).to_bytes(8, "little") + b"{}"
    arrays = ArrayRecord({"safetensors": Array("uint8", (len(packed),), "safetensors", packed)})
    records = RecordDict({"consilium": ConfigRecord({"header": failure_header()}), "arrays": arrays})
    with pytest.raises(WireError, match="found an index of tensors of"):
        flower_codec.from_records(records)


@pytest.mark.parametrize("bomb", ["[" * 5_000_000, "[]," * 2_500_000, '{"a":' * 5_000_000, "0," * 5_000_000])
def test_a_header_of_millions_of_values_is_not_read(bomb: str) -> None:
    with pytest.raises(WireError, match="found a header of about"):
        codec.from_bytes(codec.join(bomb, {}))


def test_a_header_that_is_too_long_is_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codec, "LARGEST_HEADER", 1000)
    with pytest.raises(WireError, match="found a header of"):
        codec.from_bytes(codec.join(failure_header(advice="x" * 1000), {}))


@pytest.mark.parametrize(
    "header",
    [failure_header(round=10**400), "[" * 100_000, failure_header().replace('"1"', "9" * 5000)],
    ids=["a large number", "deep brackets", "thousands of digits"],
)
def test_numbers_of_thousands_of_digits_and_deep_brackets_are_no_message(header: str) -> None:
    with pytest.raises(WireError):
        codec.from_bytes(codec.join(header, {}))


def test_more_tensors_than_a_model_has_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "MOST_TENSORS", 3)
    many = {f"t{number}": np.zeros(0, np.float32) for number in range(4)}
    with pytest.raises(WireError, match="found 4 tensors, expected at most 3"):
        codec.from_bytes(codec.join(failure_header(), many))


def test_a_tensor_is_as_large_as_its_bytes() -> None:
    """safetensors has no compression: a shape that promises more than there is does not fit its place."""
    packed = bytearray(save({"a": np.zeros(4, np.float32)}))
    size = int.from_bytes(packed[:8], "little")
    index = packed[8 : 8 + size].replace(b'"shape":[4]', b'"shape":[9]')
    with pytest.raises(WireError, match="are not a Consilium message"):
        codec.split(bytes(packed[:8] + index + packed[8 + size :]))


def test_the_largest_comparison_of_images_fits() -> None:
    header = ",".join(['"' + "0" * 32 + '"'] * 2**21)
    assert len(header) < codec.LARGEST_HEADER
    assert header.count(",") < codec.MOST_VALUES
