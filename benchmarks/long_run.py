"""Five hundred rounds of a tiny model: does anything grow, slow down or pile up?

Memory and open files of every process, seconds a round, zombies among the run's processes and the size of the run's
folder at round 50 and at round 500, in the real federation on loopback. Writes docs/results/long-run.md.
"""

import contextlib
import os
import statistics
import tempfile
import time
from pathlib import Path

from benchmarks._page import RESULTS, write_page
from benchmarks.faults.world import World
from common.processes import watchdog
from server.storage.history import read_rounds

PAGE = RESULTS / "long-run.md"
EARLY, LATE = 50, 500


def main() -> None:
    with tempfile.TemporaryDirectory(prefix="consilium-long-") as scratch:
        world = World(Path(scratch))
        try:
            started = time.monotonic()
            launch = world.launch("long", rounds=LATE, local={"steps": 1, "batch_size": 8})
            seen = {}
            for number in (EARLY, LATE):
                launch.wait_for(rf"round {number} of {LATE} of long took", within_s=7200)
                seen[number] = _processes(launch.run_dir), _sizes(launch.run_dir), os.getloadavg()[0]
            code = launch.end()
            seconds = [record.seconds for record in read_rounds(launch.run_dir)]
        finally:
            world.end()
    early, late = seen[EARLY], seen[LATE]
    rows = [f"| | round {EARLY} | round {LATE} |", "|---|---:|---:|"]
    for name in sorted(early[0] | late[0]):
        one, other = early[0].get(name, (0, 0, 0)), late[0].get(name, (0, 0, 0))
        rows.append(f"| {name}: MiB of memory | {one[0]:,.0f} | {other[0]:,.0f} |")
        rows.append(f"| {name}: open files | {one[1]} | {other[1]} |")
    zombies = [sum(found[2] for found in processes.values()) for processes in (early[0], late[0])]
    rows.append(f"| zombies | {zombies[0]} | {zombies[1]} |")
    before, after = seconds[EARLY - 20 : EARLY + 20], seconds[LATE - 40 : LATE]
    rows.append(
        f"| seconds a round, median of 40 | {statistics.median(before):.2f} | {statistics.median(after):.2f} |"
    )
    for name in late[1]:
        rows.append(f"| {name}: MiB on disk | {early[1].get(name, 0):.2f} | {late[1][name]:.2f} |")
    rows.append(f"| load | {early[2]:.1f} | {late[2]:.1f} |")
    print("\n".join(rows))
    about = (
        f"exit code {code} after {(time.monotonic() - started) / 60:.0f} minutes. Seed 0, {os.cpu_count()} CPUs. "
        "Memory is resident memory of a process and its children, load the runnable processes of the machine, mean of "
        "the last minute."
    )
    write_page(PAGE, "Five hundred rounds of a tiny model", rows, "python -m benchmarks long_run", about)


def _processes(run_dir: Path) -> dict[str, tuple[float, int, int]]:
    """MiB, open files and zombies of the run's processes, by the name under which they were started.

    A zombie has no environment any more: it counts for its parent.
    """
    home = f"FLWR_HOME={(run_dir / 'federation' / 'flower').resolve()}".encode()
    owners: dict[str, str] = {}
    zombies_of: list[str] = []
    found: dict[str, tuple[float, int, int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # ended meanwhile, or another user's
            state, parent = (folder / "stat").read_text().rpartition(")")[2].split()[:2]
            if state == "Z":
                zombies_of.append(parent)
                continue
            environment = (folder / "environ").read_bytes().split(b"\0")
            owner = [entry for entry in environment if entry.startswith(f"{watchdog.OWNER}=".encode())]
            if home not in environment or not owner:
                continue
            name = owner[0].decode(errors="replace").rpartition("/")[2]
            mib = int((folder / "statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20
            files = len(list((folder / "fd").iterdir()))
            before = found.get(name, (0.0, 0, 0))
            owners[folder.name] = name
            found[name] = before[0] + mib, before[1] + files, before[2]
    for parent in zombies_of:
        if parent in owners:
            mib, files, zombies = found[owners[parent]]
            found[owners[parent]] = mib, files, zombies + 1
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
