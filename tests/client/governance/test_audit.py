"""The audit log, computed by hand; and edits, power cuts and full disks that it must survive or show."""

import fcntl
import hashlib
import json
import multiprocessing
import os
import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from client.governance import audit, hash_chain
from client.governance.audit import FILE, Audit, Verdict, Work, verify
from client.governance.audit_fields import failed, received, sent
from common import wire
from common.config import StudyConfig
from common.errors import StorageError
from common.metrics import count
from common.weights import TensorSpec, digest
from common.wire import codec, head_steps

MOMENT = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
ZEROS = "0" * 64


def at(moment: datetime = MOMENT) -> Any:
    return lambda: moment


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def written(folder: Path, *events: str) -> Path:
    """A log with these events, each with a number in it."""
    log = Audit(folder, at(), lambda: "s")
    for number, event in enumerate(events):
        log.append(event, {"bytes": number})
    return folder / FILE


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def two_in_one(before: bytes, line: bytes) -> bytes:
    """A line that has two events and a hash that is right."""
    head = json.loads(before)["hash"]
    body = line.partition(b',"hash"')[0].replace(b'"event":"plan"', b'"event":"sent","event":"plan"')
    assert head.encode() in body
    return body + f',"hash":"{sha256(body)}"}}\n'.encode()


# --- the chain -------------------------------------------------------------------------------


def test_two_lines_are_what_hashlib_says(tmp_path: Path) -> None:
    path = written(tmp_path, "plan", "sent")
    first = (
        f'{{"previous":"{ZEROS}","time":"2026-11-23T12:00:00.000+00:00","event":"plan","bytes":0,"salt":"s"'
    )
    one = sha256(first.encode())
    second = (
        f'{{"previous":"{one}","time":"2026-11-23T12:00:00.000+00:00","event":"sent","bytes":1,"salt":"s"'
    )
    two = sha256(second.encode())
    assert path.read_text() == f'{first},"hash":"{one}"}}\n{second},"hash":"{two}"}}\n'
    assert verify(path) == Verdict(num_lines=2, num_torn=0, head=two)


def test_a_restarted_trainer_goes_on_with_the_chain(tmp_path: Path) -> None:
    written(tmp_path, "plan", "sent")
    path = written(tmp_path, "plan", "sent")
    assert verify(path).num_lines == 4
    assert verify(path).problem is None
    assert lines(path)[2]["previous"] == lines(path)[1]["hash"]


def test_each_line_has_random_bytes_so_that_nothing_of_it_is_guessed_from_its_hash(tmp_path: Path) -> None:
    logs = [Audit(tmp_path / name, at()) for name in "ab"]
    for log in logs:
        log.append("approval", {"by": "Dr X"})
        log.append("sent", {})
    assert logs[0].head == lines(tmp_path / "a" / FILE)[-1]["hash"]
    assert logs[0].head != logs[1].head
    assert len({line["salt"] for name in "ab" for line in lines(tmp_path / name / FILE)}) == 4


def test_nobody_else_may_read_the_log(tmp_path: Path) -> None:
    assert written(tmp_path, "plan").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (lambda kept: [kept[0].replace(b'"bytes":0', b'"bytes":9'), *kept[1:]], 1),
        (lambda kept: [kept[0], *kept[2:]], 2),
        (lambda kept: kept[1:], 1),
        (lambda kept: [kept[1], kept[0], *kept[2:]], 1),
        (lambda kept: [kept[0], kept[0], *kept[1:]], 2),
        (lambda kept: [kept[0], b"{}\n", *kept[1:]], 2),
        (lambda kept: [*kept[:-1], kept[-1].replace(b'"bytes":2', b'"bytes":9')], 3),
        (lambda kept: [*kept[:-1], kept[-1][:-1]], 3),
        (lambda kept: [*kept[:2], hash_chain.line_after(ZEROS, {"event": "sent"})], 3),
        (lambda kept: [*kept[:2], two_in_one(kept[1], kept[2]), kept[2]], 3),
    ],
    ids=[
        "changed",
        "removed",
        "first removed",
        "swapped",
        "twice",
        "put in",
        "last changed",
        "cut",
        "forged",
        "a key twice",
    ],
)
def test_the_first_broken_line_is_named(tmp_path: Path, change: Any, line: int) -> None:
    path = written(tmp_path, "plan", "sent", "plan")
    path.write_bytes(b"".join(change(path.read_bytes().splitlines(keepends=True))))
    verdict = verify(path)
    assert verdict.num_lines == line - 1
    assert str(verdict.problem).startswith(f"line {line} of audit.jsonl: ")


