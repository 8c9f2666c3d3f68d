"""What `status` says of a run, from files that a study left or is writing."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from common.errors import ConfigError
from common.processes import watchdog
from server.cli.main import main
from server.deployment import overview
from server.state import Approvals, Asked, Progress, SiteApproval
from server.storage import checkpoint, history
from server.storage.status import read_status, set_absent, set_approvals, set_progress, set_status

NOW = datetime(2026, 3, 1, 12, 0, tzinfo=UTC)


@pytest.fixture
def running(tmp_path, random_state, study):
    """A study in its round 3, 40 s after its plans went out; sites usually answer in 3.5 s."""
    run_dir = tmp_path / "demo"
    set_status(run_dir, "running", "study demo")
    for number in (1, 2):
        history.append_round(run_dir, random_state(number))
        checkpoint.save(run_dir, random_state(number), study)
    sites = {
        "north": Asked(outcome="ok", after_s=12.0),
        "south": Asked(outcome="awaited"),
        "west": Asked(outcome="refused", after_s=9.0, reason="its norm is 100"),
    }
    set_progress(
        run_dir,
        Progress(
            round=3, rounds=3, closing=False, attempt=2, since=NOW - timedelta(seconds=40), deadline_s=100, sites=sites
        ),
    )  # fmt: skip
    return run_dir


def test_it_says_who_has_answered_and_who_is_late_by_how_much(running):
    lines = overview.describe_run(overview.read_run(running, NOW), NOW).splitlines()
    assert lines[1:5] == [
        "round 3 of 3, attempt 2, for 40 s; the deadline is in 60 s",
        "  north  answered after 12 s",
        "  south  awaited, 36 s later than usual",  # 40 - 3.5
        "  west   refused: its norm is 100",
    ]
    # two rounds of four sites, 0.5 MiB each way
    assert lines[5] == "4.0 MiB sent to sites, 4.0 MiB received, tensors only"
    assert lines[6] == "last checkpoint: after round 2"


def test_before_round_1_it_says_who_has_not_approved_the_study_and_since_when(tmp_path):
    run_dir = tmp_path / "demo"
    set_status(run_dir, "running", "study demo")
    asked, hour = NOW - timedelta(days=2), timedelta(hours=1)
    sites = {
        "east": SiteApproval(answer="closed", since=asked, reason="this site takes plans again at 19:00"),
        "north": SiteApproval(answer="undecided", since=asked),
        "south": SiteApproval(answer="yes", since=NOW - 3 * hour),
        "west": SiteApproval(answer="no", since=NOW - hour, reason="refused by a person there"),
    }
    set_approvals(run_dir, Approvals(since=asked, until=NOW + timedelta(days=5), sites=sites))
    now = overview.read_run(run_dir, NOW)
    assert overview.describe_run(now, NOW).splitlines()[1:6] == [
        "waiting for people at the sites to approve the study, until 2026-03-06 12:00 UTC",
        "  east   closed since 2026-02-27 12:00 UTC (2 days); this site takes plans again at 19:00",
        "  north  waits for approval since 2026-02-27 12:00 UTC (2 days)",
        "  south  approved since 2026-03-01 09:00 UTC (3.0 h)",
        "  west   declined since 2026-03-01 11:00 UTC (60 min); refused by a person there",
    ]
    set_status(run_dir, "failed", "too few sites")
    assert overview.read_run(run_dir, NOW).sites == {}


def test_a_site_that_never_answered_before_is_awaited_and_nothing_more_is_known(running, random_state):
    state = random_state(2)
    rows = tuple(replace(row, outcome="missing") if row.site == "south" else row for row in state.sites)
    for number in (1, 2):
        history.append_round(running, replace(state, round=number, sites=rows))
    assert "  south  awaited" in overview.describe_run(overview.read_run(running, NOW), NOW).splitlines()


def test_before_the_first_round_it_says_what_is_waited_for(tmp_path):
    set_status(tmp_path, "running", "study demo")
    told = overview.describe_run(overview.read_run(tmp_path))
    assert "before round 1: waiting for sites to connect" in told
    assert "no checkpoint yet" in told


def test_a_run_that_is_over_awaits_nobody(running):
    set_status(running, "failed", "no quorum")
    seen = overview.read_run(running, NOW)
    assert (seen.stage, seen.reason, seen.round_s, seen.sites["south"].late_s) == (
        "failed",
        "no quorum",
        None,
        None,
    )
    told = overview.describe_run(seen, NOW).splitlines()
    assert told[1] == "last: round 3 of 3, attempt 2"
    assert "  south  missing: it had not answered when the study ended" in told


def test_a_study_that_ended_before_round_1_waits_for_no_sites(tmp_path):
    set_status(tmp_path, "running", "study demo")
    set_status(tmp_path, "failed", "south: refused by a person there")
    told = overview.describe_run(overview.read_run(tmp_path)).splitlines()
    assert told[1] == "ended before round 1"


def test_the_command_prints_json_and_its_exit_code_says_whether_the_study_is_well(running, capsys):
    assert main(["--json", "status", str(running)]) == 0
    said = json.loads(capsys.readouterr().out)
    assert (said["round"], said["sites"]["north"]["after_s"], said["last_checkpoint"]) == (3, 12.0, 2)
    set_status(running, "failed", "no quorum")
    assert main(["status", str(running)]) == 1
    assert "demo: failed, no quorum" in capsys.readouterr().out


def test_a_folder_without_a_run_is_named(tmp_path):
    with pytest.raises(ConfigError, match="no study has begun there"):
        overview.read_run(tmp_path)


def test_the_memory_of_the_runs_own_processes_is_listed_by_name(running):
    env = os.environ | {
        "FLWR_HOME": str((running / "federation" / "flower").resolve()),
        watchdog.OWNER: "mark/north-trainer",
    }
    command, pipe = [sys.executable, "-c", "print(flush=True); input()"], subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe) as process:
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        memory = overview.read_run(running).memory_mib
        process.stdin.write(b"\n")
    assert list(memory) == ["north-trainer"]
    assert 1 < memory["north-trainer"] < 200


def test_the_command_to_readmit_leaves_a_wish(running, capsys):
    assert main(["readmit", str(running), "west"]) == 0
    assert "west gets a plan again in the next round of demo" in capsys.readouterr().out
    assert [path.name for path in (running / "wishes").iterdir()] == ["readmit-west"]


def test_sites_that_take_no_part_are_named_before_and_in_a_round(tmp_path, running):
    reason = "it did not connect within 300 s"
    set_status(tmp_path, "running", "study demo")
    set_absent(tmp_path, {"unseen": reason})
    assert (
        f"  unseen takes no part: {reason}" in overview.describe_run(overview.read_run(tmp_path)).splitlines()
    )
    set_absent(running, {"unseen": reason})
    seen = overview.read_run(running, NOW)
    assert seen.absent == {"unseen": reason}
    progress = read_status(running).progress
    sites = progress.sites | {"unseen": Asked(outcome="absent", reason=reason)}
    set_progress(running, progress.model_copy(update={"sites": sites}))
    told = overview.describe_run(overview.read_run(running, NOW), NOW)
    assert f"  unseen  absent: {reason}" in told.splitlines()
    assert "takes no part" not in told  # once is enough
