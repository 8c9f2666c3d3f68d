import json
import os
import signal
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.privacy import ledger
from client.privacy.accountant import Charge
from client.privacy.budget import require_newest
from common.errors import PolicyRefusal, StorageError

NOON = datetime(2026, 1, 1, 12, tzinfo=UTC)


def charge(state_dir: Path, what: str = "round 1", steps: int = 3) -> tuple[int, str]:
    return ledger.append(state_dir, NOON, "skin", "f" * 64, what, Charge(1.5, 0.2, steps))


def test_charges_are_read_as_they_were_written(tmp_path: Path) -> None:
    assert ledger.read(tmp_path) == ledger.Ledger()
    charge(tmp_path / "state", "counts", 1)
    number, line_hash = charge(tmp_path / "state")
    found = ledger.read(tmp_path / "state")
    assert number == 2
    assert [entry.what for entry in found.entries] == ["counts", "round 1"]
    assert found.charges() == [Charge(1.5, 0.2, 1), Charge(1.5, 0.2, 3)]
    assert found.charges("another study") == []
    assert found.has(2, line_hash)
    assert not found.has(1, line_hash)
    assert (tmp_path / "state" / ledger.FILE).stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("edit", ["steps", "removed", "swapped", "number"])
def test_an_edited_ledger_is_refused_with_what_to_do(tmp_path: Path, edit: str) -> None:
    for steps in (1, 2, 3):
        charge(tmp_path, steps=steps)
    path = tmp_path / ledger.FILE
    lines = path.read_bytes().splitlines(keepends=True)
    match edit:
        case "steps":
            lines[1] = lines[1].replace(b'"steps":2', b'"steps":1')
        case "removed":
            del lines[1]
        case "swapped":
            lines[1], lines[2] = lines[2], lines[1]
        case "number":
            fields = json.loads(lines[2])
            lines[2] = lines[2].replace(b'"number":3', b'"number":4')
            assert fields["number"] == 3
    path.write_bytes(b"".join(lines))
    with pytest.raises(StorageError, match="Put its newest copy back"):
        ledger.read(tmp_path)
    with pytest.raises(StorageError):
        charge(tmp_path)


def test_a_torn_line_is_recorded_and_what_was_charged_before_stays(tmp_path: Path) -> None:
    charge(tmp_path, steps=1)
    path = tmp_path / ledger.FILE
    first = path.read_bytes()
    charge(tmp_path, steps=7)
    second = path.read_bytes()[len(first) :]
    for cut in (1, 20, len(second) - 2):
        path.write_bytes(first + second[:cut])
        assert ledger.read(tmp_path).charges() == [Charge(1.5, 0.2, 1)]
        assert charge(tmp_path, steps=2)[0] == 2
        assert ledger.read(tmp_path).charges() == [Charge(1.5, 0.2, 1), Charge(1.5, 0.2, 2)]
    # Whole but for its end: it may have been gone on from, so it counts.
    path.write_bytes(first + second[:-1])
    assert charge(tmp_path, steps=2)[0] == 3
    assert len(ledger.read(tmp_path).entries) == 3


def test_an_older_copy_does_not_have_the_last_charge(tmp_path: Path) -> None:
    charge(tmp_path)
    older = (tmp_path / ledger.FILE).read_bytes()
    last = charge(tmp_path)
    require_newest(ledger.read(tmp_path), last, tmp_path)
    (tmp_path / ledger.FILE).write_bytes(older)
    with pytest.raises(StorageError, match="has 1 charges, and the audit log has noted charge 2"):
        require_newest(ledger.read(tmp_path), last, tmp_path)
    charge(tmp_path, "another")  # with the same number
    with pytest.raises(StorageError, match="put back from an older copy"):
        require_newest(ledger.read(tmp_path), last, tmp_path)


def test_what_may_be_charged_is_decided_while_no_other_process_can_charge(tmp_path: Path) -> None:
    # Ten at once would each charge the last of three charges that are left: three of them may.
    def at_most_three(before: ledger.Ledger) -> None:
        if len(before.entries) >= 3:
            raise PolicyRefusal("spent", reason="spent")

    def try_once(_: int) -> bool:
        try:
            ledger.append(tmp_path, NOON, "skin", "f" * 64, "round", Charge(1.5, 0.2, 1), at_most_three)
        except PolicyRefusal:
            return False
        return True

    with ThreadPoolExecutor(10) as pool:
        assert sum(pool.map(try_once, range(10))) == 3
    assert len(ledger.read(tmp_path).entries) == 3


WRITER = """
import sys
from pathlib import Path
from datetime import UTC, datetime
from client.privacy import ledger
from client.privacy.accountant import Charge
while True:
    number, _ = ledger.append(Path(sys.argv[1]), datetime.now(UTC), "skin", "f" * 64, "round", Charge(1.5, 0.2, 3))
    print(number, flush=True)  # only now would the round be computed
"""


def test_a_writer_that_is_killed_has_charged_all_that_it_went_on_from(tmp_path: Path) -> None:
    last = 0
    for lines_before_the_kill in (1, 3, 8):
        writer = subprocess.Popen(
            [sys.executable, "-c", WRITER, str(tmp_path)],
            stdout=subprocess.PIPE,
            text=True,
            env=dict(os.environ),
        )
        assert writer.stdout is not None
        for _ in range(lines_before_the_kill):
            last = int(writer.stdout.readline())
        writer.send_signal(signal.SIGKILL)
        printed = [int(line) for line in writer.stdout.read().split()]
        writer.stdout.close()
        writer.wait()
        last = max([last, *printed])
        assert len(ledger.read(tmp_path).entries) >= last
