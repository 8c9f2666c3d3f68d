"""A person's yes to a study: files in the state folder, one for each exact study."""

import json
import logging
import os
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.governance import approval
from client.governance.approval import Decision, approve, decision, describe, find, note, pending, refuse
from common.config import StudyConfig
from common.errors import ConfigError

MakeStudy = Callable[..., StudyConfig]
NOW = datetime(2026, 11, 23, 12, 0, tzinfo=UTC)


def test_a_study_is_pending_until_somebody_says_yes(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study()
    assert pending(tmp_path) == []
    note(tmp_path, study, NOW)
    note(tmp_path, study, NOW + timedelta(hours=1))  # asked again: it waits since the first time
    (one,) = pending(tmp_path)
    assert (one.study, one.asked) == (study, "2026-11-23T12:00:00+00:00")
    assert one.label == f"tiny-{study.fingerprint[:12]}"
    assert decision(tmp_path, study) == Decision("undecided")

    assert find(tmp_path, "tiny") == one
    approve(tmp_path, one, by="dr. meier", now=NOW)
    assert decision(tmp_path, study) == Decision("yes")
    assert pending(tmp_path) == []
    (kept,) = (tmp_path / "approvals" / "approved").iterdir()
    content = json.loads(kept.read_text())
    assert (content["by"], content["approved"]) == ("dr. meier", "2026-11-23T12:00:00+00:00")
    assert content["study"]["name"] == "tiny"


def test_a_study_that_was_changed_needs_a_yes_of_its_own(make_study: MakeStudy, tmp_path: Path) -> None:
    note(tmp_path, make_study(), NOW)
    approve(tmp_path, find(tmp_path, "tiny"), by="a", now=NOW)
    assert decision(tmp_path, make_study(rounds=3)) == Decision("undecided")


def test_two_studies_of_one_name_are_kept_apart_by_their_labels(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    first, second = make_study(), make_study(rounds=3)
    note(tmp_path, first, NOW)
    note(tmp_path, second, NOW + timedelta(minutes=1))
    labels = [one.label for one in pending(tmp_path)]
    assert labels == [f"tiny-{first.fingerprint[:12]}", f"tiny-{second.fingerprint[:12]}"]
    with pytest.raises(ConfigError, match=f"found 2 studies named 'tiny'; waiting: {labels[0]}, {labels[1]}"):
        find(tmp_path, "tiny")
    approve(tmp_path, find(tmp_path, labels[1]), by="a", now=NOW)
    assert [decision(tmp_path, study).answer for study in (first, second)] == ["undecided", "yes"]


def test_a_study_that_does_not_wait_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no study 'tiny' waits here; one waits once the server has asked"):
        find(tmp_path, "tiny")


def test_a_file_that_was_edited_is_named_and_not_approved_by_mistake(
    make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    note(tmp_path, make_study(), NOW)
    (path,) = (tmp_path / "approvals" / "pending").iterdir()
    whole = path.read_text()
    path.write_text(whole.replace('"rounds": 2', '"rounds": 200'))
    with pytest.raises(ConfigError, match="no study 'tiny' waits here"):
        find(tmp_path, "tiny")
    assert f"{path} was edited, or written by another version" in caplog.text
    for text in ("{", "[]", "{}", whole.replace('"rounds": 2', '"rounds": 200, "rounds": 2'), "[" * 100_000):
        caplog.clear()
        path.write_text(text)
        assert pending(tmp_path) == []
        assert f"{path} cannot be read as a study" in caplog.text


def test_a_file_of_an_earlier_version_does_not_hide_the_other_studies(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    for kind in ("pending", "approved", "refused"):
        (tmp_path / "approvals" / kind).mkdir(parents=True)
        (tmp_path / "approvals" / kind / "old-1234.json").write_text('{"study": {"name": "old"}}')
    note(tmp_path, make_study(), NOW)
    for refuses in (True, False):
        assert find(tmp_path, "tiny", refuse=refuses).study == make_study()


def test_a_server_cannot_fill_the_disk_with_questions(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approval, "_MOST_PENDING", 3)
    for seed in range(5):
        note(tmp_path, make_study(seed=seed), NOW)
        (path,) = (tmp_path / "approvals" / "pending").glob(f"*{make_study(seed=seed).fingerprint}.json")
        os.utime(path, (seed, seed))
    assert sorted(one.study.seed for one in pending(tmp_path)) == [2, 3, 4]  # a new question is never lost


def test_a_person_sees_what_the_study_would_do(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("unseen",)}, local={"steps": 7})
    note(tmp_path, study, NOW)
    told = describe(pending(tmp_path)[0])
    for fact in (
        "tiny-",
        "test_convnext",
        "dark, pale, red",
        "2 rounds of 7 steps",
        "north, south",
        "unseen",
    ):
        assert fact in told


def test_a_no_is_kept_with_its_reason_and_can_become_a_yes(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study()
    note(tmp_path, study, NOW)
    refuse(tmp_path, find(tmp_path, "tiny", refuse=True), by="a", now=NOW, reason="no ethics vote")
    assert decision(tmp_path, study) == Decision("no", "no ethics vote")
    assert pending(tmp_path) == []
    note(tmp_path, study, NOW)  # the server asks once more: a study that was refused does not wait again
    assert pending(tmp_path) == []
    approve(tmp_path, find(tmp_path, "tiny"), by="a", now=NOW)
    assert decision(tmp_path, study) == Decision("yes")


def test_an_approval_can_be_taken_back(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study()
    note(tmp_path, study, NOW)
    approve(tmp_path, find(tmp_path, "tiny"), by="a", now=NOW)
    meant = find(tmp_path, "tiny", refuse=True)
    assert describe(meant).startswith(f"tiny-{study.fingerprint[:12]}: approved 2026-11-23T12:00:00+00:00")
    refuse(tmp_path, meant, by="a", now=NOW)
    assert decision(tmp_path, study) == Decision("no")


def test_of_a_yes_and_a_no_that_a_power_cut_left_the_no_counts(make_study: MakeStudy, tmp_path: Path) -> None:
    study = make_study()
    note(tmp_path, study, NOW)
    one = find(tmp_path, "tiny")
    refuse(tmp_path, one, by="a", now=NOW)
    kept = next((tmp_path / "approvals" / "refused").iterdir())
    content = kept.read_bytes()
    approve(tmp_path, one, by="a", now=NOW)
    for damaged in (content, b"{", b"[]"):
        kept.write_bytes(damaged)
        assert decision(tmp_path, study).answer == "no"


def test_a_name_that_does_not_wait_is_named_with_what_was_decided(
    make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study()
    note(tmp_path, study, NOW)
    refuse(tmp_path, find(tmp_path, "tiny"), by="a", now=NOW)
    label = f"tiny-{study.fingerprint[:12]}"
    with pytest.raises(
        ConfigError, match=f"found 0 studies named 'other'; waiting: nothing; refused: {label}"
    ):
        find(tmp_path, "other")
