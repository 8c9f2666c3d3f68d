"""Runs a gateway whose clock is wrong.

    python -m benchmarks.faults.bad_clock SECONDS gateway DIR

A gateway signs every request with the time of day; only that clock is moved, so timers run on.
"""

import datetime as datetimes
import runpy
import sys
import time


def main() -> None:
    ahead_s = float(sys.argv.pop(1))
    true_time, true_datetime = time.time, datetimes.datetime

    class Wrong(true_datetime):
        @classmethod
        def now(cls, tz: datetimes.tzinfo | None = None) -> "Wrong":
            moved = true_datetime.now(tz) + datetimes.timedelta(seconds=ahead_s)
            return cls.fromisoformat(moved.isoformat())

    time.time = lambda: true_time() + ahead_s
    datetimes.datetime = Wrong  # type: ignore[misc]
    runpy.run_module("client.cli", run_name="__main__")


if __name__ == "__main__":
    main()
