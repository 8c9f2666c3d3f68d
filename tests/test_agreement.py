"""What a hospital agreed to, asked of a real trainer and of a whole study without processes."""

import hashlib
import json
import logging
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from client.cli.main import main
from client.config import FoldersData, PolicyConfig, SiteConfig
from client.governance import approval
from client.governance.audit import FILE, verify
from client.model import build
from client.trainer import Trainer
from client.training import fit
from common import wire
from common.config import StudyConfig
from common.errors import QuorumNotMet
from common.weights import digest
from common.wire import codec
from server.enrolment import cohort as enrolment
from server.rounds.loop import run_rounds
from server.rounds.sites import InProcessSites
from server.state import RoundState

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
Answer = Callable[[bytes], bytes]

NOON = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)
PATIENT = "MUELLER_ANNA_1961"


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@pytest.fixture
def alone(make_study: MakeStudy) -> StudyConfig:
    """The tiny study with one site."""
    return make_study(sites={"train": ("north",)})


def agreed(**rules: Any) -> PolicyConfig:
    return PolicyConfig.model_validate({"timezone": "UTC", **rules})


def enrol_plan(study: StudyConfig, plan_id: str = "e") -> bytes:
    return codec.to_bytes(wire.EnrolPlan(plan_id=plan_id, site="north", study=study, want_weights=True))


def round_plan(study: StudyConfig, weights: object, plan_id: str) -> bytes:
    plan = wire.RoundPlan(plan_id=plan_id, site="north", study=study, round=1, train=True, weights=weights)
    return codec.to_bytes(plan)


def enrolled(trainer: Trainer, study: StudyConfig) -> wire.Enrolment:
    answer = codec.from_bytes(trainer.answer(enrol_plan(study)))
    assert isinstance(answer, wire.Enrolment), answer
    return answer


def approval_of(data: bytes) -> wire.ApprovalAnswer:
    answer = codec.from_bytes(data)
    assert isinstance(answer, wire.ApprovalAnswer), answer
    return answer


def failure(data: bytes) -> wire.Failure:
    answer = codec.from_bytes(data)
    assert isinstance(answer, wire.Failure), answer
    return answer


def audited(site: SiteConfig) -> list[dict[str, Any]]:
    path = site.state_dir / FILE
    assert verify(path).problem is None
    return [json.loads(line) for line in path.read_bytes().splitlines()]


def states(study: StudyConfig, trainers: dict[str, Answer]) -> list[RoundState]:
    sites = InProcessSites(trainers)
    cohort = enrolment.enrol(study, sites, None)
    start = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return [start, *run_rounds(study, sites, cohort, start)]


# --- policy ----------------------------------------------------------------------------------


