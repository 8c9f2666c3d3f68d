"""Whom the SuperLink turns away is written down, and told so that one knows whom to call."""

from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from flwr.common.constant import PUBLIC_KEY_HEADER, TIMESTAMP_HEADER
from flwr.proto import fleet_pb2

from common import keys
from common.wire import CHECK_HEADER
from server.deployment import access_log
from server.deployment.refusals import Refusal, RefusalReader, sentence

FLEET_API = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name


@pytest.fixture
def record(tmp_path: Path) -> Path:
    return tmp_path / "refused.jsonl"


@pytest.fixture
def key(tmp_path: Path):
    return keys.read_private(keys.make_site_key(tmp_path, "site").private).public_key()


class Call:
    """One call of the Fleet API that comes to the door from 192.0.2.7."""

    def __init__(self, *metadata: tuple[str, object], said: str = "") -> None:
        self.method, self.invocation_metadata, self.said = (
            f"/{FLEET_API}/ActivateNode",
            metadata,
            said,
        )

    def peer(self) -> str:
        return "ipv4:192.0.2.7:51234"

    def details(self) -> bytes:
        return self.said.encode()

    def code(self) -> grpc.StatusCode | None:
        return grpc.StatusCode.UNAUTHENTICATED if self.said else None

    def comes_to(self, keeper: access_log.RefusalRecorder, handler) -> object:
        made = grpc.unary_unary_rpc_method_handler(handler)
        return keeper.intercept_service(lambda _: made, self).unary_unary("request", self)


def refuse(error: Exception):
    def handler(_request, _context):
        raise error

    return handler


def test_a_refusal_is_passed_on_as_it_is_and_leaves_a_line(record: Path, key) -> None:
    late = (datetime.now(UTC) - timedelta(seconds=400)).isoformat()
    call = Call(
        (PUBLIC_KEY_HEADER, keys.flower_form(key)), (TIMESTAMP_HEADER, late), said="Invalid timestamp"
    )
    error = Exception()
    with pytest.raises(Exception) as raised:  # noqa: PT011  (the very one)
        call.comes_to(access_log.RefusalRecorder(record), refuse(error))
    assert raised.value is error
    (line,) = [Refusal.model_validate_json(text) for text in record.read_text().splitlines()]
    assert (line.address, line.fingerprint, line.what) == (
        "192.0.2.7", keys.fingerprint(key), "Invalid timestamp",
    )  # fmt: skip
    assert line.clock_s is not None
    assert 399 < line.clock_s < 410
    assert not line.check


def test_who_is_let_in_leaves_nothing(record: Path) -> None:
    assert Call().comes_to(access_log.RefusalRecorder(record), lambda request, _: request) == "request"
    assert not record.exists()


@pytest.mark.parametrize(
    ("method", "said", "noted"),
    [
        (f"/{FLEET_API}/PullMessages", "Invalid node ID", True),  # a key that was revoked
        (f"/{FLEET_API}/PushMessages", "", False),  # a study that is over
        ("/grpc.health.v1.Health/Check", "Invalid node ID", False),
    ],
)
def test_only_who_is_not_let_in_is_noted(record: Path, method: str, said: str, noted: bool) -> None:
    call = Call(said=said)
    call.method = method
    with pytest.raises(ValueError, match="x"):
        call.comes_to(access_log.RefusalRecorder(record), refuse(ValueError("x")))
    assert record.exists() == noted


def test_who_knocks_on_and_on_is_noted_once_a_minute(record: Path) -> None:
    clock = [0.0]
    keeper = access_log.RefusalRecorder(record, lambda: clock[0])
    for at in (0, 1, 59, 60, 61):
        clock[0] = at
        keeper.note("ipv4:192.0.2.7:1", {}, "no key")
    assert len(record.read_text().splitlines()) == 2  # at 0 and at 60


