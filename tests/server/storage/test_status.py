import errno
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from common.errors import StorageError
from server.state import Approvals, Progress, SiteApproval
from server.storage.status import (
    FILE,
    INCOMPLETE,
    Stage,
    Status,
    add_resumption,
    read_status,
    set_absent,
    set_approvals,
    set_progress,
    set_status,
)

NOW = datetime(2026, 3, 1, tzinfo=UTC)


def test_nothing_is_known_before_the_server_began(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None


def test_a_status_is_read_as_it_was_set(tmp_path: Path) -> None:
    set_status(tmp_path, "finished", "3 rounds")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.status, status.reason, status.is_over) == ("finished", "3 rounds", True)


def test_a_running_study_whose_process_is_gone_has_crashed(tmp_path: Path) -> None:
    set_status(tmp_path, "running", "study tiny")
    running = read_status(tmp_path)
    assert running is not None
    assert running.or_died() == running  # this very process is alive

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / FILE).write_text(running.model_copy(update={"pid": ended.pid}).model_dump_json())
    gone = read_status(tmp_path)
    assert gone is not None
    assert gone.or_died().status == "crashed"
    assert "without a word" in gone.or_died().reason
    assert not gone.or_died().is_over


def test_another_process_with_the_servers_number_is_not_the_server(tmp_path: Path) -> None:
    set_status(tmp_path, "running", "study tiny")
    running = read_status(tmp_path)
    assert running is not None
    assert running.born is not None
    assert running.model_copy(update={"born": running.born - 1}).or_died().status == "crashed"


@pytest.mark.parametrize(
    ("stage", "waits"),
    [("starting", True), ("running", True), ("crashed", True), ("stopped", False), ("failed", False)],
)
def test_a_server_that_starts_again_knows_since_when_it_waits_for_people(
    tmp_path: Path, stage: Stage, waits: bool
) -> None:
    set_approvals(tmp_path, None)  # before there is a status, nothing is kept
    set_status(tmp_path, "running", "study tiny")
    people = Approvals(since=NOW, until=None, sites={"north": SiteApproval(answer="undecided", since=NOW)})
    set_approvals(tmp_path, people)
    set_status(tmp_path, stage, "why")
    kept = read_status(tmp_path)
    assert kept is not None
    assert kept.approvals == (people if waits else None)


def test_a_finished_study_stays_finished_when_its_process_is_gone() -> None:
    over = Status.model_validate({"status": "finished", "reason": "", "since": 0, "pid": 2**22 + 1})
    assert over.or_died() == over


def test_a_process_that_nobody_asked_after_is_dead_all_the_same(tmp_path: Path) -> None:
    set_status(tmp_path, "running", "study tiny")
    running = read_status(tmp_path)
    assert running is not None
    with subprocess.Popen([sys.executable, "-c", "print()"], stdout=subprocess.PIPE) as ended:
        assert ended.stdout is not None
        ended.stdout.read()  # it is over when its output is, and a zombie until it is waited for
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert running.model_copy(update={"pid": ended.pid}).or_died().status == "crashed"


def test_a_full_disk_still_lets_a_status_through_but_no_progress(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    set_status(tmp_path, "running", "study tiny, which will soon have no room on its disk")

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    progress = Progress(round=1, rounds=2, closing=False, attempt=1, since=NOW, deadline_s=1, sites={})
    set_progress(tmp_path, progress)
    set_status(tmp_path, "failed", "no room")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.status, status.reason, status.progress) == ("failed", "no room", None)


def test_what_was_said_of_a_round_stays_when_the_study_ends(tmp_path: Path) -> None:
    set_status(tmp_path, "running", "study tiny")
    progress = Progress(round=1, rounds=2, closing=False, attempt=1, since=NOW, deadline_s=1, sites={})
    set_progress(tmp_path, progress)
    set_status(tmp_path, "failed", "no quorum")
    status = read_status(tmp_path)
    assert status is not None
    assert status.progress == progress


def test_a_damaged_status_is_an_error_for_readers_and_is_replaced_by_the_next_one(tmp_path):
    (tmp_path / "status.json").write_text("{")
    with pytest.raises(StorageError, match=r"status\.json cannot be read"):
        read_status(tmp_path)
    set_status(tmp_path, "failed", "the disk")
    assert read_status(tmp_path).reason == "the disk"


def test_absent_sites_and_resumptions_are_kept_until_they_are_replaced(tmp_path: Path) -> None:
    set_absent(tmp_path, {"unseen": "no key"})  # there is no study yet
    assert read_status(tmp_path) is None
    set_status(tmp_path, "running", "study tiny")
    set_absent(tmp_path, {"unseen": "no key"})
    for number in (1, 3):
        add_resumption(tmp_path, number)
    set_status(tmp_path, INCOMPLETE, "3 rounds; unseen did not score the final model")
    now = read_status(tmp_path)
    assert now is not None
    assert (now.absent, now.resumed_after) == ({"unseen": "no key"}, (1, 3))
    assert (now.status, now.is_over) == ("finished, incomplete", True)
    assert now.or_died() == now
    set_absent(tmp_path, {})
    again = read_status(tmp_path)
    assert again is not None
    assert again.absent == {}
