"""The engine that spreads trainers over Ray's workers: the same bits, and a worker that dies costs its sites a round.

Ray takes 250 MB and is in no extra that the tests install. Where it is not installed, the tests of real workers are
skipped; the others use a stand-in.
"""

import os
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from client.config import SiteConfig
from client.hosted import HostedTrainer
from common import wire
from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import to_yaml
from common.weights import digest, load_file
from common.wire import codec
from server.rounds.sites import Deadline
from server.simulation.engines import Inline, Ray
from server.simulation.inline import run_inline
from server.simulation.launch import LocalSite
from server.simulation.ray_workers import RaySites, Worker, run_ray

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
needs_ray = pytest.mark.skipif(find_spec("ray") is None, reason="ray is not installed (extra `ray`, 250 MB)")


@pytest.fixture
def settings(make_site: MakeSite, tmp_path: Path) -> list[LocalSite]:
    sites = []
    for name, per_class in (("north", 6), ("south", 5)):
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(to_yaml(make_site(name, per_class).model_dump(mode="json", exclude_none=True)))
        sites.append(LocalSite(name, path))
    return sites


class RayError(Exception):
    """As Ray's own."""


class StandIn:
    """The part of Ray that the sites use: an object is a function that has not been called."""

    exceptions = SimpleNamespace(RayError=RayError)

    def __init__(self, silent: set[str]) -> None:
        self.silent = silent

    def wait(self, awaited: list[Any], timeout: float) -> tuple[list[Any], list[Any]]:
        assert 0 < timeout <= 0.5
        ready = [one for one in awaited if one.site not in self.silent][:1]
        return ready, [one for one in awaited if one not in ready]

    def get(self, one: Any) -> bytes:
        answer: bytes = one()
        return answer


class Call:
    """An answer to come."""

    def __init__(self, site: str, answer: Callable[[], bytes]) -> None:
        self.site, self.answer = site, answer

    def __call__(self) -> bytes:
        return self.answer()


def asked(
    study: StudyConfig, answers: dict[str, Callable[[], bytes]], silent: set[str], seconds: float
) -> Any:
    handles = {
        name: SimpleNamespace(
            answer=SimpleNamespace(remote=lambda site, _, answer=answer: Call(site, answer))
        )
        for name, answer in answers.items()
    }
    plans = {
        name: wire.EnrolPlan(plan_id=f"p-{name}", site=name, study=study, want_weights=False)
        for name in answers
    }
    sites = RaySites(StandIn(silent), handles)
    assert sites.online() == set(answers)
    return {reply.site: reply.answer for reply in sites.ask(plans, Deadline(seconds))}


def test_a_worker_that_ends_is_a_failure_that_says_so_and_the_others_answer(make_study: MakeStudy) -> None:
    said = wire.Failure(plan_id="p-south", site="south", error="data", case="1", advice="look")

    def ends() -> bytes:
        raise RayError

    found = asked(make_study(), {"north": ends, "south": lambda: codec.to_bytes(said)}, set(), 60.0)
    assert found["south"] == said
    assert found["north"].error == "unreachable"
    assert (
        "the site's worker ended 3 times while it worked on a plan (RayError); read its log"
        in found["north"].advice
    )


def test_bytes_that_are_no_message_are_a_failure_of_the_message(make_study: MakeStudy) -> None:
    assert asked(make_study(), {"north": lambda: b"nonsense"}, set(), 60.0)["north"].error == "message"


def test_nothing_is_waited_for_beyond_the_deadline(make_study: MakeStudy) -> None:
    said = codec.to_bytes(wire.Failure(plan_id="p", site="south", error="data", case="1", advice="look"))
    found = asked(make_study(), {"north": lambda: said, "south": lambda: said}, {"north"}, 0.05)
    assert set(found) == {"south"}


def test_a_worker_opens_its_sites_once(tmp_path: Path) -> None:
    opened: list[tuple[str, int]] = []

    def open_trainer(path: Path, _: Path, turn: int) -> Any:
        opened.append((path.name, turn))
        return SimpleNamespace(answer=lambda request: request + path.name.encode(), rest=lambda: None)

    worker = Worker(open_trainer, {name: (Path(name), Path("log"), turn) for turn, name in enumerate("ab")})
    assert worker.open() == os.getpid()
    assert [worker.answer(name, b"-") for name in "aba"] == [b"-a", b"-b", b"-a"]
    assert opened == [("a", 0), ("b", 1)]


def test_without_ray_the_error_names_the_extra(
    settings: list[LocalSite], make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"the package ray is not installed.*extra `ray`"):
        run_ray(make_study(), settings, tmp_path / "run", Ray(HostedTrainer, 2))
    assert not (tmp_path / "run").exists()


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_two_workers_end_with_the_bits_of_one_process(
    settings: list[LocalSite], make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study()
    assert run_inline(study, settings, tmp_path / "inline", Inline(HostedTrainer)).finished
    outcome = run_ray(study, settings, tmp_path / "ray", Ray(HostedTrainer, 2))
    assert outcome.finished, outcome.reason
    one, two = (digest(load_file(tmp_path / run / "weights.safetensors")[0]) for run in ("inline", "ray"))
    assert one == two


class Dies(HostedTrainer):
    """A trainer whose process is killed in round 1, as often as the file beside its settings says."""

    def __init__(self, settings: Path, log_file: Path, turn: int) -> None:
        super().__init__(settings, log_file, turn)
        self._left = settings.with_name("deaths")

    def answer(self, request: bytes) -> bytes:
        plan, number = codec.from_bytes(request), int(self._left.read_text())
        if isinstance(plan, wire.RoundPlan) and plan.round == 1 and plan.site == "south" and number:
            self._left.write_text(str(number - 1))
            os.kill(os.getpid(), signal.SIGKILL)
        return super().answer(request)


@needs_ray
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(("deaths", "fails"), [(1, False), (3, True)])
def test_a_worker_that_dies_gets_its_plan_again_and_after_three_times_the_next_round_goes_on(
    settings: list[LocalSite], make_study: MakeStudy, tmp_path: Path, deaths: int, fails: bool
) -> None:
    study = make_study(sites={"train": ("north", "south"), "required": 1})
    (tmp_path / "deaths").write_text(str(deaths))
    outcome = run_ray(study, settings, tmp_path / "run", Ray(Dies, 2))
    assert (tmp_path / "deaths").read_text() == "0"
    assert outcome.finished, outcome.reason
    text = (tmp_path / "run" / "server.log").read_text()
    assert ("the site's worker ended 3 times while it worked on a plan" in text) == fails
    assert ("round 1  south: trained" in text) != fails
    assert "round 2  south: trained" in text
