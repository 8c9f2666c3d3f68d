"""A federation in real containers, as `docker compose up` makes it, looked at while it runs.

One federation serves most of these tests. Its trainers wait before every round until the test opens their gates.
While round 1 is held, every container is looked at from inside; then a trainer, a gateway and the server are
killed, each while a round of its own is held; then the study must end as if nothing had been. Containers are
asked through the engine's own interface. Whatever else runs on the engine is left alone: names and image tags
are this test's own.
"""

import io
import json
import os
import re
import shutil
import socket
import subprocess
import tarfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import yaml

from benchmarks.faults import held
from benchmarks.faults.held import Gate

docker = pytest.importorskip("docker", reason="the package `docker` is not installed")

ROOT = Path(__file__).parents[2]
PROJECT = f"consilium-test-{os.getpid()}"
"""Also the tag of its images."""
BASE = "python:3.11-slim-bookworm"
SITES = (1, 2, 3)
KILLED = ("trainer-1", "gateway-2", "server")
"""In this order, in rounds 2, 3 and 4."""
ROUNDS = 5
STUDY = {
    "name": "in-containers",
    "classes": ["akiec", "bcc", "bkl", "df", "mel", "nv", "vasc"],
    "sites": {"train": ["north", "south", "east"]},
    "model": {"encoder": "test_efficientnet", "image_size": 32},
    "rounds": ROUNDS,
    "local": {"epochs": 1, "batch_size": 16, "optimizer": {"kind": "adamw", "lr": 0.003}},
    "deadlines": {"enrol_s": 900, "round_s": 900, "evaluate_s": 900},  # a round that is held lasts
}
NOT_OURS = re.compile("STUDY|DATA|IMAGES|THREADS|GPU_.|GRAFANA_PORT|CONSILIUM_TAG|COMPOSE_.*")
"""What a user sets for a federation of their own."""
FILES = ("docker-compose.yml", "tests/deploy/held.yml")


def engine() -> Any:
    """A client of the Docker engine; None where none answers, or compose is missing.

    The command asks first: docker's client leaves a line open where no engine answers, which fails any test.
    """
    for asked in (["docker", "version"], ["docker", "compose", "version"]):
        if (
            shutil.which("docker") is None
            or subprocess.run(asked, capture_output=True, check=False).returncode
        ):
            return None
    client = docker.from_env()
    client.close()  # it opens another line when a test asks
    return client


ENGINE = engine()

pytestmark = [
    pytest.mark.docker,
    pytest.mark.slow,
    pytest.mark.timeout(2400),
    pytest.mark.skipif(ENGINE is None, reason="no Docker engine with compose v2 answers here"),
]


# --- looking at containers -------------------------------------------------------------------

LOOK = r"""
import errno, importlib.util, json, os, pathlib, socket, sys

def can_resolve(name):
    try:
        return bool(socket.getaddrinfo(name, 9092))
    except OSError:
        return False

def can_write(folder):
    try:
        (pathlib.Path(folder) / "written-by-a-test").touch()
        return True
    except OSError as error:
        return errno.errorcode[error.errno]

def has_key(path):
    try:
        return b"PRIVATE KEY-----" in path.read_bytes().split(b"\n", 1)[0]
    except OSError:
        return False

status = dict(line.split(":\t", 1) for line in open("/proc/self/status").read().splitlines() if ":\t" in line)
listening = set()
for table in ("/proc/net/tcp", "/proc/net/tcp6"):
    for line in open(table).read().splitlines()[1:]:
        local, state = line.split()[1], line.split()[3]
        listening |= {int(local.split(":")[1], 16)} if state == "0A" else set()
places = ["/server", "/site", "/sites", "/data", "/key", "/keys", "/link", "/state", "/images", "/end", "/tmp"]
files = [path for place in places for path in pathlib.Path(place).rglob("*") if path.is_file()]
print(json.dumps({
    "interfaces": sorted(os.listdir("/sys/class/net")),
    "resolves": [name for name in sys.argv[1:] if can_resolve(name)],
    "written": {place: can_write(place) for place in ("/", "/data", "/sites", "/end", "/key")},
    "uid": os.getuid(),
    "capabilities": int(status["CapEff"], 16) | int(status["CapPrm"], 16) | int(status["CapBnd"], 16),
    "no_new_privileges": status["NoNewPrivs"].strip() == "1",
    "keys": [str(path) for path in files if has_key(path)],
    "pictures": sum(path.suffix == ".jpg" for path in files),
    "mounts": [line.split()[4] for line in open("/proc/self/mountinfo")],
    "torch": importlib.util.find_spec("torch") is not None,
    "listening": sorted(listening),
}))
"""

