"""Callers of a real SuperLink who are not who they say, or not this user of the machine."""

import os
import subprocess
import sys
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.common.constant import PUBLIC_KEY_HEADER, SIGNATURE_HEADER, TIMESTAMP_HEADER
from flwr.proto.fleet_pb2 import ActivateNodeRequest, ActivateNodeResponse, PullMessagesRequest
from flwr.proto.node_pb2 import Node

from common import keys
from common.processes.flower import environment
from common.processes.launcher import Processes
from common.processes.ports import free_ports
from common.wire import codec
from common.wire.gateway_calls import PROCESS_HEADER, SCHEMA_HEADER
from server.deployment import certificates, local_users, site_keys
from server.deployment.refusals import OTHER_USER, OTHERS_KEY, RefusalReader
from server.deployment.superlink import Federation

STRANGER = 65534
"""A user of the machine who has nothing to do with the server."""

CALL = """
import encodings.idna, os, socket, ssl, sys
if sys.argv[3]:  # after the imports: the interpreter's files may not be readable for everybody
    os.setgroups([]); os.setgid(int(sys.argv[3])); os.setuid(int(sys.argv[3]))
context = ssl.create_default_context(cadata=sys.argv[2])
try:
    with socket.create_connection(("127.0.0.1", int(sys.argv[1])), timeout=10) as plain:
        with context.wrap_socket(plain, server_hostname="localhost") as line:
            line.sendall(b"GET /health HTTP/1.1\\r\\nHost: localhost\\r\\nConnection: close\\r\\n\\r\\n")
            print(line.recv(100).split(b"\\r\\n")[0].decode())
except OSError as error:
    print(f"turned away: {type(error).__name__}")
"""


class Server:
    """A SuperLink with one enrolled site, `north`."""

    def __init__(self, folder: Path, processes: Processes) -> None:
        (port,) = free_ports(1)
        self.federation = Federation(work=folder, processes=processes, fleet_port=port)
        self.identity = certificates.make_server_identity(folder / "keys", ["localhost", "127.0.0.1"])
        self.north = keys.make_site_key(folder / "sites", "north")
        self.stranger = keys.make_site_key(folder / "sites", "stranger")
        self.federation.start_superlink(self.identity)
        self.federation._wait_for_superlink()
        self.node_id = self.federation.register({"north": self.north.public})["north"]
        self.refusals = RefusalReader(folder / "refused.jsonl")

    def call(self, method: str, request, signer: keys.SiteKey) -> bytes:
        """A call of the Fleet API, signed by `signer`."""
        key, now = keys.read_private(signer.private), datetime.now(UTC).isoformat()
        metadata = [
            (PUBLIC_KEY_HEADER, keys.flower_form(key.public_key())),
            (TIMESTAMP_HEADER, now),
            (SIGNATURE_HEADER, key.sign(now.encode(), ec.ECDSA(hashes.SHA256()))),
            (SCHEMA_HEADER, str(codec.SCHEMA)),
            (PROCESS_HEADER, "0123456789abcdef"),
        ]
        credentials = grpc.ssl_channel_credentials(self.identity.ca.read_bytes())
        with grpc.secure_channel(f"localhost:{self.federation.fleet_port}", credentials) as channel:
            call = channel.unary_unary(f"/flwr.proto.Fleet/{method}")
            return call(request.SerializeToString(), metadata=metadata, timeout=30)

    def is_online(self) -> bool:
        (node,) = site_keys.nodes(self.federation._database).values()
        return node.online


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    folder = tmp_path_factory.mktemp("server")
    processes = Processes(folder / "logs", environment(folder / "home", os.environ))
    try:
        yield Server(folder, processes)
    finally:
        processes.stop()


def named(signer: keys.SiteKey) -> bytes:
    return keys.flower_form(keys.read_private(signer.private).public_key())


@pytest.mark.slow
def test_a_key_that_is_not_enrolled_cannot_connect_in_the_name_of_one_that_is(server: Server) -> None:
    request = ActivateNodeRequest(public_key=named(server.north), heartbeat_interval=1800.0)
    with pytest.raises(grpc.RpcError) as refused:
        server.call("ActivateNode", request, server.stranger)
    assert refused.value.code() == grpc.StatusCode.PERMISSION_DENIED
    assert not server.is_online()  # its site would have been locked out for an hour
    assert [refusal.what for refusal in server.refusals.new()] == [OTHERS_KEY]


@pytest.mark.slow
def test_the_site_itself_connects_and_nothing_is_pulled_in_its_name(server: Server) -> None:
    request = ActivateNodeRequest(public_key=named(server.north), heartbeat_interval=30.0)
    answer = ActivateNodeResponse.FromString(server.call("ActivateNode", request, server.north))
    assert answer.node_id == server.node_id
    assert server.is_online()
    pull = PullMessagesRequest(node=Node(node_id=server.node_id))
    server.call("PullMessages", pull, server.north)
    with pytest.raises(grpc.RpcError, match="Invalid node ID"):
        server.call("PullMessages", pull, server.stranger)


def answer(server: Server, user: str) -> str:
    """What Flower's own APIs answer to a user of this machine, who has the public CA."""
    arguments = [str(server.federation._control_port), server.identity.ca.read_text(), user]
    called = subprocess.run(
        [sys.executable, "-I", "-c", CALL, *arguments], capture_output=True, text=True, check=True
    )
    return called.stdout


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or os.geteuid() != 0, reason="takes another user's name")
def test_another_user_of_the_machine_reaches_no_api_that_starts_runs(server: Server) -> None:
    server.refusals.new()
    assert answer(server, "").startswith("HTTP/1.1")
    assert not answer(server, str(STRANGER)).startswith("HTTP")
    assert [refusal.what for refusal in server.refusals.new()] == [f"{OTHER_USER}{STRANGER}"]


HEADING = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode\n"


def table(path: Path, *lines: str) -> Path:
    path.write_text(HEADING + "".join(f"{line} 1 0000 20 4 30 10 -1\n" for line in lines))
    return path


def row(local: str, remote: str, state: str, user: int, inode: int) -> str:
    return f"   0: {local} {remote} {state} 00000000:00000000 00:00000000 00000000 {user:>5}        0 {inode}"


ONE, OTHER = "0100007F:C000", "0100007F:2384"  # 127.0.0.1:49152 and 127.0.0.1:9092
PEER, OWN = ("127.0.0.1", 49152), ("127.0.0.1", 9092)


@pytest.mark.skipif(sys.byteorder != "little", reason="the table is written in the machine's byte order")
@pytest.mark.parametrize(
    ("lines", "user"),
    [
        ([row(OTHER, ONE, "01", 7, 11), row(ONE, OTHER, "01", 1000, 12)], 1000),
        ([row(OTHER, ONE, "01", 7, 11)], None),
        # closed by its program at once: the kernel prints user 0, which must not pass for root
        ([row(ONE, OTHER, "01", 0, 0)], None),
        ([row(ONE, OTHER, "06", 0, 0)], None),
        ([row(ONE, OTHER, "05", 1000, 12)], None),
        ([row(ONE, "0100007F:2385", "01", 1000, 12)], None),
        ([], None),
    ],
)
def test_a_connections_user_is_the_kernels_word(tmp_path: Path, lines: list[str], user: int | None) -> None:
    assert local_users.user_of(PEER, OWN, table(tmp_path / "tcp", *lines)) == user
