"""The way to the server, each of its obstacles, and what is said of it."""

import contextlib
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeAlias

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

from client.gateway import settings
from client.preflight import connection, way
from common import keys
from common.processes.ports import free_ports
from common.wire import CHECK_HEADER
from tests.connect_proxy import connect_proxy


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


def self_signed(hosts: list[str], days: float = 100, first: float = -1) -> tuple[bytes, bytes]:
    """A certificate that is its own CA, and its key; valid from `first` to `days` days from now."""
    key, name = (
        ec.generate_private_key(ec.SECP256R1()),
        x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")]),
    )
    start, end = (datetime.now(UTC) + timedelta(days=number) for number in (first, days))
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), 1, start, end)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in hosts]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    return certificate.public_bytes(serialization.Encoding.PEM), pem


NAME = "consilium.example"
"""A name that this machine's resolver does not know, as at a hospital where the proxy alone knows the world's."""

FLEET_API = fleet_pb2.DESCRIPTOR.services_by_name["Fleet"].full_name


FLOWERS = (grpc.StatusCode.OK, "as Flower answers")
Answers: TypeAlias = Callable[[int], tuple[grpc.StatusCode, str] | None]


class FleetServer:
    """A server that refuses as Flower 1.39 does, whose clock is `behind_s` ahead of this one."""

    def __init__(self, folder: Path) -> None:
        certificate, key = self_signed(["localhost", NAME])
        self.ca = folder / "ca.pem"
        self.ca.write_bytes(certificate)
        self.behind_s, self.known, self.sizes = 0.0, True, []
        self.answers: Answers | None = None
        """In place of Flower's: a status and a text for a call of so many bytes, or None to accept it."""
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
        if self.answers is not None and (other := self.answers(len(request))) != FLOWERS:
            if other is not None:
                context.abort(*other)
            return b""
        now = datetime.now(UTC) + timedelta(seconds=self.behind_s)
        if not -5 < (now - datetime.fromisoformat(time)).total_seconds() < 305:
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "Invalid timestamp")
        if not self.known:
            context.abort(grpc.StatusCode.FAILED_PRECONDITION, '{"code": 2004, "message": "x"}')
        context.abort(grpc.StatusCode.INVALID_ARGUMENT, '{"code": 2003, "message": "x"}')
        raise AssertionError

    def stop(self) -> None:
        self._server.stop(None).wait()


PROXIES = [
    spelled
    for name in ("http_proxy", "https_proxy", "grpc_proxy", "all_proxy", "no_proxy", "no_grpc_proxy")
    for spelled in (name, name.upper())
]


@pytest.fixture(autouse=True)
def _no_proxy_of_this_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in PROXIES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def fleet(tmp_path: Path) -> Iterator[FleetServer]:
    made = FleetServer(tmp_path)
    yield made
    made.stop()


@pytest.fixture
def config(fleet: FleetServer, tmp_path: Path) -> settings.GatewayConfig:
    keys.make_site_key(tmp_path, "site")
    (tmp_path / "gateway.yaml").write_text(f"site: north\nserver: localhost:{fleet.port}\n")
    return settings.load_gateway(tmp_path)


def told(config: settings.GatewayConfig) -> dict[str, list[str]]:
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


def private_key() -> bytes:
    return self_signed(["localhost"])[1]


@pytest.mark.parametrize("spoilt", [b"", b"<html>", b"\x30\x82\x01", private_key()])
def test_a_ca_that_is_no_certificate_is_named_and_the_network_is_not_blamed(config, spoilt: bytes) -> None:
    config.ca.write_bytes(spoilt)
    (line,) = told(config)["stops"]
    assert line == f"{config.ca} is no certificate in PEM; copy ca.pem from the start-up kit again"


def test_a_ca_that_is_a_folder_is_named(config) -> None:
    config.ca.unlink()
    config.ca.mkdir()
    (line,) = told(config)["stops"]
    assert "cannot be read (Is a directory); copy ca.pem from the start-up kit again" in line


@pytest.mark.parametrize(
    "saved",
    [
        lambda pem: pem.replace(b"\n", b"\r\n"),
        lambda pem: b"\xef\xbb\xbf" + pem,
        lambda pem: b"Bag Attributes\n    friendlyName: ca\n" + pem,
    ],
    ids=["CRLF", "BOM", "text before it"],
)
def test_a_ca_is_read_however_a_program_saved_it(
    config, fleet: FleetServer, saved: Callable[[bytes], bytes]
) -> None:
    config.ca.write_bytes(saved(config.ca.read_bytes()))
    assert told(config)["stops"] == []


