"""A person's yes to a study: files in the state folder, one for each exact study."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from client.governance import approval
from client.governance.approval import approve, describe, find, is_approved, note, pending
from common.config import StudyConfig
from common.errors import ConfigError, StorageError

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
    assert not is_approved(tmp_path, study)

    assert find(tmp_path, "tiny") == one
    approve(tmp_path, one, by="dr. meier", now=NOW)
    assert is_approved(tmp_path, study)
    assert pending(tmp_path) == []
    (kept,) = (tmp_path / "approvals" / "approved").iterdir()
    content = json.loads(kept.read_text())
    assert (content["by"], content["approved"]) == ("dr. meier", "2026-11-23T12:00:00+00:00")
    assert content["study"]["name"] == "tiny"


def test_a_study_that_was_changed_needs_a_yes_of_its_own(make_study: MakeStudy, tmp_path: Path) -> None:
    note(tmp_path, make_study(), NOW)
    approve(tmp_path, find(tmp_path, "tiny"), by="a", now=NOW)
    assert not is_approved(tmp_path, make_study(rounds=3))


def test_two_studies_of_one_name_are_told_apart_by_their_labels(
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
    assert (is_approved(tmp_path, first), is_approved(tmp_path, second)) == (False, True)


def test_a_study_that_does_not_wait_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"found 0 studies named 'tiny'; waiting: nothing"):
        find(tmp_path, "tiny")


def test_a_file_that_was_edited_is_not_approved_by_mistake(make_study: MakeStudy, tmp_path: Path) -> None:
    note(tmp_path, make_study(), NOW)
    (path,) = (tmp_path / "approvals" / "pending").iterdir()
    whole = path.read_text()
    path.write_text(whole.replace('"rounds": 2', '"rounds": 200'))
    with pytest.raises(StorageError, match="was edited and is another study than its name says"):
        find(tmp_path, "tiny")
    for broken in ("{", whole.replace('"rounds": 2', '"rounds": 200, "rounds": 2'), "[" * 100_000):
        path.write_text(broken)
        with pytest.raises(StorageError, match="cannot be read as a study"):
            pending(tmp_path)


def test_a_server_cannot_fill_the_disk_with_questions(
    make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(approval, "_MOST_PENDING", 3)
    for seed in range(5):
        note(tmp_path, make_study(seed=seed), NOW)
    assert len(pending(tmp_path)) == 3


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
