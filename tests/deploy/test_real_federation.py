"""The real thing: every process of a federation on this machine, seen from outside.

One federation serves most of these tests, for a start takes a while: it is run twice in a
row, and while the first study runs, strangers knock. Images are those of mini_skin_128 where
it lies in ../shared/data, else synthetic ones; the name of each test says which.
"""

import json
import os
import re
import signal
import subprocess
import sys
import tarfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from benchmarks.faults.held import FREE, Gate
from benchmarks.faults.launch import Plan
from benchmarks.faults.world import ENV, ROOT, START_S, soon
from common.keys import make_site_key
from common.processes.launcher import flower_command
from common.processes.ports import free_ports
from common.weights import digest, load_file

pytestmark = [pytest.mark.slow, pytest.mark.timeout(1800)]

ARCHIVE = ROOT.parent / "shared" / "data" / "mini_skin_128.tar.xz"
RUNS = 'runs "of" müller\\s #1'
"""A folder with every character that Flower's settings could take for something else."""
PROXIES = {
    "https_proxy": "http://127.0.0.1:1",
    "HTTP_PROXY": "http://127.0.0.1:1",
    "ALL_PROXY": "socks5://127.0.0.1:1",
}
"""Proxies that lead nowhere, in front of every process."""
IMAGES = "mini_skin_128" if ARCHIVE.exists() else "synthetic images"


# --- looking at a federation -----------------------------------------------------------------


def processes_of(folder: Path) -> list[str]:
    """Command lines of all processes that name `folder` in them or in their environment."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in command + environment and int(process.name) != os.getpid():
            found.append(command.replace(b"\0", b" ").decode(errors="replace"))
    return found


@dataclass(frozen=True)
class Launch:
    """`consilium-server simulate` in a process of its own."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    output: Path
    gate: Gate
    """It holds the trainer of the first site."""

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def log(self) -> str:
        path = self.run_dir / "server.log"
        return path.read_text() if path.exists() else ""

    def wait_until_held(self, number: int) -> None:
        """Return when round `number` is at the gate; fails at once if the launcher ends before."""

        def held() -> bool:
            assert self.process.poll() is None, self.said()
            return self.gate.holds(number)

        soon(held, f"round {number} at the gate")

    def sockets(self) -> Path:
        """The folder of the trainers' sockets, from the command line of one of them."""
        found: list[str] = []

        def there() -> bool:
            found[:] = re.findall(r"--socket (\S+)", " ".join(processes_of(self.run_dir)))
            assert self.process.poll() is None, self.said()
            return bool(found)

        soon(there, "a trainer")
        return Path(found[0]).parent


