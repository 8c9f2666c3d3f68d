"""What a site is doing and what has left it, from its audit log."""

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.governance import status
from client.governance.audit import Audit

NOON = datetime(2027, 3, 1, 12, 0, tzinfo=UTC)
PLAN = {"plan_id": "p1", "kind": "round", "study": "skin", "round": 3, "bytes": 10}
ANSWER = {"plan_id": "p1", "kind": "answer", "round": 3, "bytes": 3 * 2**19}


def status_lines(tmp_path: Path, *events: tuple[str, dict], after_s: float = 0.0) -> list[str]:
    audit = Audit(tmp_path, lambda: NOON)
    for event, fields in events:
        audit.append(event, fields)
    return status.describe("north", tmp_path, None, NOON + timedelta(seconds=after_s)).splitlines()[1:]


def test_before_any_plan_nothing_has_left(tmp_path: Path) -> None:
    assert status_lines(tmp_path) == ["no plan received and nothing sent yet"]


def test_a_plan_without_an_answer_is_being_worked_on(tmp_path: Path) -> None:
    doing, study = status_lines(tmp_path, ("plan", PLAN), after_s=90)
    assert doing == "works on round 3 of study skin, since 2027-03-01 12:00:00 UTC (90 s)"
    assert study == "  study skin: 0 answers, 0.0 MiB, have left"


def test_an_answered_plan_is_waited_after_and_counted(tmp_path: Path) -> None:
    doing, study = status_lines(tmp_path, ("plan", PLAN), ("sent", ANSWER), ("sent", ANSWER), after_s=7200)
    assert doing == "waits for a plan, since 2027-03-01 12:00:00 UTC (2.0 h)"
    # the same answer twice, 1.5 MiB each time, is one round
    assert (
        study == "  study skin: 2 answers, 3.0 MiB, of 1 rounds, have left; last at 2027-03-01 12:00:00 UTC"
    )


def test_studies_are_kept_apart_and_refusals_are_counted(tmp_path: Path) -> None:
    other = {"plan_id": "p2", "kind": "enrol", "study": "lung", "bytes": 1}
    _, skin, lung = status_lines(
        tmp_path,
        ("plan", PLAN), ("sent", ANSWER),
        ("plan", other), ("refusal", {"plan_id": "p2", "error": "policy"}),
        ("sent", {"plan_id": "p2", "kind": "failure", "bytes": 0}),
        ("approval", {"study": "lung", "by": "me"}),
    )  # fmt: skip
    assert skin.startswith("  study skin: 1 answers, 1.5 MiB")
    assert (
        lung
        == "  study lung: 1 answers, 0.0 MiB, have left; last at 2027-03-01 12:00:00 UTC; 1 refused by the policy"
    )


def test_what_was_asked_for_beyond_the_study_and_what_came_again_stand_out(tmp_path: Path) -> None:
    odd = {"plan_id": "p2", "kind": "round", "study": "skin", "round": 9, "bytes": 1}
    _, skin = status_lines(
        tmp_path,
        ("plan", PLAN), ("sent", ANSWER), ("plan", PLAN), ("sent", ANSWER),
        ("plan", odd), ("refusal", {"plan_id": "p2", "reason": "contract: round 9 is asked for, of 3"}),
    )  # fmt: skip
    assert skin.endswith(
        "; 1 asked for BEYOND the study and refused, see `consilium-site audit`; 1 asked for again"
    )


def test_a_question_to_a_person_is_not_worked_on(tmp_path: Path) -> None:
    question = {"plan_id": "p0", "kind": "approval", "study": "skin", "bytes": 1}
    assert status_lines(tmp_path, ("plan", question))[0].startswith("waits for a plan")


def test_a_message_that_was_no_plan_is_not_worked_on(tmp_path: Path) -> None:
    assert status_lines(tmp_path, ("plan", {"kind": "unreadable", "bytes": 5}))[0].startswith(
        "waits for a plan"
    )


def test_whether_the_trainer_runs_is_asked_of_its_socket(tmp_path: Path) -> None:
    place = tmp_path / "t.sock"
    assert status.describe("north", tmp_path, place).startswith("north: the trainer is NOT running")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(place))
        listener.listen()
        assert status.describe("north", tmp_path, place).startswith("north: the trainer is running")


def test_a_socket_that_cannot_exist_is_not_just_a_trainer_that_does_not_run(tmp_path: Path) -> None:
    line = status.describe("north", tmp_path, tmp_path / ("d" * 110) / "t.sock").splitlines()[0]
    assert "the trainer is NOT running, and cannot: the path of the socket t.sock has" in line


def test_a_socket_that_may_not_be_asked_says_nothing_of_the_trainer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(*_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(status.sockets.socket, "connect", forbidden)
    line = status.describe("north", tmp_path, tmp_path / "t.sock").splitlines()[0]
    assert (
        line == "north: whether the trainer runs is not known: its socket cannot be asked (Permission denied)"
    )


def test_a_trainer_with_a_full_queue_of_connections_runs(tmp_path: Path) -> None:
    place = tmp_path / "t.sock"
    with socket.socket(socket.AF_UNIX) as busy, socket.socket(socket.AF_UNIX) as waiting:
        busy.bind(str(place))
        busy.listen(0)
        waiting.connect(str(place))
        assert status.describe("north", tmp_path, place).startswith(
            "north: the trainer is running, and too busy"
        )