with tempfile.TemporaryDirectory() as folder:
    WHOLE = written(Path(folder), "plan", "sent", "plan").read_bytes()
    (Path(folder) / FILE).write_bytes(WHOLE + WHOLE[:70])
    TORN = written(Path(folder), "plan").read_bytes()


@given(st.sampled_from([WHOLE, TORN]), st.data())
def test_no_byte_can_be_edited_unnoticed(content: bytes, data: st.DataObject) -> None:
    place = data.draw(st.integers(0, len(content) - 1))
    byte = data.draw(st.integers(0, 255))
    edit = data.draw(st.sampled_from(["replace", "insert", "remove"]))
    after = content[place:] if edit == "insert" else content[place + 1 :]
    edited = content[:place] + (b"" if edit == "remove" else bytes([byte])) + after
    assume(edited != content)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / FILE
        path.write_bytes(content)
        assert verify(path).problem is None
        path.write_bytes(edited)
        assert verify(path).problem is not None


def test_lines_cut_off_at_the_end_are_found_by_a_hash_noted_before(tmp_path: Path) -> None:
    path = written(tmp_path, "plan", "sent", "plan")
    noted = verify(path).head
    assert verify(path, expected=noted).problem is None
    kept = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(kept[:2]))
    assert verify(path).problem is None  # all that is there is right
    assert "has the hash" in str(verify(path, expected=noted).problem)


# --- power cuts, full disks, other hands -----------------------------------------------------


def test_a_torn_line_stays_and_the_next_one_tells_of_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = written(tmp_path, "plan")
    piece = b'{"previous":"a power cut came he'
    with path.open("ab") as file:
        file.write(piece)
    assert str(verify(path).problem).startswith("line 2 of audit.jsonl: it has no end")
    written(tmp_path, "sent")
    kept = path.read_bytes().splitlines()
    assert kept[1] == piece
    torn, after = json.loads(kept[2]), json.loads(kept[3])
    assert (torn["event"], torn["sha256"]) == ("torn", sha256(piece))
    assert torn["previous"] == json.loads(kept[0])["hash"]
    assert (after["event"], after["previous"]) == ("sent", torn["hash"])
    assert verify(path) == Verdict(num_lines=4, num_torn=1, head=after["hash"])


def test_a_line_that_lacks_only_its_end_gets_it(tmp_path: Path) -> None:
    path = written(tmp_path, "plan", "sent")
    path.write_bytes(path.read_bytes()[:-1])
    written(tmp_path, "plan")
    assert [line["event"] for line in lines(path)] == ["plan", "sent", "plan"]
    assert verify(path).problem is None


def test_the_log_survives_a_cut_at_any_byte(tmp_path: Path) -> None:
    ends = [place for place, byte in enumerate(WHOLE) if byte == ord("\n")]
    for length in sorted(
        {*range(0, len(WHOLE), 23), *ends, *(end + 1 for end in ends), *(end - 1 for end in ends)}
    ):
        path = tmp_path / f"{length}" / FILE
        path.parent.mkdir()
        path.write_bytes(WHOLE[:length])
        written(path.parent, "plan")
        assert verify(path).problem is None, length


def test_zeros_that_a_power_cut_left_are_a_torn_line(tmp_path: Path) -> None:
    path = written(tmp_path, "plan")
    with path.open("ab") as file:
        file.write(bytes(4096))
    written(tmp_path, "sent")
    assert verify(path).num_torn == 1
    assert verify(path).problem is None


