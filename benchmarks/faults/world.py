"""Federations of real processes, started, watched and hurt from outside."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.faults.held import Gate
from benchmarks.faults.launch import Plan
from common.formats import yaml_text
from common.processes import watchdog
from common.weights import digest, load_file

ROOT = Path(__file__).parents[2]
START_S = 600.0
"""For anything to happen, on a machine that does other things, too; a healthy one needs a tenth."""

ENV = os.environ | {
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": str(ROOT),
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]),
}


def soon(what: Callable[[], Any], name: str, within_s: float = START_S) -> float:
    """Return when `what()`; the seconds it took."""
    started = time.monotonic()
    while not what():
        assert time.monotonic() - started < within_s, f"{name} did not happen within {within_s:.0f} s"
        time.sleep(0.05)
    return time.monotonic() - started


@dataclass
class Launch:
    """A launcher in a process of its own, and what it says."""

    process: subprocess.Popen[bytes]
    run_dir: Path
    output: Path
    since: int = 0
    """Where in the server's log this launch begins: a resumed study goes on writing it."""

    def said(self) -> str:
        return self.output.read_text(errors="replace")

    def log(self) -> str:
        path = self.run_dir / "server.log"
        return path.read_text()[self.since :] if path.exists() else ""

    def wait_for(self, pattern: str, within_s: float = START_S) -> str:
        """The first line that the launcher or its server says with `pattern` in it."""
        found: list[str] = []

        def there() -> bool:
            ended = self.process.poll() is not None
            found.extend(line for line in self.said().splitlines() if re.search(pattern, line))
            assert found or not ended, f"ended before it said {pattern!r}:\n{self.said()}"
            return bool(found)

        soon(there, f"a line with {pattern!r}", within_s)
        return found[0]

    def wait_until_held(self, gate: Gate, number: int) -> None:
        """Return when the trainer behind `gate` has the plan of round `number` in hand."""

        def held() -> bool:
            assert self.process.poll() is None, f"ended before round {number} was held:\n{self.said()}"
            return gate.holds(number)

        soon(held, f"round {number} at the gate")

    def end(self, within_s: float = START_S) -> int:
        """The exit code, once there is one."""
        return self.process.wait(within_s)

    def processes(self, name: str) -> list[int]:
        """Processes that were started under `name`, such as `north-trainer`, with their children, the oldest first.

        Not by their numbers: those begin again at 1 after the highest, so a child may have a lower one.
        """
        home = f"FLWR_HOME={(self.run_dir / 'federation' / 'flower').resolve()}".encode()
        found = []
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                environment = (folder / "environ").read_bytes().split(b"\0")
            except OSError:
                continue
            owners = [e for e in environment if e.startswith(f"{watchdog.OWNER}=".encode())]
            if home in environment and owners and re.search(rf"/{name}$", owners[0].decode()):
                found.append((_started(folder), int(folder.name)))
        return [number for _, number in sorted(found)]

    def server(self) -> int:
        """The process of the ServerApp."""
        return int(json.loads((self.run_dir / "status.json").read_text())["pid"])

    def kill(self, *processes: int) -> None:
        for process in processes:
            os.kill(process, signal.SIGKILL)

    def weights(self) -> str:
        return digest(load_file(self.run_dir / "weights.safetensors")[0])

    def status(self) -> str:
        return str(json.loads((self.run_dir / "status.json").read_text())["status"])


