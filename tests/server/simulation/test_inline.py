"""The engine that runs a whole study in one process: same files, same bits, and nothing left behind."""

import json
import logging
import random
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from client.config import SiteConfig
from client.hosted import HostedTrainer, ProcessState
from client.trainer import Trainer
from common.config import StudyConfig
from common.errors import ConfigError, LaunchError
from common.settings import to_yaml
from common.weights import digest, load_file
from server.deployment.study_runner import StudyEnd
from server.simulation import inline
from server.simulation.engines import Inline
from server.simulation.inline import Trainers, run_inline
from server.simulation.launch import LocalSite, run_local
from tests.places import ROOT

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
Run = Callable[..., tuple[StudyEnd, Path]]
ENGINE = Inline(HostedTrainer)
SECONDS = ("seconds", "train_s", "evaluate_s", "answered_after_s", "answer_times")


@pytest.fixture
def settings(make_site: MakeSite, tmp_path: Path) -> list[LocalSite]:
    """site.yaml of two sites."""
    sites = []
    for name, per_class in (("north", 6), ("south", 5)):
        path = tmp_path / f"{name}.yaml"
        path.write_bytes(to_yaml(make_site(name, per_class).model_dump(mode="json", exclude_none=True)))
        sites.append(LocalSite(name, path))
    return sites


@pytest.fixture
def run(settings: list[LocalSite], make_study: MakeStudy, tmp_path: Path) -> Run:
    """`run("name", rounds=3, ...)`: the tiny study in this process; how it ended, and its folder."""

    def run(name: str = "run", resume: bool = False, leave_out: tuple[str, ...] = (), **changes: Any) -> Any:
        study = make_study(**changes)
        return run_inline(
            study, settings, tmp_path / name, ENGINE, leave_out=leave_out, resume=resume
        ), tmp_path / name

    return run


def weights_of(run_dir: Path) -> str:
    return digest(load_file(run_dir / "weights.safetensors")[0])


def rounds_of(run_dir: Path) -> list[dict[str, Any]]:
    """Lines of rounds.jsonl without seconds."""

    def without_seconds(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: without_seconds(one) for key, one in value.items() if key not in SECONDS}
        return [without_seconds(one) for one in value] if isinstance(value, list) else value

    lines = (run_dir / "rounds.jsonl").read_text().splitlines()
    return [without_seconds(json.loads(line)) for line in lines]


def test_a_study_leaves_the_files_of_a_real_federation(run: Run, tmp_path: Path) -> None:
    outcome, folder = run()
    assert outcome == StudyEnd(True, "2 rounds")
    for name in ("rounds.jsonl", "report.md", "weights.safetensors", "study.yaml", "status.json"):
        assert (folder / name).is_file(), name
    assert list((folder / "checkpoints").iterdir())
    assert len(rounds_of(folder)) == 3
    assert "round 2 of 2" in (folder / "server.log").read_text()
    trainer_log = (folder / "federation/logs/north-trainer.log").read_text()
    assert "round 2: trained" in trainer_log
    assert "round 2: trained" not in (folder / "server.log").read_text()
    _, second = run()  # the run before is set aside
    assert (tmp_path / "run.1" / "report.md").is_file()
    assert weights_of(second) == weights_of(tmp_path / "run.1")


