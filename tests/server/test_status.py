import subprocess
import sys
from pathlib import Path

from server.status import FILE, Status, read_status, set_status


def test_nothing_is_known_before_the_server_began(tmp_path: Path) -> None:
    assert read_status(tmp_path) is None


def test_a_status_is_read_as_it_was_set(tmp_path: Path) -> None:
    set_status(tmp_path, "finished", "3 rounds")
    status = read_status(tmp_path)
    assert status is not None
    assert (status.status, status.reason, status.is_over) == ("finished", "3 rounds", True)


def test_a_running_study_whose_process_is_gone_has_failed(tmp_path: Path) -> None:
    set_status(tmp_path, "running", "study tiny")
    running = read_status(tmp_path)
    assert running is not None
    assert running.or_died() == running  # this very process is alive

    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    (tmp_path / FILE).write_text(running.model_copy(update={"pid": ended.pid}).model_dump_json())
    gone = read_status(tmp_path)
    assert gone is not None
    assert gone.or_died().status == "failed"
    assert "without a word" in gone.or_died().reason


def test_a_finished_study_stays_finished_when_its_process_is_gone() -> None:
    over = Status.model_validate({"status": "finished", "reason": "", "since": 0, "pid": 2**22 + 1})
    assert over.or_died() == over