@pytest.mark.parametrize(
    ("first", "last", "why"), [(-10, -1, "certificate has expired"), (1, 10, "certificate is not yet valid")]
)
def test_a_certificate_out_of_its_time_may_be_this_machines_clock(
    config, tmp_path: Path, first: int, last: int, why: str
) -> None:
    certificate, key = self_signed(["localhost"], first=first, days=last)
    (tmp_path / "old.pem").write_bytes(certificate + key)
    config.ca.write_bytes(certificate)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "old.pem")
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            listener.accept()[0].close()  # the port is tried
            line, _ = listener.accept()
            with contextlib.suppress(OSError), line:
                context.wrap_socket(line, server_side=True)

        pool.submit(serve)
        port = listener.getsockname()[1]
        (line,) = told(config.model_copy(update={"server": f"localhost:{port}"}))["stops"]
    assert (
        f"not good for localhost: {why}, by this machine's clock, which says {datetime.now(UTC):%Y-}" in line
    )
    assert "If that is wrong, set it by NTP" in line


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


# --- an unknown failure is not a pass --------------------------------------------------------

UNAVAILABLE, UNAUTHENTICATED = grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.UNAUTHENTICATED


@pytest.mark.parametrize(
    "answer",
    [
        (
            UNAVAILABLE,
            "failed to connect to all addresses; last error: HTTP proxy returned response code 403",
        ),
        (UNAVAILABLE, ""),
        (grpc.StatusCode.UNIMPLEMENTED, "Method not found!"),
        (grpc.StatusCode.INTERNAL, "Internal server error."),
        (grpc.StatusCode.PERMISSION_DENIED, "blocked by policy"),
        (grpc.StatusCode.UNKNOWN, "Stream removed"),
        (grpc.StatusCode.RESOURCE_EXHAUSTED, "Too many requests"),
        (grpc.StatusCode.INVALID_ARGUMENT, '{"code": 2001, "message": "x"}'),
        (grpc.StatusCode.INVALID_ARGUMENT, '{"code": "2003 or so"}'),
        (grpc.StatusCode.INVALID_ARGUMENT, "[2003]"),
        (UNAUTHENTICATED, "Invalid signature"),
        (UNAUTHENTICATED, "Missing authentication metadata"),
        (UNAVAILABLE, "a timestamp in the text of another error"),
        (grpc.StatusCode.INTERNAL, "Invalid timestamp"),
        None,
    ],
    ids=str,
)
def test_an_answer_that_is_not_flowers_stops_and_is_named(
    config, fleet: FleetServer, answer: tuple[grpc.StatusCode, str] | None
) -> None:
    """Version 0.1.0 took every text without `timestamp` for a fitting time: "clock is 306 s behind", may take part."""
    fleet.answers = lambda _: answer
    said = told(config)
    (line,) = said["stops"]
    assert "the server did not answer as Consilium's does" in line
    assert (answer[1] if answer else "it accepted a call that it has to refuse") in line
    assert not any(
        "clock" in fine or ("key" in fine and "this site's key is" not in fine) for fine in said["fine"]
    )


def test_a_failure_of_the_large_call_alone_stops_as_well(config, fleet: FleetServer) -> None:
    """As where something in between cuts what is large: rounds would fail there."""
    cut = (UNAVAILABLE, "Connection reset by peer")
    fleet.answers = lambda size: cut if size > 2**20 else FLOWERS
    said = told(config)
    (line,) = said["stops"]
    assert "UNAVAILABLE: Connection reset by peer" in line
    assert any("clock is 0 s" in fine for fine in said["fine"])


def test_a_failure_after_the_clock_was_found_stops_as_well(config, fleet: FleetServer) -> None:
    calls = []

    def answer(_: int) -> tuple[grpc.StatusCode, str]:
        calls.append(1)
        return FLOWERS if len(calls) <= 5 else (UNAVAILABLE, "GOAWAY received")

    fleet.answers = answer
    (line,) = told(config)["stops"]
    assert "GOAWAY received" in line


