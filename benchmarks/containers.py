"""How large the images are, how soon `docker compose up` has a round, and what each container keeps in memory.

    python -m benchmarks containers [STUDY.yaml]

Images must be built before; needs a Docker engine. `up` runs under a project of its own, and what it made is
removed. Writes a table to the terminal.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

import docker

from server.report.text import markdown_table

ROOT = Path(__file__).parent.parent
PROJECT = f"consilium-bench-{os.getpid()}"
BASE = "python:3.11-slim-bookworm"
EVENTS = {
    "the server takes sites": r"sites may connect",
    "round 1 sent": r"round 1 of \d+: ",
    "round 1 aggregated": r"round 1 of \d+ of \S+ took",
    "round 2 aggregated": r"round 2 of \d+ of \S+ took",
    "study over": r"finished after \d+ rounds; everything",
}


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks containers")
    parser.add_argument("study", type=Path, nargs="?", default=ROOT / "configs/study/demo.yaml")
    study = parser.parse_args(sys.argv[2:]).study.resolve()
    engine = docker.from_env()
    base = engine.images.get(BASE).attrs["Size"]
    sizes = {
        name: engine.images.get(f"consilium-{name}").attrs["Size"]
        for name in ("server", "gateway", "trainer")
    }
    rows = [[name, f"{size / 1e6:.0f}", f"{(size - base) / 1e6:.0f}"] for name, size in sizes.items()]
    print(markdown_table(["image", "MB", f"above {BASE}"], rows))
    command = ["docker", "compose", "--ansi", "never", "-p", PROJECT, "-f", str(ROOT / "docker-compose.yml")]
    env = os.environ | {"STUDY": str(study)}
    seconds: dict[str, float] = {}
    most: dict[str, int] = {}
    start = time.monotonic()
    up = subprocess.Popen([*command, "up"], cwd=ROOT, env=env, stdout=subprocess.DEVNULL)
    try:
        while up.poll() is None:
            look(engine, time.monotonic() - start, seconds, most)
            time.sleep(0.5)
        total = time.monotonic() - start
    finally:
        up.kill()
        up.wait()
        subprocess.run([*command, "down", "--volumes"], cwd=ROOT, env=env, check=True, capture_output=True)
    seconds[f"`up` ended, exit code {up.returncode}"] = total
    rows = [[what, f"{at:.0f}"] for what, at in seconds.items()]
    print("\n" + markdown_table(["since `up`", "seconds"], rows))
    rows = [[name, f"{used / 2**20:.0f}"] for name, used in sorted(most.items())]
    print("\n" + markdown_table(["container", "MiB at most"], rows))


def look(engine: docker.DockerClient, now: float, seconds: dict[str, float], most: dict[str, int]) -> None:
    """Note what the server said for the first time, and memory: resident pages of the container's group."""
    for container in engine.containers.list(filters={"label": f"com.docker.compose.project={PROJECT}"}):
        name = container.name.removeprefix(f"{PROJECT}-").removesuffix("-1")
        stats = container.stats(stream=False, one_shot=True).get("memory_stats", {})
        cached = stats.get("stats", {})
        used = stats.get("usage", 0) - cached.get("total_inactive_file", cached.get("inactive_file", 0))
        most[name] = max(most.get(name, 0), used)
        if name == "server":
            said = container.logs().decode(errors="replace")
            for what, pattern in EVENTS.items():
                if what not in seconds and re.search(pattern, said):
                    seconds[what] = now