def test_a_run_that_broke_off_is_resumed_with_the_same_bits(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, whole = run("whole", rounds=3)
    answer, asked = HostedTrainer.answer, [0]

    def breaks(self: HostedTrainer, request: bytes) -> bytes:
        asked[0] += 1
        if asked[0] == 7:  # two enrolments, two rounds of two sites: the first plan of round 3
            raise KeyboardInterrupt
        return answer(self, request)

    monkeypatch.setattr(HostedTrainer, "answer", breaks)
    with pytest.raises(KeyboardInterrupt):
        run("broken", rounds=3)
    assert json.loads((whole.parent / "broken/status.json").read_text())["status"] == "crashed"
    outcome, resumed = run("broken", rounds=3, resume=True)
    assert outcome.finished
    assert weights_of(resumed) == weights_of(whole)
    assert rounds_of(resumed) == rounds_of(whole)


def test_a_site_that_rests_between_its_plans_changes_no_bit(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, warm = run("warm")
    built: list[str] = []

    class Counted(Trainer):
        def __init__(self, site: SiteConfig, turn: int) -> None:
            super().__init__(site, turn=turn)
            built.append(site.name)

    monkeypatch.setattr("client.hosted.Trainer", Counted)
    monkeypatch.setattr(inline, "WARM_SITES", 1)
    _, cold = run("cold")
    assert weights_of(cold) == weights_of(warm)
    assert rounds_of(cold) == rounds_of(warm)
    assert built == ["north", "south"] * 4  # enrolment, two rounds, closing


def test_of_many_sites_those_that_waited_longest_rest() -> None:
    rested: list[str] = []

    class Site:
        def __init__(self, name: str) -> None:
            self.name = name

        def answer(self, request: bytes) -> bytes:
            return request + self.name.encode()

        def rest(self) -> None:
            rested.append(self.name)

    trainers = Trainers({name: Site(name) for name in "abc"}, most_warm=2)
    assert [trainers.answer(name, b"-") for name in "abac"] == [b"-a", b"-b", b"-a", b"-c"]
    assert rested == ["b"]
    trainers.rest()
    assert rested == ["b", "a", "c"]


def test_a_site_that_is_left_out_is_not_waited_for(run: Run) -> None:
    outcome, folder = run(
        leave_out=("south",), sites={"train": ("north", "south"), "required": 1}, deadlines={"enrol_s": 200}
    )
    assert outcome.finished
    assert outcome.reason.endswith("south took no part: it did not connect within 200 s")
    assert {
        site["site"] for line in rounds_of(folder) for site in line["sites"] if site["outcome"] == "ok"
    } == {"north"}


def test_of_the_sites_some_are_drawn_for_each_round_and_all_score_the_end(run: Run) -> None:
    outcome, folder = run(rounds=3, sites={"train": ("north", "south"), "per_round": 1})
    assert outcome.finished, outcome.reason
    asked = [[site["site"] for site in line["sites"]] for line in rounds_of(folder)]
    assert [len(names) for names in asked] == [1, 1, 1, 2]
    report = (folder / "report.md").read_text()
    assert "each of 1 drawn training sites" in " ".join(report.split())


def test_a_study_that_fails_says_why_and_a_name_without_a_site_is_an_error(run: Run, tmp_path: Path) -> None:
    outcome, _ = run(leave_out=("south",), deadlines={"enrol_s": 1})
    assert not outcome.finished
    assert "south did not connect within 1 s" in outcome.reason
    with pytest.raises(LaunchError, match="the study names west"):
        run(sites={"train": ("north", "west")})


def test_a_site_whose_device_is_not_there_stops_the_study_before_an_earlier_run_is_moved(
    run: Run, settings: list[LocalSite], tmp_path: Path
) -> None:
    run(rounds=1)
    before = weights_of(tmp_path / "run")
    text = settings[0].settings.read_text()
    settings[0].settings.write_text(text.replace("device: cpu", "device: cuda:7"))
    with pytest.raises(ConfigError, match=r"device: found 'cuda:7'"):
        run(rounds=1)
    assert weights_of(tmp_path / "run") == before
    assert not (tmp_path / "run.1").exists()


def test_nothing_that_a_process_shares_passes_from_a_trainer_to_others_or_to_the_caller(
    settings: list[LocalSite], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    drawn: dict[str, list[tuple[float, float, float]]] = {"north": [], "south": []}

    class Careless:
        """Draws from every generator of the process, and turns every switch."""

        def __init__(self, site: SiteConfig, turn: int) -> None:
            self.name = site.name
            torch.use_deterministic_algorithms(True, warn_only=True)

        def answer(self, request: bytes) -> bytes:
            assert torch.are_deterministic_algorithms_enabled()
            drawn[self.name].append((random.random(), float(np.random.rand()), float(torch.rand(()))))
            if self.name == "north":
                torch.manual_seed(5)
                torch.set_num_threads(2)
                torch.backends.cudnn.benchmark = True
            return request

    monkeypatch.setattr("client.hosted.Trainer", Careless)
    monkeypatch.setattr(torch.backends.cudnn, "benchmark", False)
    torch.use_deterministic_algorithms(False)
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    before = (random.random(), float(np.random.rand()), float(torch.rand(())))
    random.seed(1)
    np.random.seed(1)
    torch.manual_seed(1)
    state = ProcessState.now(torch.device("cpu"))
    north, south = (HostedTrainer(site.settings, tmp_path / f"{site.name}.log") for site in settings)
    for trainer in (north, south, south, north, south):
        trainer.answer(b"")
        assert not torch.are_deterministic_algorithms_enabled()
        assert not torch.backends.cudnn.benchmark
        assert torch.get_num_threads() == state.threads
    alone = HostedTrainer(settings[1].settings, tmp_path / "alone.log")
    for _ in range(3):
        alone.answer(b"")
    assert drawn["south"][:3] == drawn["south"][3:]  # as if it had the process to itself
    assert drawn["north"][0] == drawn["south"][0]
    assert (random.random(), float(np.random.rand()), float(torch.rand(()))) == before


def test_sites_are_numbered_in_the_order_of_the_study(
    settings: list[LocalSite], make_study: MakeStudy, tmp_path: Path
) -> None:
    turns = dict[str, int]()

    def opened(path: Path, log_file: Path, turn: int) -> HostedTrainer:
        turns[path.stem] = turn
        return HostedTrainer(path, log_file, turn)

    study = make_study(rounds=1, sites={"train": ("south", "north"), "required": 1})
    run_inline(study, settings, tmp_path / "run", Inline(opened))
    assert turns == {"south": 0, "north": 1}
    turns.clear()
    run_inline(study, settings, tmp_path / "run", Inline(opened), leave_out=("south",))
    assert turns == {"north": 0}


@pytest.mark.slow
@pytest.mark.usefixtures("_launchers_share_templates")
def test_a_trainer_process_whose_device_is_not_there_stops_the_study_before_it_starts(
    settings: list[LocalSite], make_study: MakeStudy, tmp_path: Path
) -> None:
    text = settings[0].settings.read_text()
    settings[0].settings.write_text(text.replace("device: cpu", "device: cuda:7"))
    with pytest.raises(LaunchError, match=r"north-trainer(.|\n)*device: found 'cuda:7'"):
        run_local(make_study(rounds=1), settings, tmp_path / "run")
    assert not (tmp_path / "run/rounds.jsonl").exists()


def test_what_a_trainer_logs_reaches_its_own_file_alone(
    settings: list[LocalSite],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    trainer = HostedTrainer(settings[0].settings, tmp_path / "logs" / "north.log")
    trainer.answer(b"nonsense")
    assert "nonsense" not in caplog.text
    assert caplog.text == ""
    assert (tmp_path / "logs" / "north.log").read_text()


def test_neither_flower_nor_a_server_of_grpc_is_needed() -> None:
    code = (
        "import sys; sys.modules['flwr'] = None; sys.modules['grpc'] = None\n"
        "import client.hosted, consilium_fl, server.simulation.inline; consilium_fl.simulate"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