def test_knocking_fills_no_disk(record: Path, monkeypatch) -> None:
    monkeypatch.setattr(access_log, "LARGEST", 500)
    keeper = access_log.RefusalRecorder(record)
    for number in range(100):
        keeper.note(f"ipv4:192.0.2.{number}:1", {}, "x" * 10_000)
    assert record.stat().st_size < 1200


def test_a_door_that_cannot_write_is_still_a_door(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="refused"):
        Call().comes_to(
            access_log.RefusalRecorder(tmp_path / "no" / "such" / "folder"), refuse(ValueError("refused"))
        )


@pytest.mark.parametrize(
    ("peer", "host"),
    [
        ("ipv4:192.0.2.7:51234", "192.0.2.7"),
        ("ipv6:%5B2001:db8::7%5D:51234", "2001:db8::7"),
        ("unix:", ""),
    ],
)
def test_an_address_is_shown_without_its_port(peer: str, host: str) -> None:
    assert access_log.host_of(peer) == host


ENROLLED, REVOKED = {"SHA256:n": "north"}, {"SHA256:s": "south"}


@pytest.mark.parametrize(
    ("about", "told"),
    [
        (
            {"fingerprint": "SHA256:x", "what": "No SuperNode found with the given public key."},
            "somebody at 192.0.2.7 has a key that is not enrolled, SHA256:x, and was turned away",
        ),
        (
            {"fingerprint": "", "what": "Missing authentication metadata"},
            "somebody at 192.0.2.7 called without a site's key, and was turned away",
        ),
        (
            {"fingerprint": "SHA256:s", "what": "Invalid node ID"},
            "somebody at 192.0.2.7 has the key of south that was revoked, SHA256:s, and was turned away",
        ),
        (
            {"fingerprint": "SHA256:n", "what": "Invalid timestamp", "clock_s": 400.0},
            "north (192.0.2.7) was turned away: its clock is 400 s behind this machine's; 5 s ahead and 300 s behind "
            "are allowed. One of the two has to be set",
        ),
        (
            {"fingerprint": "SHA256:n", "what": "Invalid timestamp", "clock_s": -7.0},
            "north (192.0.2.7) was turned away: its clock is 7 s ahead of this machine's; 5 s ahead and 300 s behind "
            "are allowed. One of the two has to be set",
        ),
        (
            {"fingerprint": "SHA256:n", "what": "No SuperNode found with the given public key."},
            "north (192.0.2.7) was turned away: its key was not enrolled yet",
        ),
        (
            {"fingerprint": "SHA256:n", "what": "SuperNode with node ID 7 could not be activated."},
            "north (192.0.2.7) was turned away: a gateway with its key is connected already, or was until less than "
            "half a minute ago",
        ),
        (
            {"fingerprint": "SHA256:n", "what": "whatever", "check": True},
            "somebody at 192.0.2.7 checks the connection (north)",
        ),
    ],
)
def test_what_happened_is_described_with_the_name_of_the_site(about, told: str) -> None:
    refusal = Refusal.model_validate(
        {"time": datetime.now(UTC), "address": "192.0.2.7", "clock_s": None, **about}
    )
    assert sentence(refusal, ENROLLED, REVOKED) == told


def test_the_record_is_read_as_it_grows_and_when_it_starts_again(record: Path) -> None:
    keeper = access_log.RefusalRecorder(record)
    keeper.note("ipv4:192.0.2.1:1", {}, "before the server started")
    reader = RefusalReader(record)
    assert reader.new() == []
    keeper.note("ipv4:192.0.2.2:1", {CHECK_HEADER: "1"}, "a")
    with record.open("a") as file:
        file.write('{"time": "half a line')
    assert [(found.address, found.check) for found in reader.new()] == [("192.0.2.2", True)]
    record.write_text("")
    assert reader.new() == []
    keeper.note("ipv4:192.0.2.3:1", {}, "b")
    assert [found.address for found in reader.new()] == ["192.0.2.3"]
