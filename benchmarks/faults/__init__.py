"""Everything that was ever done to a federation of real processes, and what came of it.

`python -m benchmarks faults` runs all of it and writes docs/results/faults.md; tests/deploy runs
the same and holds each line to what is expected. Nothing of this is part of the product: the bad
trainer, the bad link and the bad clock live here.
"""


def main() -> None:
    """Run all of it, or the studies that are named after `faults`."""
    from benchmarks.faults.page import main as run  # what a bad trainer imports must not import this

    run()