# --- proxies ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in PROXIES if not name.lower().startswith("no")])
def test_a_proxy_of_the_environment_is_named_and_not_used(
    config, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    with connect_proxy({}) as proxy:
        monkeypatch.setenv(name, f"http://user:secret@127.0.0.1:{proxy.port}")
        said = told(config)
    assert proxy.asked == []
    assert said["stops"] == []
    (line,) = said["look"]
    assert f"the environment names a proxy, {name} (127.0.0.1:{proxy.port})." in line
    assert "whatever no_proxy says" in line
    assert "`proxy: http://127.0.0.1:" in line
    assert not any("secret" in text for texts in said.values() for text in texts)
    assert any("clock is 0 s" in fine for fine in said["fine"])


def through(config: settings.GatewayConfig, port: int, url: str) -> settings.GatewayConfig:
    return config.model_copy(update={"server": f"{NAME}:{port}", "proxy": url})


def test_through_a_proxy_that_is_named_on_purpose_every_step_is_tried(config, fleet: FleetServer) -> None:
    with connect_proxy({f"{NAME}:9092": fleet.port}) as proxy:
        said = told(through(config, 9092, proxy.url))
    assert (said["stops"], said["look"]) == ([], [])
    assert f"goes through the proxy 127.0.0.1:{proxy.port}, as gateway.yaml says" in said["fine"]
    assert any(f"connects to {NAME}:9092, and answers in" in line for line in said["fine"])
    assert f"the server's certificate is good for {NAME}, for 99 more days" in said["fine"]
    assert "the server knows this site's key" in said["fine"]
    assert proxy.asked == [f"{NAME}:9092"] * 3  # the port, the certificate, gRPC


def test_the_proxy_of_gateway_yaml_wins_over_the_environments_and_its_exceptions(
    config, fleet: FleetServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", NAME)
    monkeypatch.setenv("no_grpc_proxy", NAME)
    monkeypatch.setenv("https_proxy", "http://other.example:1")
    with connect_proxy({f"{NAME}:9092": fleet.port}) as proxy:
        said = told(through(config, 9092, proxy.url))
    assert said["stops"] == []
    assert len(proxy.asked) == 3
    assert any(
        "https_proxy (other.example:1) of the environment is not asked" in line for line in said["fine"]
    )


def test_a_proxy_with_a_password_gets_it(config, fleet: FleetServer) -> None:
    with connect_proxy({f"{NAME}:9092": fleet.port}, credentials="fl:p@ss") as proxy:
        url = f"http://fl:p%40ss@127.0.0.1:{proxy.port}"
        said = told(through(config, 9092, url))
    assert said["stops"] == []
    assert not any("p%40ss" in text or "p@ss" in text for texts in said.values() for text in texts)


@pytest.mark.parametrize(
    ("credentials", "answer", "text"),
    [
        ("fl:secret", None, "wants a user and a password"),
        (None, "403 Forbidden", "answered '403 Forbidden'; it does not allow it"),
        (None, "502 Bad Gateway", "cannot reach it"),
        (None, "504 Gateway Timeout", "cannot reach it"),
        (None, "302 Found", "does not allow it"),
        (None, "nothing of the kind", "is not an HTTP proxy"),
    ],
)
def test_a_proxy_that_does_not_connect_stops_with_what_to_do(
    config, fleet: FleetServer, credentials: str | None, answer: str | None, text: str
) -> None:
    options = {"credentials": credentials} | ({} if answer is None else {"answer": answer})
    with connect_proxy({f"{NAME}:9092": fleet.port}, **options) as proxy:
        (line,) = told(through(config, 9092, proxy.url))["stops"]
    assert text in line


def test_a_proxy_that_is_not_there_stops(config) -> None:
    (port,) = free_ports(1)
    (line,) = told(through(config, 9092, f"http://127.0.0.1:{port}"))["stops"]
    assert (
        f"127.0.0.1 cannot be reached on port {port} (Connection refused): either the proxy is not running"
        in line
    )


@pytest.mark.parametrize("drip", [b"", b"HTTP/1.1 200 OK\r\n" + b"X" * 200])
def test_a_proxy_that_does_not_end_its_answer_is_not_waited_for_without_end(
    config, monkeypatch: pytest.MonkeyPatch, drip: bytes
) -> None:
    monkeypatch.setattr(way, "_WAIT_S", 0.3)
    done = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as pool:

        def serve() -> None:
            line, _ = listener.accept()
            with contextlib.suppress(OSError), line:
                for byte in drip:  # each well within the time in which an answer is awaited
                    line.sendall(bytes([byte]))
                    if done.wait(0.02):
                        return
                done.wait()

        pool.submit(serve)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}"
        (line,) = told(through(config, 9092, url))["stops"]
        done.set()
    assert f"the proxy took the connection, was asked for {NAME}:9092, and did not answer within" in line


def test_a_proxy_that_opens_tls_stops(config, fleet: FleetServer, tmp_path: Path) -> None:
    """It shows a certificate of its own for the server's name."""
    (tmp_path / "other").mkdir()
    opening = FleetServer(tmp_path / "other")
    try:
        with connect_proxy({f"{NAME}:9092": opening.port}) as proxy:
            (line,) = told(through(config, 9092, proxy.url))["stops"]
    finally:
        opening.stop()
    assert f"the server's certificate is not good for {NAME}" in line
    assert "it has to leave this one alone" in line


def test_a_server_that_speaks_no_http_2_stops(config, tmp_path: Path) -> None:
    """As a web server, or a load balancer, with the right certificate on the wrong port."""
    certificate, key = self_signed(["localhost"])
    (tmp_path / "web.pem").write_bytes(certificate + key)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "web.pem")
    config.ca.write_bytes(certificate)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            listener.accept()[0].close()  # the port is tried
            line, _ = listener.accept()
            with context.wrap_socket(line, server_side=True) as secured, contextlib.suppress(OSError):
                secured.recv(1)

        with ThreadPoolExecutor(1) as pool:
            pool.submit(serve)
            port = listener.getsockname()[1]
            (line,) = told(config.model_copy(update={"server": f"localhost:{port}"}))["stops"]
    assert "does not speak HTTP/2" in line
