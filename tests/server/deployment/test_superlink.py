"""A SuperLink that dies, and what is enrolled and started again when it is back."""

import logging
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest

from common.config import StudyConfig
from common.errors import LaunchError
from common.processes.launcher import Processes
from server.simulation.local_federation import LocalFederation

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@pytest.fixture
def federation(make_study: MakeStudy, tmp_path: Path) -> LocalFederation:
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("unseen",), "required": 1})
    sites = {name: (tmp_path / f"{name}.yaml", tmp_path / f"{name}.sock") for name in study.sites.all}
    processes = Processes(tmp_path / "logs", dict(os.environ))
    return LocalFederation(
        study=study, sites=sites, work=tmp_path, processes=processes, fleet_port=9092,
        write_settings=lambda _: tmp_path / "server.yaml",
    )  # fmt: skip


class Sleepers:
    """A federation of processes that sleep, whose SuperLink dies, or not, each time it is waited for."""

    def __init__(
        self, federation: LocalFederation, monkeypatch: pytest.MonkeyPatch, dies: list[bool]
    ) -> None:
        self.clock, self.dies, self.enrolled = 100.0, dies, 0
        self.federation, self.processes = federation, federation.processes
        federation._database.touch()
        for name in [
            "superlink",
            *(f"{site}-{part}" for site in federation.sites for part in ("trainer", "gateway")),
        ]:
            self.processes.start(name, [sys.executable, "-c", "import time; time.sleep(600)"])
        monkeypatch.setattr("server.deployment.superlink.time", SimpleNamespace(monotonic=lambda: self.clock))
        monkeypatch.setattr(LocalFederation, "_wait_for_superlink", lambda _: self.wait())
        monkeypatch.setattr(LocalFederation, "_enrol", lambda _: self.enrol())

    def wait(self) -> None:
        self.federation._database.touch()  # as the SuperLink does first
        if self.dies.pop(0):
            self.processes.end("superlink")
            raise LaunchError("the SuperLink did not start")

    def enrol(self) -> None:
        self.enrolled += 1

    def look(self, after_s: float = 0.0) -> bool:
        self.clock += after_s
        return self.federation.look()


@pytest.fixture
def sleepers(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[[list[bool]], Sleepers]]:
    yield lambda dies: Sleepers(federation, monkeypatch, dies)
    federation.processes.stop()


def test_a_superlink_with_its_database_comes_back_without_enrolling_anew(sleepers) -> None:
    all_of_it = sleepers([False])
    all_of_it.processes.end("superlink")
    assert [all_of_it.look(), all_of_it.look(after_s=1)] == [False, True]
    assert (all_of_it.enrolled, all_of_it.processes.ended()) == (0, {})


def test_a_superlink_that_dies_while_it_comes_back_is_started_once_more(sleepers) -> None:
    all_of_it = sleepers([True, False])
    all_of_it.processes.end("superlink")
    assert [all_of_it.look(), all_of_it.look(after_s=1)] == [False, False]
    assert [all_of_it.look(), all_of_it.look(after_s=2)] == [False, True]


def test_keys_are_enrolled_even_if_the_first_superlink_without_them_dies_before(sleepers) -> None:
    all_of_it = sleepers([True, False])
    all_of_it.federation._database.unlink()
    all_of_it.processes.end("superlink")
    all_of_it.look()
    all_of_it.look(after_s=1)  # makes a database, and dies
    all_of_it.look()
    assert all_of_it.look(after_s=2)
    assert all_of_it.enrolled == 1


def test_gateways_that_died_with_a_forgetful_superlink_are_started_once(sleepers) -> None:
    all_of_it = sleepers([False])
    all_of_it.federation._database.unlink()
    for name in ("superlink", "north-gateway", "unseen-gateway"):  # before and after it in the alphabet
        all_of_it.processes.end(name)
    assert [all_of_it.look(), all_of_it.look(after_s=1)] == [False, True]
    assert (all_of_it.enrolled, all_of_it.processes.ended()) == (1, {})


def test_a_gateway_that_was_given_up_stays_so_when_keys_are_enrolled_anew(sleepers) -> None:
    all_of_it = sleepers([False])
    all_of_it.federation._supervision._given_up.add("north-gateway")
    all_of_it.federation._database.unlink()
    for name in ("superlink", "north-gateway"):
        all_of_it.processes.end(name)
    assert [all_of_it.look(), all_of_it.look(after_s=1)] == [False, True]
    assert all_of_it.processes.ended().keys() == {"north-gateway"}