REACH = r"""
import json, socket, sys

def reach(address):
    host, port = address.rsplit(":", 1)
    try:
        socket.create_connection((host, int(port)), 3).close()
        return True
    except OSError:
        return False

print(json.dumps({address: reach(address) for address in sys.argv[1:]}))
"""


@dataclass
class Federation:
    """One `docker compose up`, from its start to its end."""

    log: Path
    process: "subprocess.Popen[bytes]"
    gates: tuple[Gate, ...]
    """Of the trainers, in the order of their numbers."""
    seen: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By service: what a look from inside found."""
    attrs: dict[str, dict[str, Any]] = field(default_factory=dict)
    """By service: what the engine says of the container, while it ran."""
    reached: dict[str, bool] = field(default_factory=dict)
    """By address: what the gateway of site 1 could connect to."""
    bridge: str = ""
    """Where this machine itself listens."""
    addresses: dict[str, str] = field(default_factory=dict)
    """Of the other sites' gateways, by service."""
    restarts: dict[str, int] = field(default_factory=dict)
    exit_code: int = -1
    server_log: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    """What the study left in its folder."""

    def container(self, service: str) -> Any:
        return ENGINE.containers.get(f"{PROJECT}-{service}-1")

    def said(self, service: str = "server") -> str:
        try:
            return str(self.container(service).logs().decode(errors="replace"))
        except docker.errors.NotFound:
            return ""

    def tail(self) -> str:
        """The end of the server's log, and of everybody's."""
        return f"{self.said()[-3000:]}\n{self.log.read_text(errors='replace')[-3000:]}"

    def wait(self, what: Callable[[], bool], name: str, within_s: float = 600) -> None:
        until = time.monotonic() + within_s
        while not what():
            assert self.process.poll() is None, f"`up` ended before {name}:\n{self.tail()}"
            assert time.monotonic() < until, f"{name} did not happen within {within_s:.0f} s:\n{self.tail()}"
            time.sleep(0.2)

    def wait_until_held(self, number: int, within_s: float = 600) -> None:
        """Until every trainer has the plan of round `number` in hand."""
        self.wait(lambda: all(gate.holds(number) for gate in self.gates), f"round {number}", within_s)

    def let(self, rounds: int) -> None:
        for gate in self.gates:
            gate.let(rounds)


def ask(container: Any, script: str, *arguments: str) -> Any:
    code, out = container.exec_run(["python3", "-c", script, *arguments])
    assert code == 0, out.decode(errors="replace")
    return json.loads(out)


def compose(*arguments: str, files: tuple[str, ...] = FILES, project: str = PROJECT) -> list[str]:
    which = [part for file in files for part in ("-f", str(ROOT / file))]
    own = ["--ansi", "never", "--env-file", os.devnull, "--project-name", project]
    return ["docker", "compose", *own, *which, *arguments]


def environment(**changes: str) -> Mapping[str, str]:
    ours = {name: value for name, value in os.environ.items() if not NOT_OURS.fullmatch(name)}
    return ours | {"CONSILIUM_TAG": PROJECT} | changes


def crash(container: Any) -> None:
    """Kill the container's first process from outside, as the kernel does when memory is short.

    `docker kill` would not do: a container that somebody killed on purpose is not started again.
    """
    container.reload()
    code = f"import os; os.kill({container.attrs['State']['Pid']}, 9)"
    ENGINE.containers.run(BASE, ["python3", "-c", code], pid_mode="host", remove=True)


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Federation]:
    folder = tmp_path_factory.mktemp("containers")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    log = folder / "up.log"
    gates = tuple(Gate(folder / "gates" / str(number)) for number in SITES)
    for gate in gates:
        gate.folder.mkdir(parents=True)
        gate.folder.chmod(0o777)  # for the user of the trainers' image
        gate.let(0)
    env = environment(
        STUDY=str(folder / "study.yaml"), IMAGES="60", HELD=held.__file__, GATES=str(folder / "gates")
    )
    with log.open("wb") as file:
        process = subprocess.Popen(
            compose("up", "--build"), cwd=ROOT, env=env, stdout=file, stderr=subprocess.STDOUT
        )
    made = Federation(log, process, gates)
    try:
        live(made)
        yield made
    finally:
        process.kill()
        process.wait()
        command = compose("down", "--volumes", "--timeout", "1", "--rmi", "all")
        subprocess.run(command, cwd=ROOT, env=env, check=True, capture_output=True)


def live(made: Federation) -> None:
    """The whole study: round 1 is looked at; then one kill a round; then the end."""
    made.wait_until_held(1, 1500)
    look_around(made)
    made.let(1)
    for number, service in enumerate(KILLED, start=2):
        made.wait_until_held(number)
        crash(made.container(service))
        made.let(number)
    made.let(held.FREE)
    made.exit_code = made.process.wait(900)
    made.server_log = made.said()
    for service in services():
        container = made.container(service)
        container.reload()
        made.restarts[service] = container.attrs["RestartCount"]
    made.files = left_by_the_study(made)


