"""Following one study from its start to its end, restarts included."""

import logging
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import cast

import pytest

from common.config import StudyConfig
from common.errors import LaunchError
from server.deployment import study_runner
from server.simulation.local_federation import LocalFederation
from server.state import Approvals, SiteApproval
from server.storage import status

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


class Scripted:
    """A federation whose looks, and whose server's status, follow a script."""

    def __init__(self, run_dir: Path, looks: list[Callable[[], bool]], work: Path) -> None:
        self.run_dir, self.looks, self.work = run_dir, iter(looks), work
        self.has_superlink = True
        self.num_runs = 0
        self.failures: list[str | None] = []
        """What Flower says of the ServerApp at each look while it has not begun."""
        self.waited_for: list[list[str]] = []
        self.refusals: list[bool] = []
        """Runs that Flower does not take; True where the SuperLink ended under them."""

    def look(self) -> bool:
        self.has_superlink = True
        return next(self.looks)()

    def why_the_run_failed(self) -> str | None:
        return self.failures.pop(0) if self.failures else None

    def show_approvals(self, approvals: Approvals | None) -> None:
        self.waited_for.append([] if approvals is None else list(approvals.sites))

    def run_study(self) -> None:
        self.num_runs += 1
        if self.refusals:
            self.has_superlink = not self.refusals.pop(0)
            raise LaunchError("`flwr run app` ended with exit code 1")


@pytest.fixture
def say(tmp_path: Path) -> Callable[..., Callable[[], bool]]:
    """`say("crashed", "why")`: a look during which the server's status becomes this."""

    def make(stage: status.Stage | None, reason: str = "", *, anew: bool = False) -> Callable[[], bool]:
        def look() -> bool:
            if stage is not None:
                status.set_status(tmp_path, stage, reason)
            return anew

        return look

    return make


def followed(tmp_path: Path, *looks: Callable[[], bool]) -> tuple[study_runner.StudyEnd, int]:
    federation = Scripted(tmp_path, list(looks), tmp_path)
    return study_runner.follow(cast(LocalFederation, federation), tmp_path, 0), federation.num_runs


def test_a_study_is_followed_until_its_server_says_how_it_ended(tmp_path, say) -> None:
    outcome, num_runs = followed(tmp_path, say(None), say("running"), say("finished", "3 rounds"))
    assert (outcome.finished, outcome.reason, num_runs) == (True, "3 rounds", 0)


def test_whom_a_study_waits_for_is_shown_while_it_runs(tmp_path, say) -> None:
    def waits() -> bool:
        status.set_status(tmp_path, "running", "study tiny")
        now = datetime(2026, 3, 1, tzinfo=UTC)
        person = SiteApproval(answer="undecided", since=now)
        status.set_approvals(tmp_path, Approvals(since=now, until=None, sites={"north": person}))
        return False

    federation = Scripted(tmp_path, [say(None), waits, say("finished", "3 rounds")], tmp_path)
    study_runner.follow(cast(LocalFederation, federation), tmp_path, 0)
    assert federation.waited_for == [[], ["north"], []]


def test_a_server_that_crashed_is_run_again_and_one_that_failed_is_not(tmp_path, say) -> None:
    outcome, num_runs = followed(
        tmp_path, say("running"), say("crashed", "a bug"), say("running"), say("failed", "no quorum")
    )
    assert (outcome.finished, outcome.reason, num_runs) == (False, "no quorum", 1)


def test_a_server_that_crashes_again_and_again_fails_in_the_end(tmp_path, say) -> None:
    outcome, num_runs = followed(tmp_path, *[say("crashed", "a bug")] * 4)
    assert not outcome.finished
    assert outcome.reason == "the server crashed 4 times without a round in between: a bug"
    assert num_runs == 3
    last = status.read_status(tmp_path)
    assert last is not None
    assert (last.status, last.reason) == ("failed", outcome.reason)


def test_crashes_between_which_a_round_was_finished_are_forgiven(tmp_path, say) -> None:
    (tmp_path / "checkpoints").mkdir()

    def crash_after(number: int) -> Callable[[], bool]:
        def look() -> bool:
            (tmp_path / "checkpoints" / f"round-{number:04d}.safetensors").touch()
            return say("crashed", "a bug")()

        return look

    outcome, num_runs = followed(tmp_path, *[crash_after(n) for n in range(9)], say("finished", "9 rounds"))
    assert (outcome.finished, num_runs) == (True, 9)


def test_a_study_is_run_again_when_the_superlink_is_back_whatever_the_server_said_last(tmp_path, say) -> None:
    outcome, num_runs = followed(
        tmp_path, say("running"), say("crashed", "no SuperLink", anew=True), say("running"), say("finished")
    )
    assert (outcome.finished, num_runs) == (True, 1)


def test_a_server_that_never_says_that_it_began_counts_as_crashed(tmp_path, say, monkeypatch) -> None:
    monkeypatch.setattr(study_runner, "_BEGIN_S", 0.0)
    outcome, num_runs = followed(tmp_path, say("starting"), *[say(None)] * 3)
    assert not outcome.finished
    assert "4 times without a round in between: it did not begin within 0 s; the logs in" in outcome.reason
    assert num_runs == 3


def test_a_server_that_fails_before_it_says_anything_is_noticed_with_flowers_reason(tmp_path, say) -> None:
    """As with a package that does not load: its own log has not begun."""
    federation = Scripted(tmp_path, [say("starting"), *[say(None)] * 4], tmp_path)
    federation.failures = [None, *["ServerApp failed:\nno templates"] * 4]
    outcome = study_runner.follow(cast(LocalFederation, federation), tmp_path, 0)
    assert not outcome.finished
    assert (
        "4 times without a round in between: it ended before it began: ServerApp failed: no templates"
        in outcome.reason
    )


def test_while_the_server_is_started_again_the_status_says_so(tmp_path, say) -> None:
    seen: list[status.Status | None] = []

    def look() -> bool:
        seen.append(status.read_status(tmp_path))
        return say("finished", "3 rounds")()

    followed(tmp_path, say("crashed", "a bug"), look)
    assert [(now.status, now.reason) for now in seen if now] == [("starting", "the server is started again")]


def test_a_superlink_that_dies_under_the_command_to_run_is_waited_for(tmp_path, say) -> None:
    federation = Scripted(
        tmp_path, [say("crashed", "a bug"), say(None), say(None, anew=True), say("finished")], tmp_path
    )
    federation.refusals = [True]
    assert study_runner.follow(cast(LocalFederation, federation), tmp_path, 0).finished
    assert federation.num_runs == 2


def test_a_run_that_flower_does_not_take_ends_the_study(tmp_path, say) -> None:
    federation = Scripted(tmp_path, [say("crashed", "a bug")], tmp_path)
    federation.refusals = [False]
    with pytest.raises(LaunchError, match="flwr run"):
        study_runner.follow(cast(LocalFederation, federation), tmp_path, 0)


def test_a_study_that_is_incomplete_is_not_a_finished_one(tmp_path, say) -> None:
    outcome, num_runs = followed(tmp_path, say("running"), say("finished, incomplete", "3 rounds; no unseen"))
    assert (outcome.finished, outcome.incomplete, outcome.reason) == (False, True, "3 rounds; no unseen")
    assert (outcome.word, num_runs) == ("finished, incomplete", 0)
    assert study_runner.StudyEnd(True, "").word == "finished"
    assert study_runner.StudyEnd(False, "").word == "failed"