class Federation:
    """A folder of sites, and studies that are launched on it."""

    def __init__(self, folder: Path, env: Mapping[str, str]) -> None:
        self.folder, self.sites, self.env = folder, folder / "sites", env
        self.launches: list[Launch] = []
        data = ["--images", "20"]
        if ARCHIVE.exists():
            with tarfile.open(ARCHIVE) as archive:
                archive.extractall(folder, filter="data")
            data = ["--data", str(folder / "mini_skin_128")]
        command = [sys.executable, "-m", "client.cli", "simulate", *data, "--threads", "1"]
        subprocess.run([*command, "--out", str(self.sites)], cwd=ROOT, check=True, timeout=START_S)
        about = yaml.safe_load((self.sites / "federation.yaml").read_text())
        self.classes = about["classes"]
        self.names = sorted(about["sites"], key=about["sites"].get)[:3]  # the smallest are the quickest

    def launch(self, name: str, *options: str, held_after: int = FREE, **changes: object) -> Launch:
        """`simulate`; the trainer of the first site is held after so many rounds."""
        study = {
            "name": name,
            "classes": self.classes,
            "untrained_classes": self.classes,  # for the smallest sites lack some
            "sites": {"train": self.names[:2]},
            "model": {"encoder": "test_efficientnet", "image_size": 32},
            "rounds": 2,
            "local": {"steps": 2, "batch_size": 8, "augmentation": "none"},
            "deadlines": {"enrol_s": 200, "round_s": 600, "evaluate_s": 200},  # a round that is held lasts
        }
        study |= changes
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml.safe_dump(study))
        return self._start(
            name, held_after, "simulate", str(file), "--runs", str(self.folder / RUNS), *options
        )

    def resume(self, name: str) -> Launch:
        return self._start(name, FREE, "resume", str(self.folder / RUNS / name))

    def _start(self, name: str, held_after: int, *command: str) -> Launch:
        output = self.folder / f"{name}-{len(self.launches)}.txt"
        gate = Gate(output.with_suffix(".gate"))
        gate.folder.mkdir()
        gate.let(held_after)
        plan = output.with_suffix(".json")
        plan.write_text(Plan(gates={self.names[0]: gate.folder}).model_dump_json())
        with output.open("wb") as file:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.faults.launch", str(plan),
                    *command, "--sites", str(self.sites),
                ],
                cwd=ROOT, env={**self.env, **PROXIES}, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        launch = Launch(process, self.folder / RUNS / name, output, gate)
        self.launches.append(launch)
        return launch

    def end(self) -> None:
        for launch in self.launches:
            if launch.process.poll() is None:
                launch.process.send_signal(signal.SIGTERM)
                launch.process.wait(60)


@pytest.fixture(scope="module", params=[IMAGES])
def federation(
    request: pytest.FixtureRequest,
    tmp_path_factory: pytest.TempPathFactory,
    launchers_env: Mapping[str, str],
) -> Iterator[Federation]:
    made = Federation(tmp_path_factory.mktemp("federation"), launchers_env)
    yield made
    made.end()


# --- a study that finishes -------------------------------------------------------------------


@dataclass(frozen=True)
class Finished:
    """A study that ran to its end, and what the strangers heard who knocked meanwhile."""

    launch: Launch
    code: int
    sockets: Path
    left: list[str]
    stranger: str
    plaintext: str