def services() -> list[str]:
    return ["server", *(f"{role}-{number}" for role in ("gateway", "trainer") for number in SITES)]


def look_around(made: Federation) -> None:
    there = {service: made.container(service) for service in services()}
    made.attrs = {service: container.attrs for service, container in there.items()}
    names = ("server", *(f"gateway-{number}" for number in SITES))
    with ThreadPoolExecutor(4) as pool:
        seen = pool.map(lambda container: ask(container, LOOK, *names), there.values())
        made.seen = dict(zip(there, seen, strict=True))
    listen_in_the_other_gateways(made)
    (network,) = made.attrs["gateway-1"]["NetworkSettings"]["Networks"]
    made.bridge = f"{bridge_address()}:{held_open()}"
    server = made.attrs["server"]["NetworkSettings"]["Networks"][network]["IPAddress"]
    ports = [f"{server}:{port}" for port in made.seen["server"]["listening"]]
    others = list(made.addresses.values())
    made.reached = ask(made.container("gateway-1"), REACH, "server:9092", *ports, *others, made.bridge)


def bridge_address() -> str:
    """This machine's address for containers."""
    bridge = ENGINE.networks.get("bridge").attrs["IPAM"]["Config"][0]
    return str(bridge.get("Gateway") or bridge["Subnet"].rpartition(".")[0] + ".1")


def held_open() -> int:
    """A port on which this machine listens for a while."""
    listening = socket.create_server(("0.0.0.0", 0))
    LISTENING.append(listening)
    return int(listening.getsockname()[1])


LISTENING: list[socket.socket] = []


def listen_in_the_other_gateways(made: Federation) -> None:
    """So that a connection that fails says something of the network, not of who listens."""
    code = "import socket, time; s = socket.create_server(('0.0.0.0', 5000)); time.sleep(120)"
    for number in SITES[1:]:
        service = f"gateway-{number}"
        container = made.container(service)
        container.exec_run(["python3", "-c", code], detach=True)
        (network,) = made.attrs[service]["NetworkSettings"]["Networks"].values()
        made.addresses[service] = address = f"{network['IPAddress']}:5000"
        made.wait(lambda c=container, a=address: ask(c, REACH, a)[a], f"{service} to listen", 30)  # type: ignore[misc]


def left_by_the_study(made: Federation) -> dict[str, bytes]:
    """Files of the run, copied out of the stopped server's volume as a user would."""
    chunks, _ = made.container("server").get_archive(f"/server/runs/{STUDY['name']}")
    with tarfile.open(fileobj=io.BytesIO(b"".join(chunks))) as archive:
        return {
            Path(member.name).name: file.read()
            for member in archive.getmembers()
            if (file := archive.extractfile(member)) is not None
        }


# --- what a hospital relies on ---------------------------------------------------------------


@pytest.mark.parametrize("number", SITES)
def test_a_trainer_has_no_network_and_knows_no_names(federation: Federation, number: int) -> None:
    seen = federation.seen[f"trainer-{number}"]
    assert seen["interfaces"] == ["lo"]
    assert seen["resolves"] == []
    assert federation.attrs[f"trainer-{number}"]["HostConfig"]["NetworkMode"] == "none"


@pytest.mark.parametrize("number", SITES)
def test_a_trainer_sees_the_images_and_cannot_write_to_them(federation: Federation, number: int) -> None:
    seen = federation.seen[f"trainer-{number}"]
    assert seen["pictures"] > 100  # three sites of 60 on average, under /sites and /data
    assert seen["torch"]
    for place in ("/data", "/sites", "/end", "/"):
        assert seen["written"][place] == "EROFS"


@pytest.mark.parametrize("number", SITES)
def test_a_trainer_holds_nobodys_key_and_a_gateway_its_own_alone(federation: Federation, number: int) -> None:
    assert federation.seen[f"trainer-{number}"]["keys"] == []
    assert federation.seen[f"gateway-{number}"]["keys"] == ["/key/site.key"]
    assert federation.seen[f"gateway-{number}"]["written"]["/key"] == "EROFS"


@pytest.mark.parametrize("number", SITES)
def test_a_gateway_sees_no_image_and_has_no_torch(federation: Federation, number: int) -> None:
    seen = federation.seen[f"gateway-{number}"]
    assert seen["pictures"] == 0
    assert not {"/data", "/sites", "/images", "/state"} & set(seen["mounts"])
    assert not seen["torch"]


