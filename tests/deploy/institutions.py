"""Institutions with networks of their own: a server and sites in network namespaces, joined by veth pairs.

The server has one address, 10.77.0.1, and a cable to each site's network, 10.77.N.0/24. A site sends
everything to the server's end of its cable; the server forwards nothing. Trainers have no network at all.
"""

import os
import shutil
import signal
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.faults.held import Gate
from benchmarks.faults.world import ENV, ROOT, START_S, soon

SERVER, PORT = "10.77.0.1", 9092
SERVER_COMMAND = [sys.executable, "-m", "server.cli"]
SITE_COMMAND = [sys.executable, "-m", "client.cli"]


def why_not() -> str | None:
    """Why this machine can have no such networks; None if it can."""
    if os.geteuid() != 0 or shutil.which("ip") is None or shutil.which("unshare") is None:
        return "needs root, iproute2's ip and util-linux's unshare, which CI has"
    name = f"consilium-{os.getpid()}-try"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True)
    subprocess.run(["ip", "netns", "del", name], capture_output=True)
    return None if made.returncode == 0 else "needs the right to make network namespaces, which CI has"


@dataclass
class Process:
    """A process in somebody's network, and what it says."""

    process: subprocess.Popen[bytes]
    output: Path

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def end(self, number: int = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            self.process.send_signal(number)
        return self.process.wait(60)


@dataclass
class Institutions:
    """A server's folder, an unpacked kit per site, and their networks."""

    folder: Path
    sites: tuple[str, ...] = ("north", "south", "third")
    processes: dict[str, Process] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.server, self._prefix = self.folder / "server", f"c{os.getpid()}"
        self.gates = {site: Gate(self.folder / "gates" / site) for site in self.sites}
        for gate in self.gates.values():
            gate.folder.mkdir(parents=True)
        self._run("ip", "netns", "add", self.network("server"))
        self._in("server", "ip", "addr", "add", f"{SERVER}/32", "dev", "lo")
        self._in("server", "ip", "link", "set", "lo", "up")
        self._in("server", "sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_forward")  # a server is no router
        for number, site in enumerate(self.sites, start=1):
            self._connect(site, number)

    def network(self, who: str) -> str:
        return f"{self._prefix}-{who}"

    def address(self, site: str) -> str:
        return f"10.77.{self.sites.index(site) + 1}.2"

    def kit(self, site: str) -> Path:
        return self.folder / f"consilium-{site}"

    def _connect(self, site: str, number: int) -> None:
        """A cable between the server and one site."""
        here, there = f"{self._prefix}s{number}", f"{self._prefix}h{number}"
        self._run("ip", "netns", "add", self.network(site))
        self._run("ip", "link", "add", here, "type", "veth", "peer", "name", there)
        for who, cable, host in (("server", here, 1), (site, there, 2)):
            self._run("ip", "link", "set", cable, "netns", self.network(who))
            self._in(who, "ip", "addr", "add", f"10.77.{number}.{host}/24", "dev", cable)
            self._in(who, "ip", "link", "set", cable, "up")
            self._in(who, "ip", "link", "set", "lo", "up")
        self._in(site, "ip", "route", "add", "default", "via", f"10.77.{number}.1")

    # --- what people type ----------------------------------------------------------------

    def operator(self, *command: str, code: int = 0) -> str:
        """Run `consilium-server`, beside the server but in no network."""
        done = subprocess.run(
            [*SERVER_COMMAND, *command], cwd=ROOT, env=ENV, capture_output=True, text=True, timeout=START_S
        )
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def provision(self) -> None:
        about = {
            "name": "two-institutions",
            "synthetic": True,
            "server": {"hosts": [SERVER], "port": PORT},
            "sites": {site: {"institution": f"Hospital {site}"} for site in self.sites},
        }
        (self.folder / "federation.yaml").write_text(yaml.safe_dump(about))
        self.operator("provision", str(self.folder / "federation.yaml"), "--out", str(self.server))
        for site in self.sites:
            with zipfile.ZipFile(self.server / "kits" / f"{site}.zip") as archive:
                archive.extractall(self.folder)

    def make_keys(self) -> None:
        for site in self.sites:
            self.site("key", str(self.kit(site)))

    def site(self, *command: str, network: str | None = None, code: int = 0) -> str:
        """Run `consilium-site`."""
        where = [] if network is None else ["ip", "netns", "exec", self.network(network)]
        done = subprocess.run(
            [*where, *SITE_COMMAND, *command], cwd=ROOT, env=ENV, capture_output=True, text=True,
            timeout=START_S,
        )  # fmt: skip
        assert done.returncode == code, done.stdout + done.stderr
        return done.stdout + done.stderr

    def start(self, name: str, network: str | None, *command: str | Path) -> Process:
        """Start something in a network; None: in none at all."""
        where = ["unshare", "--net"] if network is None else ["ip", "netns", "exec", self.network(network)]
        output = self.folder / f"{name}.txt"
        with output.open("ab") as file:
            process = subprocess.Popen(
                [*where, *map(str, command)], cwd=ROOT, env=ENV, stdin=subprocess.DEVNULL, stdout=file,
                stderr=subprocess.STDOUT,
            )  # fmt: skip
        self.processes[name] = Process(process, output)
        return self.processes[name]

    def up(self) -> Process:
        return self.start("up", "server", *SERVER_COMMAND, "up", self.server)

    def start_site(self, site: str) -> None:
        """Start trainer and gateway; the trainer's gate is open."""
        kit = self.kit(site)
        held = [sys.executable, "-m", "benchmarks.faults.held", self.gates[site].folder]
        self.start(f"{site}-trainer", None, *held, "trainer", kit / "site.yaml")
        self.start(f"{site}-gateway", site, *SITE_COMMAND, "gateway", kit)

    def log(self) -> str:
        path = self.server / "logs" / "up.log"
        return path.read_text() if path.exists() else ""

    def wait_for_log(self, text: str) -> None:
        def there() -> bool:
            assert self.processes["up"].process.poll() is None, self.processes["up"].said()
            return text in self.log()

        soon(there, f"the line {text!r}")

    def listening(self, who: str) -> set[int]:
        """Ports of this network on which somebody outside of its machine could be answered."""
        found = set()
        for table in ("tcp", "tcp6"):
            for line in self._in(who, "cat", f"/proc/net/{table}").splitlines()[1:]:
                address, state = line.split()[1], line.split()[3]
                host, port = address.split(":")
                loopback = host in ("0100007F", "0" * 24 + "01000000")
                if state == "0A" and not loopback:
                    found.add(int(port, 16))
        return found

    def reaches(self, who: str, address: str, port: int) -> bool:
        """True if somebody in this network gets a TCP connection to that address."""
        code = f"import socket; socket.create_connection(({address!r}, {port}), 3)"
        command = ["ip", "netns", "exec", self.network(who), sys.executable, "-ISc", code]
        return subprocess.run(command, capture_output=True, timeout=60).returncode == 0

    def end(self) -> None:
        for process in reversed(list(self.processes.values())):
            process.end()
        for who in ("server", *self.sites):
            subprocess.run(["ip", "netns", "del", self.network(who)], capture_output=True)

    def _in(self, who: str, *command: str) -> str:
        return self._run("ip", "netns", "exec", self.network(who), *command)

    def _run(self, *command: str) -> str:
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=60).stdout


def set_images(kit: Path, like: Path) -> None:
    """What a data manager edits: where the images are, and here also that no person has to say yes."""
    simulated, settings = yaml.safe_load(like.read_text()), yaml.safe_load((kit / "site.yaml").read_text())
    data = simulated["data"]
    for name in ("labels", "images", "root"):
        if name in data:
            data[name] = str((like.parent / data[name]).resolve())
    settings |= {"data": data, "policy": {}, "threads": 1, "device": "cpu"}
    (kit / "site.yaml").write_text(yaml.safe_dump(settings))


def study(folder: Path, name: str, classes: Sequence[str], **changes: object) -> Path:
    """A study of tiny steps."""
    settings = {
        "name": name,
        "classes": list(classes),
        "sites": {"train": ["north", "south"]},
        "model": {"encoder": "test_efficientnet", "image_size": 32},
        "rounds": 2,
        "local": {"steps": 2, "batch_size": 8, "augmentation": "none"},
        "deadlines": {"enrol_s": 200, "round_s": 200, "evaluate_s": 200, "repeat_after_s": 1},
    } | changes
    file = folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(settings))
    return file
