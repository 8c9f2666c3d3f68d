"""The faults of benchmarks/faults, whose rows are in docs/results/faults.md, each held to what is expected.

They are spread over several test files, because a file is what a test process takes at a time.
"""

from benchmarks.faults.studies import Seen


def assert_as_expected(rows: list[Seen]) -> None:
    strange = [row for row in rows if not row.as_expected]
    assert rows
    assert not strange, "\n".join(f"{row.fault}: {row.said!r}, {row.ended}" for row in strange)
