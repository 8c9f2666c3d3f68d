"""The way to the server, each of its obstacles, and what is said of it."""

import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import grpc
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto import fleet_pb2
from flwr.proto.fleet_pb2 import ActivateNodeRequest
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

from client.gateway import supervisor
from client.preflight import connection
from common import keys
from common.processes.ports import free_ports
from common.wire import CHECK_HEADER


@pytest.mark.parametrize("behind_s", [0, 3, -3, 299, 304, -4.9, -6, 400, -1000, 5000, -50_000])
def test_the_clock_is_found_to_a_second_from_which_times_the_server_takes(behind_s: float) -> None:
    """The server's time is this clock's plus `behind_s`; it takes times from 305 s before to 5 s after its own."""
    asked = []

    def takes(ahead_s: float) -> bool:
        asked.append(ahead_s)
        return -5 < behind_s - ahead_s < 305

    assert abs(connection.clock_behind_s(takes) - behind_s) <= 1
    if abs(behind_s) < 300:
        assert len(asked) < 20


def test_a_server_that_takes_no_time_at_all_has_no_clock() -> None:
    with pytest.raises(ValueError, match="no time"):
        connection.clock_behind_s(lambda _: False)


def self_signed(hosts: list[str], days: float = 100) -> tuple[bytes, bytes]:
    """A certificate that is its own CA, and its key."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
    )
    start = datetime.now(UTC) - timedelta(days=1)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, start, start + timedelta(days=1 + days))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), pem


FLEET_API = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name


class FleetServer:
    """A server that refuses as Flower 1.39 does, whose clock is `behind_s` ahead of this one."""

    def __init__(self, folder: Path) -> None:
        certificate, key = self_signed(["localhost"])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate)
        self.behind_s, self.known, self.sizes = 0.0, True, []
        self._server = grpc.server(ThreadPoolExecutor(2))
        credentials = grpc.ssl_server_credentials([(key, certificate)])
        self.port = self._server.add_secure_port("127.0.0.1:0", credentials)
        handler = grpc.unary_unary_rpc_method_handler(self._answer)
        self._server.add_registered_method_handlers(FLEET_API, {"ActivateNode": handler})
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(FLEET_API, {"ActivateNode": handler}),)
        )
        self._server.start()

    def _answer(self, request: bytes, context: grpc.ServicerContext) -> bytes:
        metadata = dict(context.invocation_metadata())
        assert metadata[CHECK_HEADER] == "1"
        time = metadata[TIMESTAMP_HEADER]
        key = bytes_to_public_key(metadata[PUBLIC_KEY_HEADER])
        assert verify_signature(key, time.encode(), metadata[SIGNATURE_HEADER])
        message = ActivateNodeRequest.FromString(request)
        assert message.public_key == metadata[PUBLIC_KEY_HEADER]
        assert message.heartbeat_interval == 0.0
        self.sizes.append(len(request))
        now = datetime.now(UTC) + timedelta(seconds=self.behind_s)
        if not -5 < (now - datetime.fromisoformat(time)).total_seconds() < 305:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp")
        if not self.known:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, '{"code": 2004, "message": "x"}')
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, '{"code": 2003, "message": "x"}')
        raise AssertionError

    def stop(self) -> None:
        self._server.stop(None).wait()


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetServer]:
    made = FleetServer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def config(fleet: FleetServer, tmp_path: Path) -> supervisor.GatewayConfig:
    keys.make_site_key(tmp_path, "site")
    (tmp_path / "gateway.yaml").write_text(f"site: north\nserver: localhost:{fleet.port}\n")
    return supervisor.load_gateway(tmp_path)


def told(config: supervisor.GatewayConfig) -> dict[str, list[str]]:
    """What the check says, by rank."""
    said: dict[str, list[str]] = {"stops": [], "look": [], "fine": []}
    for finding in connection.check(config):
        said[finding.rank].append(finding.text)
    return said


def test_where_nothing_is_wrong_everything_is_fine_and_measured(config, fleet: FleetServer) -> None:
    said = told(config)
    assert (said["stops"], said["look"]) == ([], [])
    assert any("clock is 0 s" in line for line in said["fine"])
    assert "the server knows this site's key" in said["fine"]
    assert "the server's certificate is good for localhost, for 99 more days" in said["fine"]
    assert any("Mbit/s to the server: an answer with all weights takes" in line for line in said["fine"])
    assert max(fleet.sizes) > 3 * 2**20


@pytest.mark.parametrize(
    ("behind_s", "rank", "text"),
    [
        (-4.0, "look", "clock is 4 s ahead of the server's"),
        (
            -20.0,
            "stops",
            "clock is 20 s ahead of the server's (to a second); 5 s ahead and 300 s behind are allowed",
        ),
        (200.0, "look", "clock is 200 s behind the server's"),
        (900.0, "stops", "clock is 900 s behind the server's"),
    ],
)
def test_a_clock_that_differs_is_measured(
    config, fleet: FleetServer, behind_s: float, rank: str, text: str
) -> None:
    fleet.behind_s = behind_s
    assert any(text in line for line in told(config)[rank])


def test_a_key_that_is_not_enrolled_is_shown_to_be_read_out(config, fleet: FleetServer) -> None:
    fleet.known = False
    (line,) = told(config)["stops"]
    assert f"read it to the study operator, who enrols it: {keys.fingerprint_of_private(config.key)}" in line


def test_a_certificate_of_another_federation_stops(config, fleet: FleetServer) -> None:
    config.ca.write_bytes(self_signed(["localhost"])[0])
    (line,) = told(config)["stops"]
    assert "the server's certificate is not good for localhost" in line


def test_a_certificate_for_another_name_stops(config) -> None:
    (line,) = told(config.model_copy(update={"server": config.server.replace("localhost", "127.0.0.1")}))[
        "stops"
    ]
    assert "not good for 127.0.0.1" in line


def test_a_closed_port_stops_and_names_the_firewall(config) -> None:
    (port,) = free_ports(1)
    (line,) = told(config.model_copy(update={"server": f"localhost:{port}"}))["stops"]
    assert f"localhost cannot be reached on port {port} (Connection refused)" in line
    assert f"outbound TCP to localhost:{port} has to be allowed" in line


def test_something_else_behind_the_port_stops(config) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]

        def talk() -> None:
            for _ in range(2):
                line, _ = listener.accept()
                with line:
                    line.sendall(b"SSH-2.0-x\r\n")

        with ThreadPoolExecutor(1) as pool:
            pool.submit(talk)
            (line,) = told(config.model_copy(update={"server": f"localhost:{port}"}))["stops"]
    assert f"no TLS with localhost:{port}" in line


def test_an_unknown_name_stops(config, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", fail)
    (line,) = told(config)["stops"]
    assert line.startswith("the name localhost is not known here (Name or service not known)")


def test_another_version_than_the_kits_stops_but_the_rest_is_reported(config) -> None:
    said = told(config.model_copy(update={"version": "99.0"}))
    (line,) = said["stops"]
    assert "the start-up kit and the server are 99.0; install that version" in line
    assert "the server knows this site's key" in said["fine"]


def test_without_a_key_it_is_said_how_to_make_one(config) -> None:
    config.key.unlink()
    (line,) = told(config)["stops"]
    assert "`consilium-site key` makes this site's key" in line
