"""From a kill until the round goes on: Consilium and plain Flower 1.39, one after the other.

Both have two sites at work on loopback, TLS, site keys, and the same supervision that starts again
what died. Plain Flower's app is its own FedAvg over one array (benchmarks/plain_flower). What is
timed is the way from SIGKILL to the end of the round that it fell into.
"""

import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path

import benchmarks.plain_flower
from benchmarks.faults.studies import Seen, kill_in_round
from benchmarks.faults.world import ENV, World, soon
from common.config import StudyConfig
from server.federation import LocalFederation
from server.processes import Command, Processes, flower_command

PATIENCE_S = 90.0
NEEDLES: dict[str | None, bytes] = {
    "north-gateway": b'site="north"', "superlink": b"flower-superlink", None: b"flwr-serverapp"
}  # fmt: skip
KILLS = {"gateway (SuperNode)": "north-gateway", "SuperLink": "superlink", "ServerApp": None}


class Plain(LocalFederation):
    """Plain Flower's app on the same processes, without trainers."""

    def trainer_command(self, name: str, settings: Path, socket: Path) -> Command:  # noqa: ARG002
        idle = f"import pathlib, signal; pathlib.Path({str(socket)!r}).touch(); signal.pause()"
        return [sys.executable, "-c", idle]

    def run_study(self) -> None:
        app = self.work / "app"
        shutil.copytree(Path(benchmarks.plain_flower.__file__).parent, app, dirs_exist_ok=True)
        (app / "LICENSE").write_text("Apache-2.0\n")
        self.processes.run([flower_command("flwr"), "run", str(app), "consilium"], deadline_s=90)


def main() -> None:
    print("| killed in round 2 | Consilium: round 2 done after | plain Flower: round 2 done after |")
    print("|---|---:|---:|")
    for what, name in KILLS.items():
        print(f"| {what} | {_ours(name)} | {_plain(name)} |", flush=True)


def _ours(name: str | None) -> str:
    with tempfile.TemporaryDirectory(prefix="consilium-kill-") as scratch:
        world = World(Path(scratch))
        try:
            launch = world.launch("kills", rounds=3)
            seen: Seen = kill_in_round(launch, 2, 3, "", name)
            code = launch.end()
        finally:
            world.end()
    return f"{seen.after_s:.0f} s" if code == 0 else f"the study ended with exit code {code}"


def _plain(name: str | None) -> str:
    with tempfile.TemporaryDirectory(prefix="plain-flower-") as scratch:
        folder = Path(scratch)
        home = (folder / "flower").resolve()
        processes = Processes(folder / "logs", ENV | {"FLWR_HOME": str(home)})
        study = StudyConfig.model_validate(
            {
                "name": "plain", "classes": ["a", "b"], "sites": {"train": ["east", "north"]},
                "model": {"encoder": "test_convnext"}, "rounds": 3,
            }
        )  # fmt: skip
        sites = {site: (folder / f"{site}.yaml", folder / f"{site}.sock") for site in study.sites.all}
        federation = Plain(study, sites, folder, processes, 9392, lambda _: folder / "server.yaml")
        try:
            federation.start()
            return _killed(federation, name)
        finally:
            processes.stop()


def _killed(federation: Plain, name: str | None) -> str:
    log = federation.work / "logs" / "superlink.log"

    def said(text: str) -> bool:
        federation.look()
        return text in log.read_text(errors="replace")

    soon(lambda: said("[ROUND 2/4]"), "round 2", PATIENCE_S)
    time.sleep(2.0)  # into the sites' work
    os.kill(_process(federation, NEEDLES[name]), signal.SIGKILL)
    started = time.monotonic()
    try:
        soon(lambda: said("[ROUND 3/4]") or said("PLAIN FLOWER ENDED"), "going on", PATIENCE_S)
    except AssertionError:
        return f"never (watched for {PATIENCE_S:.0f} s): the run is lost"
    return f"{time.monotonic() - started:.0f} s"


def _process(federation: Plain, needle: bytes) -> int:
    """The first process of this federation with `needle` in its command line."""
    home = f"FLWR_HOME={federation.processes.env['FLWR_HOME']}".encode()
    for folder in sorted(Path("/proc").glob("[0-9]*"), key=lambda path: int(path.name)):
        try:
            ours = home in (folder / "environ").read_bytes().split(b"\0")
            if ours and needle in (folder / "cmdline").read_bytes():
                return int(folder.name)
        except OSError:
            continue
    raise AssertionError(f"no process {needle!r}")


if __name__ == "__main__":
    main()
