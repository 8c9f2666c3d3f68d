"""Runs every fault and writes docs/results/faults.md."""

import datetime
import platform
import re
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.faults import studies
from benchmarks.faults.studies import Seen
from benchmarks.faults.world import ROOT, World

PAGE = ROOT / "docs" / "results" / "faults.md"

HEAD = """# Faults, tried on real processes

Real processes on one machine: a SuperLink with TLS and site keys, gateways, trainers behind Unix sockets, synthetic
images, a tiny model (except for the slow line). The script that made the fault also writes its row. The log lines are
the server's or the launcher's own. "After" counts seconds from the fault, or from sending the plan, to that line or,
for what was killed or cut, to the end of the round that it fell into. The line of a site is a relay in user space on
loopback that holds bytes back; packets are not lost one by one.

| fault | what was done | server's log line | after | the study | lost |
|---|---|---|---:|---|---|
"""


def main() -> None:
    wanted = [study for study in studies.ALL if not sys.argv[2:] or study.__name__ in sys.argv[2:]]
    started, rows = time.monotonic(), list[Seen]()
    with tempfile.TemporaryDirectory(prefix="consilium-faults-") as scratch:
        world = World(Path(scratch))
        try:
            for study in wanted:
                seen = study(world)
                print("\n".join(map(_row, seen)), flush=True)
                rows += seen
        finally:
            world.end()
    if not sys.argv[2:]:
        PAGE.write_text(HEAD + "\n".join(map(_row, rows)) + _foot(time.monotonic() - started))
    if strange := [row.fault for row in rows if not row.as_expected]:
        sys.exit(f"not as expected: {', '.join(strange)}")


def _row(row: Seen) -> str:
    said = re.sub(r"/\S*/consilium-faults-\w+/", "", row.said).replace("|", "\\|")
    after = "" if row.after_s is None else f"{row.after_s:.1f} s"
    strange = "" if row.as_expected else " **(not as expected)**"
    return f"| {row.fault}{strange} | {row.done} | {said} | {after} | {row.ended} | {row.lost} |"


def _foot(seconds: float) -> str:
    return f"""

Command: `python -m benchmarks faults`, {seconds / 60:.0f} minutes. Seed 0. Machine: {platform.machine()}, 2 cores,
no GPU, Python {platform.python_version()}. Date: {datetime.datetime.now(datetime.UTC):%Y-%m-%d}.
"""