def knock(launch: Launch, folder: Path, *options: str) -> subprocess.Popen[bytes]:
    """A SuperNode that nobody enrolled tries the federation's port."""
    port = re.search(r"starting the server on port (\d+)", launch.said())
    assert port is not None
    folder.mkdir()
    command = [
        str(flower_command("flower-supernode")), "--superlink", f"127.0.0.1:{port[1]}",
        "--host", "127.0.0.1", "--port", str(free_ports(1)[0]),
        "--max-retries", "1", "--max-wait-time", "10", *options,
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        return subprocess.Popen(
            command, cwd=folder, env=ENV | {"FLWR_HOME": str(folder)}, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip


@pytest.fixture(scope="module")
def finished(federation: Federation) -> Finished:
    launch = federation.launch("whole", held_after=0)
    sockets = launch.sockets()
    launch.wait_until_held(1)
    key = make_site_key(federation.folder / "stranger-key", "stranger")
    ca = str(launch.run_dir / "federation" / "keys" / "ca.pem")
    knocking = {
        "stranger": knock(
            launch, federation.folder / "stranger",
            "--root-certificates", ca, "--auth-supernode-private-key", str(key.private),
        ),
        "plaintext": knock(launch, federation.folder / "plaintext", "--insecure"),
    }  # fmt: skip
    try:
        soon(lambda: all(process.poll() is not None for process in knocking.values()), "refusing strangers")
        launch.gate.open()
        code = launch.process.wait(START_S)
    finally:
        for process in knocking.values():
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    heard = {name: (federation.folder / name / "log").read_text(errors="replace") for name in knocking}
    heard = {name: f"exit code {knocking[name].returncode}\n{text}" for name, text in heard.items()}
    return Finished(launch, code, sockets, processes_of(launch.run_dir), **heard)


def test_a_study_finishes_and_leaves_what_it_promised(federation: Federation, finished: Finished) -> None:
    assert finished.code == 0, finished.launch.said()
    run_dir = finished.launch.run_dir
    assert json.loads((run_dir / "status.json").read_text())["status"] == "finished"
    assert len((run_dir / "rounds.jsonl").read_text().splitlines()) == 3  # two rounds and the closing
    assert (run_dir / "weights.safetensors").stat().st_size > 100_000
    assert "whole" in (run_dir / "report.md").read_text()
    for name in federation.names[:2]:
        assert re.search(rf"round 2  {name}: trained 2 steps on \d+ images", finished.launch.log())
    assert "finished after 2 rounds" in finished.launch.said()


def test_no_process_and_no_socket_is_left(finished: Finished) -> None:
    assert finished.left == []
    assert not finished.sockets.exists()


def test_a_site_whose_key_is_not_enrolled_is_refused(finished: Finished) -> None:
    assert "exit code 0" not in finished.stranger
    assert "Failed to activate SuperNode" in finished.stranger
    assert "SuperNode ID" not in finished.stranger
    assert finished.code == 0


def test_a_site_that_does_not_encrypt_is_refused(finished: Finished) -> None:
    assert "exit code 0" not in finished.plaintext
    assert "Failed to initialize the connection" in finished.plaintext
    assert "SuperNode ID" not in finished.plaintext
    assert finished.code == 0


# --- studies that do not finish --------------------------------------------------------------


def test_ctrl_c_in_mid_study_ends_everything_and_the_former_run_was_set_aside(
    federation: Federation, finished: Finished
) -> None:
    launch = federation.launch("whole", held_after=0)
    sockets = launch.sockets()
    launch.wait_until_held(1)
    launch.process.send_signal(signal.SIGINT)
    assert launch.process.wait(60) == 130, launch.said()
    assert processes_of(launch.run_dir) == []
    assert not sockets.exists()
    assert "stopped; every process that was started has ended" in launch.said()
    aside = launch.run_dir.with_name("whole.1")
    assert json.loads((aside / "status.json").read_text())["status"] == "finished"
    assert (aside / "weights.safetensors").exists()
    assert not (launch.run_dir / "weights.safetensors").exists()


def test_a_site_that_never_connects_is_named_after_the_stated_time_and_the_code_is_1(
    federation: Federation,
) -> None:
    third = federation.names[2]
    launch = federation.launch(
        "lacking", "--leave-out", third,
        sites={"train": federation.names}, deadlines={"enrol_s": 30},
    )  # fmt: skip
    assert launch.process.wait(START_S) == 1, launch.said()
    expected = f"{third} did not connect within 30 s; 2 of 3 training sites are there, 3 are required"
    assert expected in launch.said()
    status = json.loads((launch.run_dir / "status.json").read_text())
    assert status["status"] == "failed"
    assert expected in status["reason"]
    assert processes_of(launch.run_dir) == []


def test_a_launcher_killed_by_force_leaves_no_process_and_its_study_resumes_to_the_same_weights(
    federation: Federation, finished: Finished
) -> None:
    """The killed study is the finished one under another name, which no seed depends on."""
    launch = federation.launch("killed", held_after=1)
    sockets = launch.sockets()
    launch.wait_until_held(2)
    launch.process.kill()
    launch.process.wait()
    soon(lambda: processes_of(launch.run_dir) == [], "the end of all processes", 60)
    soon(lambda: not sockets.exists(), "removing the sockets", 60)
    assert not (launch.run_dir / "weights.safetensors").exists()

    resumed = federation.resume("killed")
    assert resumed.process.wait(START_S) == 0, resumed.said()
    assert "resuming after round 1 of 2" in resumed.said()
    assert len((launch.run_dir / "rounds.jsonl").read_text().splitlines()) == 3
    uninterrupted = next(launch.run_dir.parent.glob("whole*/weights.safetensors"))
    weights = [load_file(path)[0] for path in (launch.run_dir / "weights.safetensors", uninterrupted)]
    assert digest(weights[0]) == digest(weights[1])
