"""Flower's own Fleet API with what Consilium adds to it, in this process, and a site's key for it.

State is in memory; TLS, signatures and handlers are the real ones. What Flower's classes are given by
`server.transport.flower_state` is taken back afterwards.
"""

import shutil
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from flwr.common.constant import NOOP_FLWR_AID
from flwr.server.superlink.fleet.grpc_rere.node_auth_server_interceptor import NodeAuthServerInterceptor
from flwr.server.superlink.linkstate import LinkStateFactory
from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.constant import NOOP_FEDERATION_ID, TaskType
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.superlink.cli import flower_superlink as _  # noqa: F401
from flwr.superlink.federation import NoOpFederationManager
from flwr.superlink.grid.http_grid import HttpGrid

from client.gateway.connection import Connection
from client.gateway.settings import GatewayConfig
from common import keys
from common.network import unix_sockets
from common.processes.ports import free_ports
from server.deployment import certificates
from server.deployment.access_log import RefusalRecorder
from server.transport import flower_state, gateway_record, hub
from server.transport.gateway_calls import GatewayCalls, GatewayInterceptor, short_windows
from server.transport.gateway_record import GatewayRecord
from server.transport.presence import Presence
from server.transport.weight_files import WeightFiles

SUPERLINK = sys.modules["flwr.superlink.cli.flower_superlink"]


@dataclass
class Fleet:
    """A SuperLink's Fleet API, one enrolled site and one study."""

    folder: Path
    server: Any
    states: Any
    presence: Presence
    files: WeightFiles
    address: str
    hub: Path
    """Socket of the ServerApp."""
    node: int = 0
    """Of the site."""

    def enrol(self, name: str) -> int:
        """A key for `name`, which is enrolled; returns its node."""
        pair = keys.make_site_key(self.folder / "keys", name)
        pem = keys.flower_form(keys.read_public(pair.public))
        return int(self.states.state().create_node(NOOP_FLWR_AID, "operator", pem, 0.0))

    def gateway(self, name: str) -> GatewayConfig:
        """Settings of a gateway of `name`."""
        return GatewayConfig(
            site=name,
            server=self.address,
            ca=self.folder / "identity" / "ca.pem",
            key=self.folder / "keys" / f"{name}.key",
            socket=self.folder / "t.sock",
        )

    def connection(self, name: str = "north") -> Connection:
        """One connection of a gateway of `name`; the caller cuts it."""
        return Connection(self.gateway(name))

    def revoke(self, node: int) -> None:
        """Remove a node, as `consilium-server revoke` does in the end."""
        self.states.state().delete_node(NOOP_FLWR_AID, node)

    def grid(self, monkeypatch: pytest.MonkeyPatch) -> HttpGrid:
        """A study's grid, whose process runs a task of it."""
        state = self.states.state()
        run_id = state.create_run(
            None, None, "0" * 64, {}, NOOP_FEDERATION_ID, None, NOOP_FLWR_AID, TaskType.SERVER_APP
        )
        run = state.get_run_info(run_ids=[run_id])[0]
        token = state.claim_task(run.primary_task_id)
        assert token is not None
        assert state.activate_task(run.primary_task_id)
        grid = HttpGrid("127.0.0.1:1", insecure=True, token=token)
        grid.set_run(run if isinstance(run, Run) else Run(run_id=run_id))
        for name, value in (("_task_id", run.primary_task_id), ("_run_id", run_id), ("_node_id", 1)):
            monkeypatch.setattr(TaskIdentity, name, value)
        monkeypatch.setenv(hub.SOCKET, str(self.hub))
        monkeypatch.setenv(hub.FILES, str(self.folder / "weights"))
        return grid

    def is_online(self, node: int | None = None) -> bool:
        """True while the node counts as connected."""
        infos = self.states.state().get_node_info(node_ids=[node or self.node])
        return bool(infos) and infos[0].status == "online"


@contextmanager
def fleet(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Fleet]:
    """A running Fleet API with the site north."""
    for name in ("store_message_and_object_tree", "store_object", "delete_node"):
        monkeypatch.setattr(SqlLinkState, name, getattr(SqlLinkState, name))  # so that it is put back
    monkeypatch.setattr(ObjectStoreFactory, "__init__", ObjectStoreFactory.__init__)
    presence, files = Presence(), WeightFiles(folder / "weights")
    files.begin()
    flower_state.install(presence)
    objects = ObjectStoreFactory()
    states = LinkStateFactory(str(folder / "state.db"), NoOpFederationManager(), objects)
    flower_state.clean_up(states.state())
    identity = certificates.make_server_identity(folder / "identity", ["localhost", "127.0.0.1"])
    (port,) = free_ports(1)
    certificate = (identity.ca.read_bytes(), identity.certificate.read_bytes(), identity.key.read_bytes())
    with short_windows():
        server = SUPERLINK._run_fleet_api_grpc_rere(  # type: ignore[attr-defined]
            address=f"127.0.0.1:{port}",
            state_factory=states,
            objectstore_factory=objects,
            enable_supernode_auth=True,
            certificates=certificate,
            interceptors=[
                RefusalRecorder(folder / "refused.jsonl"),
                GatewayCalls(presence, files, states),
                NodeAuthServerInterceptor(states),
                GatewayInterceptor(presence, states, GatewayRecord(folder / gateway_record.FILE)),
            ],
        )
    socket = unix_sockets.short_folder("s") / "s"
    inner = hub.serve(socket, states, presence)
    made = Fleet(folder, server, states, presence, files, f"localhost:{port}", socket)
    made.node = made.enrol("north")
    try:
        yield made
    finally:
        server.stop(grace=None).wait()
        inner.stop(grace=None).wait()
        shutil.rmtree(socket.parent)