def test_a_refused_plan_is_answered_with_rules_not_limits_and_both_logs_tell(
    make_site: MakeSite, alone: StudyConfig, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def never(*_: object) -> None:
        raise AssertionError("an encoder that is not allowed was built")

    monkeypatch.setattr(build, "build", never)
    site = make_site("north", policy=agreed(encoders=["allowed_encoder"], max_epochs_per_round=0.8125))
    reply = Trainer(site).answer(enrol_plan(alone))
    refused = failure(reply)
    assert refused.error == "policy"
    assert refused.reason == (
        "encoders: the study's encoder is 'test_convnext'; max_epochs_per_round: the study asks for 1 epochs a round"
    )
    for limit in ("allowed_encoder", "0.8125"):
        assert limit.encode() not in reply
        assert limit in caplog.text
    plan, refusal, sent = audited(site)
    assert [line["event"] for line in (plan, refusal, sent)] == ["plan", "refusal", "sent"]
    assert (refusal["reason"], refusal["plan_id"]) == (refused.reason, "e")
    assert (refused.case, "case" in refusal) == ("", False)
    assert "Traceback" not in caplog.text
    assert (sent["kind"], sent["bytes"]) == ("failure", len(reply))
    with pytest.raises(QuorumNotMet, match=r"north: .*encoders: the study's encoder is 'test_convnext'"):
        states(alone, {"north": Trainer(site).answer})


def test_outside_its_hours_a_site_takes_no_plan_but_repeats_what_it_said(
    make_site: MakeSite, alone: StudyConfig
) -> None:
    clock = [NOON]
    trainer = Trainer(make_site("north", policy=agreed(hours="19:00-07:00")), lambda: clock[0])
    closed = approval_of(trainer.answer(enrol_plan(alone)))
    assert (closed.decision, closed.reason) == (
        "closed",
        "this site takes plans again at 2026-11-23T19:00+00:00",
    )
    clock[0] = NOON.replace(hour=19)
    said = trainer.answer(enrol_plan(alone))
    assert isinstance(codec.from_bytes(said), wire.Enrolment)
    clock[0] = NOON + timedelta(days=1)
    assert trainer.answer(enrol_plan(alone)) == said
    assert approval_of(trainer.answer(enrol_plan(alone, plan_id="another"))).decision == "closed"
    assert failure(trainer.answer(round_plan(alone, {}, "r"))).reason == (
        "hours: this site takes plans again at 2026-11-24T19:00+00:00"
    )


def test_a_study_starts_after_a_persons_yes(make_site: MakeSite, alone: StudyConfig) -> None:
    site = make_site("north", policy=agreed(ask=True))
    trainer = Trainer(site)
    assert approval_of(trainer.answer(enrol_plan(alone))).decision == "undecided"
    assert "has not been enrolled" in failure(trainer.answer(round_plan(alone, {}, "r"))).reason
    approval.approve(site.state_dir, approval.find(site.state_dir, "tiny"), by="data manager", now=NOON)
    assert enrolled(trainer, alone).train_counts == (7, 7, 7)
    changed = alone.model_copy(update={"rounds": 200})
    assert approval_of(trainer.answer(enrol_plan(changed, "changed"))).decision == "undecided"


def test_a_persons_no_is_an_answer_with_the_reason_and_no_failure(
    make_site: MakeSite, alone: StudyConfig, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site("north", policy=agreed(ask=True))
    trainer = Trainer(site)
    trainer.answer(enrol_plan(alone))
    approval.approve(site.state_dir, approval.find(site.state_dir, "tiny"), by="data manager", now=NOON)
    enrolled(trainer, alone)
    caplog.clear()
    meant = approval.find(site.state_dir, "tiny", refuse=True)
    approval.refuse(site.state_dir, meant, by="data manager", now=NOON, reason="the ethics vote is missing")
    told = approval_of(trainer.answer(enrol_plan(alone, "again")))
    assert (told.decision, told.reason) == ("no", "the ethics vote is missing")
    assert failure(trainer.answer(round_plan(alone, {}, "r"))).reason == (
        f"ask: a person at this site refused study tiny ({alone.fingerprint[:12]})"
    )
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


def test_a_study_that_the_policy_refuses_is_not_put_before_a_person(
    make_site: MakeSite, alone: StudyConfig
) -> None:
    site = make_site("north", policy=agreed(ask=True, encoders=["allowed_encoder"], hours="19:00-07:00"))
    trainer = Trainer(site, lambda: NOON)
    told = failure(trainer.answer(enrol_plan(alone)))
    assert told.reason == "encoders: the study's encoder is 'test_convnext'"
    assert approval.pending(site.state_dir) == []


def test_a_site_that_is_closed_asks_its_people_all_the_same(make_site: MakeSite, alone: StudyConfig) -> None:
    site = make_site("north", policy=agreed(ask=True, hours="19:00-07:00"))
    trainer = Trainer(site, lambda: NOON)
    assert approval_of(trainer.answer(enrol_plan(alone))).decision == "undecided"
    approval.approve(site.state_dir, approval.find(site.state_dir, "tiny"), by="a", now=NOON)
    assert approval_of(trainer.answer(enrol_plan(alone))).decision == "closed"


def test_a_question_is_held_until_a_person_decides_and_is_in_the_log_once(
    make_site: MakeSite, alone: StudyConfig
) -> None:
    site = make_site("north", policy=agreed(ask=True))
    pauses: list[float] = []

    def pause(seconds: float) -> None:
        pauses.append(seconds)
        if len(pauses) == 65:  # in the third question
            approval.approve(site.state_dir, approval.find(site.state_dir, "tiny"), by="a", now=NOON)

    trainer = Trainer(site, pause=pause)
    question = codec.to_bytes(wire.ApprovalPlan(plan_id="q", site="north", study=alone, hold_s=30))
    told = [approval_of(trainer.answer(question)).decision for _ in range(3)]
    assert told == ["undecided", "undecided", "yes"]
    assert len(pauses) == 65  # 30 + 30 seconds of waiting, then five more: a decision is seen within a second
    lines = audited(site)
    assert [(line["event"], line.get("decision")) for line in lines] == [
        ("plan", None), ("sent", "undecided"), ("sent", "yes"),
    ]  # fmt: skip


def test_a_site_that_asks_nobody_says_yes_at_once(make_site: MakeSite, alone: StudyConfig) -> None:
    question = codec.to_bytes(wire.ApprovalPlan(plan_id="q", site="north", study=alone, hold_s=30))
    assert approval_of(Trainer(make_site("north")).answer(question)).decision == "yes"


def test_the_rounds_of_a_day_are_counted_over_restarts_until_midnight(
    make_site: MakeSite, alone: StudyConfig
) -> None:
    clock = [NOON]
    site = make_site("north", policy=agreed(max_rounds_per_day=2))

    def ask(plan_id: str) -> wire.Plan | wire.Answer:
        trainer = Trainer(site, lambda: clock[0])  # a new process for every plan
        return codec.from_bytes(trainer.answer(round_plan(alone, weights, plan_id)))

    weights = enrolled(Trainer(site, lambda: clock[0]), alone).weights
    assert isinstance(ask("1"), wire.RoundAnswer)
    assert isinstance(ask("2"), wire.RoundAnswer)
    clock[0] = NOON.replace(hour=23, minute=59)
    third = ask("3")
    assert isinstance(third, wire.Failure)
    assert third.reason == "max_rounds_per_day: this site trains no more today"
    clock[0] = NOON.replace(hour=0) + timedelta(days=1)
    assert isinstance(ask("4"), wire.RoundAnswer)


def test_tensors_that_may_not_leave_stop_the_study_before_any_training(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    head = {"encoder": "test_convnext", "image_size": 32, "trainable": "head"}
    site = make_site("north", policy=agreed(tensors=["head.*"]))
    assert all(name.startswith("head.") for name in enrolled(Trainer(site), make_study(model=head)).layout)
    refused = failure(Trainer(site).answer(enrol_plan(make_study())))
    assert refused.reason.startswith("tensors: the study trains ")


def test_classes_too_small_to_count_are_left_out_and_the_study_still_adds_up(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    south = make_site("south", per_class=20, policy=agreed(min_cell=4))
    for path in sorted((tmp_path / "south-images" / "red").iterdir())[6:]:
        path.unlink()
    # south: 16 + 4 dark, 16 + 4 pale; of 6 red images 1 is for testing: too few there, enough to train. Two images of
    # a class for validation would be too few as well, so they train.
    trainers = {"north": Trainer(make_site("north")).answer, "south": Trainer(south).answer}
    cohort = enrolment.enrol(make_study(), InProcessSites(trainers), None)
    told = cohort.enrolments["south"]
    assert (told.train_counts, told.validation_counts) == ((16, 16, 5), (0, 0, 0))
    assert (told.test_counts, told.withheld) == ((4, 4, 0), True)
    assert not cohort.enrolments["north"].withheld
    for state in states(make_study(), trainers)[1:]:
        assert {row.outcome for row in state.sites} == {"ok"}
        assert state.scores["south"].confusion_CC.sum(axis=1).tolist() == [0, 0, 0]
    assert state.test_scores["south"].confusion_CC.sum(axis=1).tolist() == [4, 4, 0]


def test_a_site_that_keeps_its_scores_trains_all_the_same(make_site: MakeSite, make_study: MakeStudy) -> None:
    south = make_site("south", policy=agreed(scores=False))
    trainers = {"north": Trainer(make_site("north")).answer, "south": Trainer(south).answer}
    last = states(make_study(), trainers)[-1]
    assert {site: score.num_images for site, score in last.test_scores.items()} == {"north": 6, "south": 0}
    # 8 of 10 images of a class train: none of them is kept for a score
    assert {row.site: row.num_examples for row in states(make_study(), trainers)[1].sites} == {
        "north": 21,
        "south": 24,
    }
    assert [row.outcome for row in last.sites] == ["ok", "ok"]


def test_a_policy_that_allows_a_study_changes_none_of_its_bits(
    make_site: MakeSite, alone: StudyConfig
) -> None:
    free = make_site("north", per_class=20)
    bound = make_site(
        "north",
        per_class=20,  # two lesions of a class are for validation
        policy=agreed(
            studies=["*"], max_epochs_per_round=1, min_cell=2, hours="00:00-23:59", histogram_bins=500
        ),
    )
    clock = [NOON]
    unbound = states(alone, {"north": Trainer(free).answer})
    ruled = states(alone, {"north": Trainer(bound, lambda: clock[0]).answer})
    assert [digest(state.weights) for state in ruled] == [digest(state.weights) for state in unbound]
    assert ruled[-1].scores == unbound[-1].scores
    assert ruled[-1].test_scores == unbound[-1].test_scores


def test_the_data_manager_says_yes_and_checks_the_log_by_typing(
    make_site: MakeSite, alone: StudyConfig, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    site = make_site("north", policy=agreed(ask=True))
    settings = str(tmp_path / "north.yaml")
    Path(settings).write_text(json.dumps(site.model_dump(mode="json")))  # JSON is YAML

    def typed(*arguments: str) -> tuple[int, str]:
        code = main(arguments)
        told = capsys.readouterr()
        return code, told.out + told.err

    assert typed("pending", settings) == (0, "no study waits\n")
    approval_of(Trainer(site).answer(enrol_plan(alone)))
    assert f"tiny-{alone.fingerprint[:12]}: asked" in typed("pending", settings)[1]
    assert typed("approve", settings, "other")[0] == 1
    assert typed("approve", settings, "tiny")[0] == 0
    enrolled(Trainer(site), alone)

    code, told = typed("audit", "--verify", settings)
    # plan, sent; approval; plan, sent
    assert code == 0
    assert told.startswith("5 lines as they were written; the last hash is ")
    noted = told.split()[-1]
    assert typed("audit", "--verify", settings, "--expect", noted)[0] == 0
    shown = typed("audit", settings)[1].splitlines()
    assert [line.split("  ")[1].partition(":")[0] for line in shown] == [
        "plan", "sent", "approval", "plan", "sent",
    ]  # fmt: skip
    assert typed("audit", settings, "--expect", noted)[0] == 1

    path = site.state_dir / FILE
    path.write_bytes(path.read_bytes().replace(b'"train":[7,7,7]', b'"train":[9,7,7]'))
    code, told = typed("audit", "--verify", settings)
    assert code == 1
    assert "EDITED OR CUT: line 5 of audit.jsonl: it was changed after it was written" in told


# --- audit -----------------------------------------------------------------------------------


def test_a_whole_study_leaves_a_log_of_exactly_what_came_and_left(
    make_site: MakeSite, make_study: MakeStudy
) -> None:
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("unseen",)})
    configs = {
        "north": make_site("north", per_class=10),
        "south": make_site("south", per_class=15),
        "unseen": make_site("unseen", per_class=4, test_only=True),
    }
    crossed: dict[str, list[tuple[bytes, bytes]]] = {name: [] for name in configs}

    def watched(name: str) -> Answer:
        trainer = Trainer(configs[name])

        def answer(request: bytes) -> bytes:
            reply = trainer.answer(request)
            crossed[name].append((request, reply))
            return reply

        return answer

    states(study, {name: watched(name) for name in configs})
    for name, messages in crossed.items():
        # enrolment, two rounds, the closing scores; the unseen site has test images alone, so it is not in a round
        assert len(messages) == (2 if name == "unseen" else 4)
        lines = audited(configs[name])
        assert [line["event"] for line in lines] == ["plan", "sent"] * len(messages)
        for (request, reply), plan, sent in zip(messages, lines[::2], lines[1::2], strict=True):
            for data, line in ((request, plan), (reply, sent)):
                message = codec.from_bytes(data)
                names = "\n".join(sorted(wire.arrays_of(message)))
                assert line["bytes"] == len(data)
                assert line["sha256"] == hashlib.sha256(data).hexdigest()
                assert (line["plan_id"], line["kind"]) == (message.plan_id, message.kind)
                assert line["tensors"] == len(wire.arrays_of(message))
                assert line["tensor_names"] == hashlib.sha256(names.encode()).hexdigest()
            assert (plan["study"], plan["fingerprint"]) == ("tiny", study.fingerprint)
    # north: 7 + 7 + 7 images to train, 1 + 1 + 1 to choose by, 2 + 2 + 2 to test; batches of 8 make 3 steps
    counts = [line["counts"] for line in audited(configs["north"]) if line["event"] == "sent"]
    validation, test = {"validation": [1, 1, 1]}, {"test": [2, 2, 2]}
    trained = {"examples": 21, "steps": 3, "scored": validation}
    closing = {"examples": 0, "steps": 0, "scored": validation | test}
    assert counts == [{"train": [7, 7, 7], **validation, **test}, trained, trained, closing]


def test_what_is_sent_twice_is_in_the_log_twice(make_site: MakeSite, alone: StudyConfig) -> None:
    site = make_site("north")
    trainer = Trainer(site)
    assert trainer.answer(enrol_plan(alone)) == trainer.answer(enrol_plan(alone))
    lines = audited(site)
    assert [line["event"] for line in lines] == ["plan", "sent", "plan", "sent"]
    assert lines[1]["sha256"] == lines[3]["sha256"]


def test_what_cannot_be_noted_does_not_leave_and_is_not_computed_twice(
    make_site: MakeSite, alone: StudyConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    fits = []
    fitted = fit.fit
    monkeypatch.setattr(fit, "fit", lambda *a, **k: (fits.append(1), fitted(*a, **k))[1])
    site = make_site("north")
    trainer = Trainer(site)
    weights = enrolled(trainer, alone).weights
    plan = round_plan(alone, weights, "r")

    synced = []

    def full(_: int) -> None:
        synced.append(1)
        if len(synced) > 1:  # the plan is noted; what is sent is not
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as disk:
        disk.setattr("os.fsync", full)
        reply = trainer.answer(plan)
        assert failure(reply).error == "storage"
        assert len(reply) < 1000
        assert failure(trainer.answer(plan)).error == "storage"
    assert isinstance(codec.from_bytes(trainer.answer(plan)), wire.RoundAnswer)
    assert len(fits) == 1
    assert verify(site.state_dir / FILE).problem is None


def test_without_a_log_no_plan_is_even_begun(
    make_site: MakeSite, alone: StudyConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    site = make_site("north")
    (site.state_dir / FILE).mkdir(parents=True)

    def never(*_: object) -> None:
        raise AssertionError("a plan was begun that is not in the log")

    monkeypatch.setattr(build, "build", never)
    reply = Trainer(site).answer(enrol_plan(alone))
    assert failure(reply).error == "storage"
    assert str(site.state_dir).encode() not in reply
    assert "audit.jsonl cannot be used: Is a directory" in caplog.text


def test_what_is_no_message_is_in_the_log_too(make_site: MakeSite) -> None:
    site = make_site("north")
    reply = Trainer(site).answer(b"GET / HTTP/1.1")
    plan, failed, sent = audited(site)
    # 14 bytes
    assert (plan["event"], plan["kind"], plan["bytes"]) == ("plan", "unreadable", 14)
    assert (failed["event"], failed["error"], failed["case"]) == ("failure", "message", failure(reply).case)
    assert sent["kind"] == "failure"


def test_no_patient_is_in_the_log(make_site: MakeSite, alone: StudyConfig, tmp_path: Path) -> None:
    healthy = make_site("north")
    images = tmp_path / "north-images"
    for path in sorted(images.rglob("*.png")):
        path.rename(path.with_name(f"{PATIENT}-{path.name}"))
    images.rename(tmp_path / PATIENT)
    site = healthy.model_copy(
        update={"data": FoldersData(root=tmp_path / PATIENT), "state_dir": tmp_path / f"{PATIENT}-state"}
    )
    weights = enrolled(Trainer(site), alone).weights
    assert isinstance(
        codec.from_bytes(Trainer(site).answer(round_plan(alone, weights, "r"))), wire.RoundAnswer
    )
    victim = next((tmp_path / PATIENT).rglob("*.png"))
    victim.write_bytes(b"not an image")
    assert failure(Trainer(site).answer(enrol_plan(alone))).error == "data"
    assert len(audited(site)) == 7
    text = (site.state_dir / FILE).read_text().lower()
    for secret in (PATIENT.lower(), "mueller", str(tmp_path).lower(), ".png", "error:"):
        assert secret not in text