def _started(process: Path) -> int:
    """When a process of /proc began, in ticks since the machine did (proc(5), field 22); 0 if it has ended."""
    try:
        # The name, in parentheses, may hold blanks.
        return int((process / "stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return 0


@dataclass
class World:
    """A folder of sites with synthetic images, and studies that are launched on it."""

    folder: Path
    env: Mapping[str, str] = field(default_factory=lambda: ENV)
    """Environment of the launchers."""
    launches: list[Launch] = field(default_factory=list)
    _calm: dict[str, str] = field(default_factory=dict)
    """Digest by what the study changes."""

    def __post_init__(self) -> None:
        self.sites = self.folder / "sites"
        command = [sys.executable, "-m", "client.cli", "simulate", "--images", "40", "--threads", "1"]
        subprocess.run(
            [*command, "--out", str(self.sites)], cwd=ROOT, env=ENV, check=True, timeout=START_S,
            capture_output=True,
        )  # fmt: skip
        about = yaml_text.load((self.sites / "federation.yaml").read_text())
        self.classes: list[str] = about["classes"]
        self.names = sorted(about["sites"])  # east, north, south

    def add_site(self, name: str, like: str, **changes: object) -> None:
        """Another site, with the images of one that is there."""
        settings = yaml_text.load((self.sites / f"{like}.yaml").read_text())
        settings |= {"name": name, "state_dir": f"state/{name}"} | changes
        (self.sites / f"{name}.yaml").write_text(yaml_text.dump(settings))
        about = yaml_text.load((self.sites / "federation.yaml").read_text())
        about["sites"][name] = about["sites"][like]
        (self.sites / "federation.yaml").write_text(yaml_text.dump(about))

    def launch(
        self,
        name: str,
        plan: Plan | None = None,
        *,
        runs: Path | None = None,
        engine: str = "processes",
        **changes: object,
    ) -> Launch:
        """`simulate` on a study of tiny steps, with what `changes` replaces in it."""
        study = {
            "name": name,
            "classes": self.classes,
            "sites": {"train": ["east", "north"]},
            "model": {"encoder": "test_efficientnet", "image_size": 32},
            "rounds": 3,
            "local": {"steps": 2, "batch_size": 8, "augmentation": "none"},
            "deadlines": {"enrol_s": 200, "round_s": 200, "evaluate_s": 200, "repeat_after_s": 1},
        } | changes
        file = self.folder / f"{name}.yaml"
        file.write_text(yaml_text.dump(study))
        runs = runs or self.folder / "runs"
        return self._start(name, runs, ["simulate", str(file), "--runs", str(runs), "--engine", engine], plan)

    def gate(self, name: str, rounds: int) -> Gate:
        """A gate that lets a trainer work on so many rounds, and then holds it."""
        made = Gate(self.folder / "gates" / name)
        made.folder.mkdir(parents=True)
        made.let(rounds)
        return made

    def calm_weights(self, rounds: int, **changes: object) -> str:
        """Digest of the weights of a study that nothing happens to, in one process: the same under every name."""
        key = json.dumps({"rounds": rounds} | changes, sort_keys=True)
        if key not in self._calm:
            calm = self.launch(f"calm-{len(self._calm)}", engine="inline", rounds=rounds, **changes)
            assert calm.end() == 0, calm.said()
            self._calm[key] = calm.weights()
        return self._calm[key]

    def resume(self, launch: Launch) -> Launch:
        """`resume` on the run of a launch that broke off."""
        return self._start(launch.run_dir.name, launch.run_dir.parent, ["resume", str(launch.run_dir)], None)

    def script(self, name: str, rounds: Mapping[int, str]) -> str:
        """A file for a bad trainer."""
        path = self.folder / f"{name}.json"
        path.write_text(json.dumps(dict(rounds)))
        return str(path)

    def end(self) -> None:
        for launch in self.launches:
            if launch.process.poll() is None:
                launch.process.send_signal(signal.SIGTERM)
                launch.process.wait(60)

    def _start(self, name: str, runs: Path, command: list[str], plan: Plan | None) -> Launch:
        number = len(self.launches)
        plan_file = self.folder / f"plan-{number}.json"
        plan_file.write_text((plan or Plan()).model_dump_json())
        log = runs / name / "server.log"
        since = log.stat().st_size if command[0] == "resume" and log.exists() else 0
        output = self.folder / f"{name}-{number}.txt"
        with output.open("wb") as file:
            process = subprocess.Popen(
                [
                    sys.executable, "-m", "benchmarks.faults.launch", str(plan_file),
                    *command, "--sites", str(self.sites),
                ],
                cwd=ROOT, env=self.env, stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            )  # fmt: skip
        launch = Launch(process, runs / name, output, since)
        self.launches.append(launch)
        return launch
