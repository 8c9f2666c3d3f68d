"""A start-up kit in real containers, as `./site.sh up` makes them, and what its gateway can reach.

The server is a process of this machine, on the engine's own bridge. A study of two rounds passes through the kit's
`way-out`; then every wish but the server is tried from inside. The images are this test's own, built from the checkout.
"""

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml

from benchmarks.faults.world import ENV, ROOT, START_S, soon
from common import release
from common.processes.ports import free_ports
from tests.browser import Visitor
from tests.deploy import institutions
from tests.deploy.test_containers import ENGINE, LOOK, REACH, ask, bridge_address

TAG = f"kit-test-{os.getpid()}"
NEIGHBOUR = f"consilium-{TAG}"
LISTEN = "import socket, time; s = socket.create_server(('0.0.0.0', 5000)); time.sleep(900)"
WISH = """
import json, socket, sys

def wish(place):
    with socket.create_connection(("way-out", 3128), 10) as line:
        line.sendall(f"CONNECT {place} HTTP/1.1\\r\\nHost: {place}\\r\\n\\r\\n".encode())
        return line.recv(200).split(b"\\r\\n")[0].decode()

print(json.dumps({place: wish(place) for place in sys.argv[1:]}))
"""

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(ENGINE is None, reason="no Docker engine with compose v2 answers here"),
    pytest.mark.skipif(
        sys.platform != "linux", reason="the engine's bridge is an address of this machine on Linux"
    ),
]


