"""Stock Flower: a SuperLink, a SuperNode for each site, its FedAvg. No TLS and no keys, which would cost it time."""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from common.processes.ports import accepts_connections, free_ports

_APP = Path(__file__).with_name("flower_app")
_START_S, _LIMIT_S, _POLL_S = 120.0, 1500.0, 0.2


def run(folder: Path, num_sites: int, rounds: int) -> None:
    """Run `rounds` rounds; the environment names shapes and times. Raises SystemExit if they did not end."""
    control, fleet, *own = free_ports(2 + num_sites)
    home = folder / "flower"
    home.mkdir(parents=True)
    (home / "config.toml").write_text(
        f'[superlink]\ndefault = "rounds"\n\n[superlink.rounds]\naddress = "127.0.0.1:{control}"\ninsecure = true\n'
    )
    bin_dir, env = Path(sys.executable).parent, os.environ | {"FLWR_HOME": str(home)}
    env["PATH"] = f"{bin_dir}{os.pathsep}{env['PATH']}"  # Flower starts its other commands by name
    started: list[subprocess.Popen[bytes]] = []

    def start(name: str, command: list[str]) -> None:
        with (folder / f"{name}.log").open("wb") as log:
            started.append(
                subprocess.Popen(
                    [str(bin_dir / command[0]), *command[1:]],
                    env=env | {"ROUNDS_SITE": name}, stdout=log, stderr=log, stdin=subprocess.DEVNULL,
                )
            )  # fmt: skip

    try:
        start(
            "superlink",
            ["flower-superlink", "--insecure", "--disable-runtime-dependency-installation", "--host", "127.0.0.1",
             "--port", str(control), "--fleet-api-address", f"127.0.0.1:{fleet}"],
        )  # fmt: skip
        _wait(lambda: accepts_connections(control) and accepts_connections(fleet), _START_S)
        for number, port in enumerate(own):
            start(
                f"site{number}",
                ["flower-supernode", "--insecure", "--superlink", f"127.0.0.1:{fleet}", "--host", "127.0.0.1",
                 "--port", str(port)],
            )  # fmt: skip
        start("run", ["flwr", "run", str(_APP), "rounds", "--stream"])
        times = Path(os.environ["ROUNDS_TIMES"])
        _wait(lambda: times.exists() and len(times.read_text().splitlines()) > rounds, _LIMIT_S)
    finally:
        for process in reversed(started):
            process.terminate()
        for process in started:
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _wait(ready: Callable[[], bool], within_s: float) -> None:
    until = time.monotonic() + within_s
    while not ready():
        if time.monotonic() > until:
            raise SystemExit(f"not ready within {within_s:.0f} s")
        time.sleep(_POLL_S)


if __name__ == "__main__":
    run(Path(sys.argv[1]), int(os.environ["ROUNDS_SITES"]), int(os.environ["ROUNDS_NUMBER"]))