def test_a_disk_that_takes_half_a_line_is_a_storage_error_and_the_log_goes_on_later(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = Audit(tmp_path, at())
    log.append("plan", {})
    write = os.write
    with monkeypatch.context() as full:
        full.setattr("os.write", lambda descriptor, data: write(descriptor, data[:40]))
        with pytest.raises(StorageError, match=r"took 40 of \d+ bytes; free some space"):
            log.append("sent", {})
    log.append("sent", {})
    assert events(tmp_path / FILE) == ["plan", "torn", "sent"]
    assert verify(tmp_path / FILE).problem is None


def events(path: Path) -> list[str]:
    """Of the lines that are whole."""
    return [json.loads(line)["event"] for line in path.read_bytes().splitlines() if line.endswith(b"}")]


def test_what_did_not_reach_the_disk_was_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError(5, "Input/output error")

    log = Audit(tmp_path, at())
    with monkeypatch.context() as broken:
        broken.setattr("os.fsync", fails)
        with pytest.raises(StorageError, match=r"Input/output error.*nothing leaves this site"):
            log.append("plan", {})
    log.append("plan", {})
    assert verify(tmp_path / FILE).problem is None


def test_a_running_trainer_stops_at_a_log_that_was_cut_and_starts_a_new_one_where_it_was_moved_away(
    tmp_path: Path,
) -> None:
    log = Audit(tmp_path, at())
    log.append("plan", {})
    log.append("sent", {})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    with pytest.raises(StorageError, match="is shorter than it was: it was cut"):
        log.append("plan", {})
    path.rename(tmp_path / "kept.jsonl")
    log.append("plan", {})
    assert lines(path)[0]["previous"] == ZEROS


def test_a_restarted_trainer_stops_at_a_log_that_was_edited(tmp_path: Path) -> None:
    path = written(tmp_path, "plan", "sent")
    path.write_bytes(path.read_bytes().replace(b'"bytes":0', b'"bytes":5'))
    with pytest.raises(
        StorageError, match=r"line 1 of .*it was changed after it was written.*move the file away"
    ):
        Audit(tmp_path, at()).append("plan", {})


def test_an_edit_beneath_a_running_trainer_is_found_though_it_goes_on(tmp_path: Path) -> None:
    log = Audit(tmp_path, at())
    log.append("plan", {"bytes": 0})
    path = tmp_path / FILE
    path.write_bytes(path.read_bytes().replace(b'"bytes":0', b'"bytes":5'))
    log.append("sent", {})
    assert "line 1 of audit.jsonl: it was changed after it was written" in str(verify(path).problem)


def _write_some(folder: Path, name: str) -> None:
    log = Audit(folder)
    for number in range(25):
        log.append(name, {"bytes": number})


def test_two_trainers_on_one_file_write_one_chain(tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    both = [fork.Process(target=_write_some, args=(tmp_path, name)) for name in ("one", "two")]
    for process in both:
        process.start()
    for process in both:
        process.join(60)
    assert [process.exitcode for process in both] == [0, 0]
    verdict = verify(tmp_path / FILE)
    assert (verdict.num_lines, verdict.problem) == (50, None)
    for name in ("one", "two"):
        assert [line["bytes"] for line in lines(tmp_path / FILE) if line["event"] == name] == list(range(25))


def test_a_log_that_another_process_holds_is_not_waited_for_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = written(tmp_path, "plan")
    monkeypatch.setattr(audit, "_LOCK_S", 0.05)
    with path.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        with pytest.raises(StorageError, match="is locked by another process"):
            written(tmp_path, "sent")


def test_a_log_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"audit\.jsonl cannot be used: No such file"):
        verify(tmp_path / FILE)


# --- rounds of a day -------------------------------------------------------------------------


def test_rounds_are_counted_from_the_log_once_a_plan_and_across_a_restart(tmp_path: Path) -> None:
    clock = [MOMENT]
    log = Audit(tmp_path, lambda: clock[0])

    def answered(plan_id: str, examples: int = 8) -> None:
        log.append("sent", {"plan_id": plan_id, "kind": "answer", "counts": {"examples": examples}})

    answered("yesterday")
    clock[0] += timedelta(hours=20)
    answered("early")
    answered("early")  # the gateway asked again
    answered("only scored", examples=0)
    log.append("failure", {"plan_id": "failed"})
    clock[0] += timedelta(hours=1)
    answered("late")
    midnight = MOMENT.replace(hour=0) + timedelta(days=1)
    again = Audit(tmp_path, lambda: clock[0])
    again.append("plan", {})
    for one in (log, again):
        assert one.work_since(midnight).rounds == 2
        assert one.work_since(MOMENT).rounds == 3


def test_a_name_of_a_plan_that_is_used_again_hides_no_work_and_a_failure_costs_its_time(
    tmp_path: Path,
) -> None:
    """Two plans in turn under two names: the server chooses names, and what was asked counts."""
    log = Audit(tmp_path, lambda: MOMENT)
    for number, plan_id in enumerate("abab"):
        log.append("plan", {"plan_id": plan_id, "sha256": f"question {number}"})
        counts = {"examples": 8, "scored": [1]}
        log.append("sent", {"plan_id": plan_id, "kind": "answer", "counts": counts, "seconds": 60.0})
    for _ in range(2):
        log.append("plan", {"plan_id": "c", "sha256": "what diverges"})
        log.append("sent", {"plan_id": "c", "kind": "failure", "seconds": 30.0})
    assert log.work_since(MOMENT) == Work(rounds=4, evaluations=4, seconds=4 * 60.0 + 2 * 30.0)


# --- what the lines say ----------------------------------------------------------------------

ARRAYS = {"b": np.zeros(2, np.float32), "a": np.ones((1, 2), np.float32)}
NAMES = sha256(b"a\nb")


def test_a_plan_is_noted_with_its_study_size_and_hashes(make_study: Any) -> None:
    study = make_study()
    plan = wire.RoundPlan(plan_id="p", site="north", study=study, round=4, train=True, weights=ARRAYS)
    data = codec.to_bytes(plan)
    assert received(data, plan, digest(ARRAYS)) == {
        "plan_id": "p", "kind": "round", "tensors": 2, "tensor_names": NAMES, "study": "tiny",
        "fingerprint": study.fingerprint, "round": 4, "train": True, "arrays": digest(ARRAYS), "bytes": len(data),
        "sha256": sha256(data),
        "asked": {"round": 4, "train": True, "score": ["validation"], "best": None, "class_counts": None,
                      "control": 0, "notice": None},
    }  # fmt: skip
    enrol = wire.EnrolPlan(plan_id="e", site="north", study=study, want_weights=True)
    assert received(b"12345", enrol) == {
        "plan_id": "e", "kind": "enrol", "tensors": 0, "tensor_names": sha256(b""), "study": "tiny",
        "fingerprint": study.fingerprint, "bytes": 5, "sha256": sha256(b"12345"),
        "asked": {"want_weights": True, "first_round": 1, "study": study.model_dump(mode="json")},
    }  # fmt: skip
    assert received(b"what?", None) == {"kind": "unreadable", "bytes": 5, "sha256": sha256(b"what?")}


def test_every_question_can_be_made_again_from_the_log_but_for_its_arrays(
    make_study: Any, tmp_path: Path
) -> None:
    study = make_study(heads={"federated": [{"kind": "logistic"}]}, overlap={})
    objective = head_steps.Objective(name="logistic", loss="softmax", class_weights=(1.0, 2.0, 0.5))
    same: dict[str, Any] = {"site": "north", "study": study}
    plans: list[wire.Plan] = [
        wire.ApprovalPlan(plan_id="a", **same, hold_s=2.5),
        wire.EnrolPlan(plan_id="e", **same, want_weights=True, first_round=2),
        wire.RoundPlan(plan_id="r", **same, round=4, train=True, notice="too long", weights={}),
        wire.HeadPlan(
            plan_id="h", **same, round=4, weights_digest="ab", arrays={},
            step=head_steps.GradientsStep(objectives=(objective,)),
        ),
        wire.OverlapPlan(plan_id="o", **same),
    ]  # fmt: skip
    log = Audit(tmp_path, at())
    for plan in plans:
        log.append("plan", received(codec.to_bytes(plan), plan))
    noted = lines(tmp_path / FILE)
    (written_study,) = [line["asked"].pop("study") for line in noted if "study" in line["asked"]]
    assert {line["fingerprint"] for line in noted} == {StudyConfig.model_validate(written_study).fingerprint}
    for plan, line in zip(plans, noted, strict=True):
        again = type(plan).model_validate(
            {"plan_id": line["plan_id"], "site": "north", "study": written_study, **line["asked"]}
            | ({plan.ARRAYS: {}} if plan.ARRAYS else {})
        )
        assert again == plan
        assert sha256(codec.to_bytes(again)) == line["sha256"]


def test_an_answer_is_noted_with_the_counts_that_leave() -> None:
    # three images: two of class 0, one of them taken for 1; one of class 1
    score = count(np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]]), np.array([0, 0, 1]), loss_sum=1.0)
    answer = wire.RoundAnswer(
        plan_id="p", site="north", round=4, scores={"test": score}, num_examples=7, num_steps=2, train_loss=0.5,
        train_s=1.0, evaluate_s=1.0, delta=ARRAYS,
    )  # fmt: skip
    assert sent(b"123", answer) == {
        "plan_id": "p", "kind": "answer", "tensors": 2, "tensor_names": NAMES, "round": 4, "bytes": 3,
        "sha256": sha256(b"123"), "counts": {"examples": 7, "steps": 2, "scored": {"test": [2, 1]}}, "seconds": 2.0,
    }  # fmt: skip
    enrolment = wire.Enrolment(
        plan_id="e", site="north", layout={"a": TensorSpec(shape=(1, 2), dtype="float32")}, weights_digest="w",
        frozen_digest="f", preprocessing={}, train_counts=(5, 6), validation_counts=(2, 2), test_counts=(2, 1),
        device="cpu", weights={},
    )  # fmt: skip
    assert sent(b"1", enrolment) == {
        "plan_id": "e", "kind": "enrolment", "tensors": 0, "tensor_names": sha256(b""), "bytes": 1,
        "sha256": sha256(b"1"), "counts": {"train": [5, 6], "validation": [2, 2], "test": [2, 1]},
    }  # fmt: skip