@dataclass
class World:
    """A server's folder and process, and an unpacked kit."""

    folder: Path
    address: str
    port: int
    processes: list["subprocess.Popen[bytes]"] = field(default_factory=list)
    said: str = ""
    """What the study said."""

    @property
    def server(self) -> Path:
        return self.folder / "server"

    @property
    def kit(self) -> Path:
        return self.folder / "consilium-north"

    def run(self, module: str, *arguments: str | Path) -> str:
        done = subprocess.run(
            [sys.executable, "-m", module, *map(str, arguments)],
            cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=START_S, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self, *command: str | Path) -> None:
        with (self.folder / "processes.txt").open("ab") as said:
            self.processes.append(
                subprocess.Popen(
                    [*map(str, command)],
                    cwd=ROOT,
                    env=ENV,
                    stdin=subprocess.DEVNULL,
                    stdout=said,
                    stderr=said,
                )
            )

    def site_sh(self, *arguments: str) -> str:
        done = subprocess.run(
            ["sh", str(self.kit / "site.sh"), *arguments],
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def container(self, service: str) -> Any:
        labels = [
            f"com.docker.compose.project.working_dir={self.kit}",
            f"com.docker.compose.service={service}",
        ]
        (found,) = ENGINE.containers.list(filters={"label": labels})
        return found

    def is_online(self) -> bool:
        return bool(json.loads(self.run("server.cli", "--json", "status", self.server))["online"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    made = World(tmp_path_factory.mktemp("kit"), bridge_address(), *free_ports(1))
    neighbour = None
    try:
        images(made)
        provision(made)
        made.site_sh("up")
        neighbour = listen_beside(made)
        soon(made.is_online, "a gateway that is online")
        classes = yaml.safe_load((made.folder / "images" / "federation.yaml").read_text())["classes"]
        study = institutions.study(
            made.folder,
            "first",
            classes,
            sites={"train": ["north"]},
            # a trainer whose image was built a moment ago is read from the disk: a minute and more
            deadlines={"enrol_s": 300, "round_s": 300, "evaluate_s": 300},
        )
        made.said = made.run("server.cli", "run", made.server, study, "--wait")
        yield made
    finally:
        if made.said == "":  # shown with the failure
            subprocess.run(["sh", str(made.kit / "site.sh"), "logs", "--tail", "25"], check=False)
        if neighbour is not None:
            neighbour.remove(force=True)
        subprocess.run(
            ["sh", str(made.kit / "site.sh"), "down", "--timeout", "1"], capture_output=True, check=False
        )
        for process in reversed(made.processes):
            process.terminate()
            process.wait(60)
        names = [f"consilium-{target}:{TAG}" for target in ("gateway", "trainer")]
        subprocess.run(["docker", "rmi", *names], capture_output=True, check=False)


def images(world: World) -> None:
    for target in ("gateway", "trainer"):
        name = f"consilium-{target}:{TAG}"
        command = ["docker", "build", "--quiet", "-f", "Dockerfile.gpu", "--target", target, "-t", name, "."]
        subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=1800)


def provision(world: World) -> None:
    """A server that is up, and the kit of a site whose key is enrolled. Only the images' names are the test's own."""
    about = {
        "name": "f",
        "synthetic": True,
        "server": {"hosts": [world.address], "port": world.port, "listen": world.address},
        "sites": {"north": {}},
    }
    (world.folder / "federation.yaml").write_text(yaml.safe_dump(about))
    world.run("server.cli", "provision", world.folder / "federation.yaml", "--out", world.server)
    with zipfile.ZipFile(world.server / "kits" / "north.zip") as archive:
        archive.extractall(world.folder)
    for name in ("docker-compose.yml", "site.sh"):
        file = world.kit / name
        file.write_text(file.read_text().replace(f":{release.version()}", f":{TAG}"))
    world.run("client.cli", "simulate", "--images", "20", "--threads", "1", "--out", world.folder / "images")
    institutions.set_images(world.kit, world.folder / "images" / "north.yaml")
    world.site_sh("key")
    world.run("server.cli", "enrol", world.server, "north", world.kit / "site.pub")
    world.start(sys.executable, "-m", "server.cli", "up", world.server)
    soon(lambda: (world.server / "ready").exists(), "a server that is ready")


def listen_beside(world: World) -> Any:
    """Somebody else in the network that leads outside, and on the server's machine: both listen."""
    (outside,) = [
        name
        for name in world.container("way-out").attrs["NetworkSettings"]["Networks"]
        if name.endswith("_outside")
    ]
    world.start(sys.executable, "-c", LISTEN.replace("0.0.0.0", world.address))
    return ENGINE.containers.run(
        f"consilium-gateway:{TAG}",
        [LISTEN],
        entrypoint=["python3", "-c"],
        name=NEIGHBOUR,
        network=outside,
        detach=True,
    )


def test_a_study_passes_through_the_kits_way_out(world: World) -> None:
    assert "study first finished after 2 rounds" in world.said
    assert "works on" in world.site_sh("status") or "have left" in world.site_sh("status")


def test_the_gateway_has_no_way_but_way_out_which_leads_to_the_server_alone(world: World) -> None:
    server = f"{world.address}:{world.port}"
    others = [f"{world.address}:5000", f"{NEIGHBOUR}:5000", "198.51.100.1:443"]
    gateway = world.container("gateway")
    assert ask(gateway, REACH, server, *others, "way-out:3128") == {
        **dict.fromkeys([server, *others], False), "way-out:3128": True,
    }  # fmt: skip
    # they are there for somebody with a way
    assert ask(world.container("way-out"), REACH, server, *others[:2]) == dict.fromkeys(
        [server, *others[:2]], True
    )
    wishes = ask(gateway, WISH, server, *others)
    assert wishes.pop(server) == "HTTP/1.1 200 Connection established"
    assert set(wishes.values()) == {"HTTP/1.1 403 Forbidden"}


def test_way_out_holds_no_key_and_the_trainer_no_network(world: World) -> None:
    seen = {service: ask(world.container(service), LOOK) for service in ("way-out", "gateway", "trainer")}
    assert [seen[service]["keys"] for service in seen] == [[], ["/site/site.key"], []]
    assert seen["trainer"]["interfaces"] == ["lo"]
    assert [seen[service]["pictures"] > 0 for service in seen] == [False, False, True]
    assert {looked["uid"] for looked in seen.values()} == {10001 if os.geteuid() == 0 else os.geteuid()}
    assert not any(looked["capabilities"] for looked in seen.values())
    sockets = [any("/site/link" in mount for mount in looked["mounts"]) for looked in seen.values()]
    assert sockets == [False, True, True]


def test_the_sites_console_is_on_loopback_alone_shows_what_has_left_and_sees_no_image(world: World) -> None:
    port = 8766
    world.start("sh", world.kit / "site.sh", "console")
    soon(lambda: answers(port), "a console that answers")
    console = world.container("console")
    assert console.attrs["HostConfig"]["PortBindings"] == {
        f"{port}/tcp": [{"HostIp": "127.0.0.1", "HostPort": str(port)}]
    }
    looked = ask(console, LOOK)
    assert (looked["pictures"], looked["keys"], looked["capabilities"]) == (0, [], 0)
    with Visitor(port, (world.kit / "state" / "console" / "token").read_text().strip()) as browser:
        assert "first" in browser.get("/sent").text
    console.stop(timeout=5)


def answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/login", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False
