"""A gateway and a server of real processes, with proxies in between and around.

The server listens on an address that is not 127.0.0.1. The site knows it by a name that this machine's resolver does
not know, so nothing but the proxy leads there.
"""

import json
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import yaml

from benchmarks.faults.world import ENV, ROOT, START_S, soon
from common.processes.ports import free_ports
from tests.connect_proxy import ConnectProxy, connect_proxy

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

NAME, LISTEN = "consilium.example", "127.0.0.2"
NOWHERE = {
    name: f"{scheme}://127.0.0.1:1"
    for name, scheme in (
        ("http_proxy", "http"), ("https_proxy", "http"), ("HTTPS_PROXY", "http"), ("ALL_PROXY", "socks5"),
    )
}  # fmt: skip
"""An environment whose proxies lead nowhere, in front of every process."""


@dataclass
class World:
    """A server, a site, and what was started for them."""

    folder: Path
    port: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)

    @property
    def server(self) -> Path:
        return self.folder / 'server "of" müller\\s'

    @property
    def kit(self) -> Path:
        return self.folder / "kit #1" / "consilium-north"

    def run(self, module: str, *arguments: str | Path) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT, env=ENV | NOWHERE, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip

    def start(self, name: str, module: str, *arguments: str | Path) -> None:
        with (self.folder / f"{name}.txt").open("wb") as said:
            self.processes.append(
                subprocess.Popen(
                    [sys.executable, "-m", module, *map(str, arguments)],
                    cwd=ROOT, env=ENV | NOWHERE, stdin=subprocess.DEVNULL, stdout=said, stderr=said,
                )
            )  # fmt: skip

    def said(self, name: str) -> str:
        return (self.folder / f"{name}.txt").read_text(errors="replace")

    def is_online(self) -> bool:
        assert all(process.poll() is None for process in self.processes), self.said("server") + self.said(
            "gateway"
        )
        return bool(json.loads(self.run("server.cli", "--json", "status", self.server).stdout)["online"])

    def end(self) -> None:
        for process in reversed(self.processes):
            process.terminate()
            process.wait(60)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("proxy"), *free_ports(1))
    about = {
        "name": "f",
        "server": {"hosts": [NAME], "port": made.port, "listen": LISTEN},
        "sites": {"north": {}},
    }
    (made.folder / "federation.yaml").write_text(yaml.safe_dump(about))
    done = made.run("server.cli", "provision", made.folder / "federation.yaml", "--out", made.server)
    assert done.returncode == 0, done.stderr
    with zipfile.ZipFile(made.server / "kits" / "north.zip") as archive:
        archive.extractall(made.kit.parent)
    made.run("client.cli", "key", made.kit)
    made.run("server.cli", "enrol", made.server, "north", made.kit / "site.pub")
    made.start("server", "server.cli", "up", made.server)
    try:
        yield made
    finally:
        made.end()


@pytest.fixture(scope="module")
def proxy(world: World) -> Iterator[ConnectProxy]:
    with connect_proxy({f"{NAME}:{world.port}": world.port}, host=LISTEN) as made:
        with (world.kit / "gateway.yaml").open("a") as settings:
            settings.write(f"proxy: {made.url}\n")
        yield made


def test_a_server_on_one_address_of_its_machine_becomes_ready(world: World) -> None:
    soon(
        lambda: (world.server / "ready").exists() or world.processes[0].poll() is not None,
        "a server that is ready",
    )
    assert world.processes[0].poll() is None, world.said("server")
    assert "the server is ready; sites may connect" in world.said("server")


def test_a_site_is_checked_through_its_proxy_alone(world: World, proxy: ConnectProxy) -> None:
    done = world.run("client.cli", "check-connection", world.kit)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "the server knows this site's key" in done.stdout
    assert "may take part" in done.stdout
    assert set(proxy.asked) == {f"{NAME}:{world.port}"}


def test_a_gateway_connects_through_its_proxy_alone(world: World, proxy: ConnectProxy) -> None:
    before = len(proxy.asked)
    world.start("gateway", "client.cli", "gateway", world.kit)
    soon(world.is_online, "a gateway that is online")
    assert len(proxy.asked) > before
    assert set(proxy.asked) == {f"{NAME}:{world.port}"}
    assert f"connects to {NAME}:{world.port} through the proxy 127.0.0.1:{proxy.port}" in world.said(
        "gateway"
    )
