"""Two hundred rounds of a tiny model: does anything grow, slow down or pile up?

Memory of every process, seconds a round, zombies and the size of the run's folder at round 20 and
at round 200, in the real federation on loopback.
"""

import statistics
import tempfile
import time
from pathlib import Path

from benchmarks.faults.world import World
from server.deployment import overview
from server.storage.history import read_rounds

EARLY, LATE = 20, 200


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="consilium-long-") as scratch:
        world = World(Path(scratch))
        try:
            started = time.monotonic()
            launch = world.launch("long", rounds=LATE, local={"steps": 1, "batch_size": 8})
            seen = {}
            for number in (EARLY, LATE):
                launch.wait_for(rf"round {number} of {LATE} of long took", within_s=7200)
                seen[number] = (
                    overview.read_run(launch.run_dir).memory_mib,
                    _zombies(),
                    _sizes(launch.run_dir),
                )
            code = launch.end()
            seconds = [record.seconds for record in read_rounds(launch.run_dir)]
        finally:
            world.end()
    print(f"exit code {code} after {(time.monotonic() - started) / 60:.0f} minutes\n")
    print(f"| | round {EARLY} | round {LATE} |")
    print("|---|---:|---:|")
    early, late = seen[EARLY], seen[LATE]
    for name in sorted(early[0] | late[0]):
        print(f"| {name}, MiB of memory | {early[0].get(name, 0):,.0f} | {late[0].get(name, 0):,.0f} |")
    before, after = seconds[EARLY - 10 : EARLY + 10], seconds[LATE - 20 : LATE]
    print(
        f"| seconds a round, median of 20 | {statistics.median(before):.2f} | {statistics.median(after):.2f} |"
    )
    print(f"| zombies | {early[1]} | {late[1]} |")
    for name in late[2]:
        print(f"| {name}, MiB on disk | {early[2].get(name, 0):.2f} | {late[2][name]:.2f} |")


def _zombies() -> int:
    found = 0
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            found += stat.read_text().rpartition(")")[2].split()[0] == "Z"
        except OSError:
            continue
    return found


def _sizes(run_dir: Path) -> dict[str, float]:
    """MiB by part of the run's folder."""
    parts: dict[str, float] = {}
    for path in run_dir.rglob("*"):
        if path.is_file():
            inside = path.relative_to(run_dir).parts
            name = "/".join(inside[:2]) if inside[0] == "federation" else inside[0]
            parts[name] = parts.get(name, 0.0) + path.stat().st_size / 2**20
    return dict(sorted(parts.items()))


if __name__ == "__main__":
    main()
