"""Peak memory of the server's aggregation by number of sites, with a model of 100 MB.

Each row is a process of its own that takes in updates one after the other, as the rounds do, and
is asked at its end how much memory it ever had. The mean folds them into a running sum; the
median, which has to see them side by side, is the comparison.
"""

import resource
import subprocess
import sys
import time

import numpy as np

from common.config import Aggregation, Mean, Median
from server.aggregation.tally import AdmittedUpdate, build_tally
from server.report.text import markdown_table

NUM_TENSORS, TENSOR = 25, 10**6  # float32: 100 MB
SITES = (2, 4, 8, 16)
RULES: dict[str, Aggregation] = {"mean": Mean(), "median": Median()}


def main() -> None:
    rows: list[list[str]] = []
    for num_sites in SITES:
        cells = []
        for rule in RULES:
            code = f"from benchmarks.aggregation_memory import measure; measure({rule!r}, {num_sites})"
            done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
            cells.append(done.stdout.strip())
        print(num_sites, *cells, sep="  ", flush=True)
        rows.append([str(num_sites), *cells])
    print(markdown_table(["sites", *(f"{rule}: MiB, seconds" for rule in RULES)], rows))


def measure(rule: str, num_sites: int) -> None:
    """Print the peak of this process and the seconds that the rule itself took."""
    rng = np.random.default_rng(0)
    tally, seconds = build_tally(RULES[rule], side_by_side=False), 0.0
    for number in range(num_sites):
        delta = {f"w{n}": rng.normal(size=TENSOR).astype(np.float32) for n in range(NUM_TENSORS)}
        update = AdmittedUpdate(f"site{number:02}", 1000 + number, delta)
        started = time.monotonic()
        tally.add(update)
        seconds += time.monotonic() - started
        del delta, update
    started = time.monotonic()
    tally.result()
    seconds += time.monotonic() - started
    print(f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:,.0f}, {seconds:.1f}")


if __name__ == "__main__":
    main()