def test_nothing_runs_with_privileges(federation: Federation) -> None:
    for service in services():
        seen, host = federation.seen[service], federation.attrs[service]["HostConfig"]
        assert seen["uid"] == 10001, service
        assert seen["capabilities"] == 0, service
        assert seen["no_new_privileges"], service
        assert seen["written"]["/"] == "EROFS", service
        assert host["ReadonlyRootfs"], service
        assert host["CapDrop"] == ["ALL"], service
        assert not host["Privileged"], service
        assert not federation.attrs[service]["NetworkSettings"]["Ports"].get("9092/tcp"), service


def test_a_site_reaches_the_servers_port_for_sites_and_no_other(federation: Federation) -> None:
    reached = {place: is_open for place, is_open in federation.reached.items() if place != federation.bridge}
    assert reached.pop("server:9092")
    ports = {
        port: reached[f"{host}:{port}"] for host, port in (a.split(":") for a in reached) if port != "5000"
    }
    assert ports.pop("9092")
    assert len(ports) >= 2, "Flower's Control and Runtime APIs listen somewhere in the server's container"
    assert not any(ports.values())


def test_sites_neither_reach_nor_know_each_other(federation: Federation) -> None:
    assert not any(federation.reached[address] for address in federation.addresses.values())
    assert len(federation.addresses) == 2
    for number in SITES:
        assert federation.seen[f"gateway-{number}"]["resolves"] == ["server", f"gateway-{number}"]


def test_no_container_has_a_way_out(federation: Federation) -> None:
    for network in ENGINE.networks.list(filters={"label": f"com.docker.compose.project={PROJECT}"}):
        assert network.attrs["Internal"], network.name
        assert network.attrs["Options"]["com.docker.network.bridge.inhibit_ipv4"] == "true", network.name


def test_a_gateway_does_not_reach_the_machine_that_it_runs_on(federation: Federation) -> None:
    assert federation.bridge
    assert not federation.reached[federation.bridge]


# --- what an operator relies on --------------------------------------------------------------


def test_up_ends_by_itself_with_exit_code_0_and_a_report(federation: Federation) -> None:
    assert federation.exit_code == 0
    assert {"report.md", "weights.safetensors", "rounds.jsonl"} <= federation.files.keys()
    rounds = [json.loads(line)["round"] for line in federation.files["rounds.jsonl"].splitlines()]
    assert rounds == list(range(1, ROUNDS + 2))  # the last is the closing evaluation
    assert b"Synthetic images" in federation.files["report.md"]


def test_the_servers_log_names_every_site_in_every_round(federation: Federation) -> None:
    for number in range(1, ROUNDS + 1):
        for site in ("north", "south", "east"):
            assert f"round {number}  {site}: trained" in federation.server_log


def test_a_trainer_a_gateway_and_the_server_were_killed_and_came_back(federation: Federation) -> None:
    assert {name for name, times in federation.restarts.items() if times} == set(KILLED)
    assert re.search(rf"resuming after round \d of {ROUNDS}", federation.server_log)


# --- images and GPUs -------------------------------------------------------------------------


@pytest.mark.parametrize(("target", "most_mb"), [("server", 300), ("gateway", 300)])
def test_an_image_without_torch_is_small(federation: Federation, target: str, most_mb: int) -> None:
    base = ENGINE.images.get(BASE).attrs["Size"]
    image = ENGINE.images.get(f"consilium-{target}:{PROJECT}").attrs
    assert (image["Size"] - base) / 1e6 <= most_mb
    assert image["Config"]["User"] == "consilium"
    assert "FLWR_TELEMETRY_ENABLED=0" in image["Config"]["Env"]
    assert image["Config"]["Healthcheck"]["Test"]


def test_the_gpu_file_asks_for_one_device_per_trainer(federation: Federation, tmp_path: Path) -> None:
    files = ("docker-compose.yml", "docker-compose.gpu.yml")
    project = f"{PROJECT}-gpu"
    command = compose(files=files, project=project)
    env = environment(GPU_2="1")
    try:
        subprocess.run([*command, "create"], cwd=ROOT, env=env, check=True, capture_output=True, timeout=300)
        asked = [
            ENGINE.containers.get(f"{project}-trainer-{number}-1").attrs["HostConfig"]["DeviceRequests"]
            for number in SITES
        ]
    finally:
        subprocess.run([*command, "down", "--volumes"], cwd=ROOT, env=env, check=True, capture_output=True)
    assert [[request["DeviceIDs"] for request in requests] for requests in asked] == [
        [["0"]],
        [["1"]],
        [["0"]],
    ]
    assert all(requests[0]["Capabilities"] == [["gpu"]] for requests in asked)
    assert all(requests[0]["Driver"] == "nvidia" for requests in asked)