def test_a_comparison_is_noted_with_the_number_of_hashes(make_study: Any) -> None:
    plan = wire.OverlapPlan(plan_id="o", site="north", study=make_study(), shared=("0a" * 16,))
    assert received(b"1", plan)["shared"] == 1
    answer = wire.OverlapAnswer(
        plan_id="o", site="north", check="0" * 16, same=("0a" * 16, "0b" * 16), similar=("0c" * 16, "0d" * 16)
    )
    assert sent(b"1", answer) == {
        "plan_id": "o", "kind": "overlap_answer", "tensors": 0, "tensor_names": sha256(b""), "bytes": 1,
        "sha256": sha256(b"1"), "hashes": {"same": 2, "similar": 2},
    }  # fmt: skip


def test_a_failure_is_noted_with_its_case_and_a_refusal_with_its_reason() -> None:
    failure = wire.Failure(plan_id="p", site="north", error="data", case="1a", advice="-")
    assert failed(failure) == {"plan_id": "p", "error": "data", "case": "1a"}
    refusal = failure.model_copy(update={"error": "policy", "reason": "studies: the study is 'x'"})
    assert failed(refusal)["reason"] == "studies: the study is 'x'"


def test_whatever_a_server_sends_as_an_id_stays_on_one_line(tmp_path: Path) -> None:
    log = Audit(tmp_path, at())
    log.append("plan", {"plan_id": 'a\n{"hash":"x"}\u2028\r\\'})
    assert len((tmp_path / FILE).read_bytes().split(b"\n")) == 2
    assert verify(tmp_path / FILE).problem is None
