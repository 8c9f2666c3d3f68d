"""Runs of a grid side by side: the same bits, a row for each that fails, and nothing left behind."""

import csv
import os
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
import yaml

from client.hosted import HostedTrainer
from common.config import StudyConfig
from common.errors import ConfigError
from common.polling import wait_until
from common.processes import forked, watchdog
from common.weights import digest, load_file
from server.report.write import append_round
from server.simulation import jobs, launch
from server.simulation.engines import Engine, Inline, Processes, Ray
from server.simulation.grid import run_grid
from server.simulation.jobs import Ended, Outcome
from server.simulation.pace import Pace
from server.state import RoundState
from server.storage.history import read_rounds
from server.storage.status import read_status
from tests.conftest import STUDY
from tests.server.simulation import trainers_of_tests
from tests.server.simulation.trainers_of_tests import Deadly, Held

MakeSitesDir = Callable[..., Path]
CtrlC = Callable[[Callable[[], bool]], list[int]]


@pytest.fixture
def sites(make_sites_dir: MakeSitesDir) -> Path:
    """A folder of two sites, with one thread each."""
    return make_sites_dir(north=6, south=5)


@pytest.fixture
def grid_file(tmp_path: Path) -> Callable[..., Path]:
    """`grid_file(a={...}, b={...})`: a grid of the tiny study with these variants."""

    def write(**variants: Any) -> Path:
        base = {key: list(value) if isinstance(value, tuple) else value for key, value in STUDY.items()}
        del base["name"], base["seed"]
        base["sites"] = {"train": ["north", "south"]}
        path = tmp_path / "grid.yaml"
        grid = {"name": "side", "study": base, "variants": variants}
        path.write_text(yaml.safe_dump(grid, sort_keys=False))
        return path

    return write


def scores_of(folder: Path) -> list[dict[str, str]]:
    """comparison.csv without what a clock says."""
    with (folder / "comparison.csv").open(newline="") as file:
        return [
            {key: value for key, value in row.items() if key != "minutes"} for row in csv.DictReader(file)
        ]


def test_two_runs_at_a_time_end_with_the_bits_of_one_after_the_other(
    grid_file: Callable[..., Path], sites: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    grid = grid_file(slow={}, quick={"local": {"optimizer": {"lr": 0.2}}})
    one, rows = run_grid(grid, sites, tmp_path / "one", engine=Inline(HostedTrainer))
    with caplog.at_level("INFO", "consilium"):
        two, side = run_grid(grid, sites, tmp_path / "two", engine=Inline(HostedTrainer), jobs=2)
    assert [row.failure for row in (*rows, *side)] == [None] * 4
    assert [row.variant for row in side] == ["slow", "quick"]
    weights = {
        folder: [digest(load_file(folder / name / "weights.safetensors")[0]) for name in ("slow", "quick")]
        for folder in (one, two)
    }
    assert weights[one] == weights[two]
    assert weights[one][0] != weights[one][1]
    assert scores_of(one) == scores_of(two)
    assert "2 runs at a time" in caplog.text
    assert "quick finished after" in caplog.text
    assert "(2 of 2 runs ended)" in caplog.text
    assert "round 2" in (two / "quick.log").read_text()
    assert (one / "quick/sites.json").read_text() == (two / "quick/sites.json").read_text()


def test_a_run_whose_process_dies_is_a_row_and_the_others_go_on(
    grid_file: Callable[..., Path], sites: Path, tmp_path: Path
) -> None:
    grid = grid_file(dies={}, lost={"sites": {"train": ["north", "nowhere"]}}, lives={})
    folder, rows = run_grid(grid, sites, tmp_path / "runs", engine=Inline(Deadly), jobs=3)
    assert [row.failure for row in rows] == [
        f"its process ended with exit code 3; {folder / 'dies.log'} tells why",
        "the study names nowhere, but there are settings only for north, south",
        None,
    ]
    assert "failed: its process ended with exit code 3" in (folder / "comparison.md").read_text()


def test_ctrl_c_ends_every_run_and_the_next_start_goes_on_with_them(
    grid_file: Callable[..., Path],
    sites: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    press_ctrl_c: CtrlC,
) -> None:
    grid, held = grid_file(a={}, b={}), tmp_path / "held"
    held.mkdir()
    monkeypatch.setenv(trainers_of_tests.FOLDER, str(held))
    children = press_ctrl_c(lambda: (held / "a").exists() and (held / "b").exists())
    with pytest.raises(KeyboardInterrupt):
        run_grid(grid, sites, tmp_path / "runs", engine=Inline(Held), jobs=2)
    assert len(children) >= 2
    # Both are forks of one process, which has imported torch, where there can be forks.
    (parent,) = {int((held / name).read_text()) for name in ("a", "b")}
    assert (parent in children) == (forked._missing() is None)
    assert not [number for number in children if psutil.pid_exists(number)]
    folder = tmp_path / "runs" / "side"
    stopped = [read_status(folder / name) for name in ("a", "b")]
    assert [now.status for now in stopped if now] == ["crashed", "crashed"]
    (held / "go").touch()
    _, rows = run_grid(grid, sites, tmp_path / "runs", engine=Inline(Held), jobs=2)
    assert [row.failure for row in rows] == [None, None]
    over = [read_status(folder / name) for name in ("a", "b")]
    assert [now.resumed_after for now in over if now] == [(1,), (1,)]
    assert [record.round for record in read_rounds(folder / "a")] == [1, 2, 3]
    # The same as without the interruption.
    whole, _ = run_grid(grid, sites, tmp_path / "whole", engine=Inline(HostedTrainer))
    assert scores_of(folder) == scores_of(whole)


ENDS_ITS_OWN = """
import signal, sys, time
from pathlib import Path
folder = Path(__file__).parent
def end(*_):
    (folder / "asked").touch()
    while not (folder / "its own have ended").exists():
        time.sleep(0.02)
    (folder / "ended").touch()
    raise SystemExit(0)
signal.signal(signal.SIGTERM, end)
(folder / "up").touch()
time.sleep(600)
"""


def test_a_run_that_is_stopped_has_the_time_to_end_its_own_processes(
    sites: Path, tmp_path: Path, make_study: Callable[..., StudyConfig], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "ends_its_own.py").write_text(ENDS_ITS_OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(jobs, "_PROGRAM", "ends_its_own")
    run = jobs._start(
        jobs._request(make_study(name="a"), sites, tmp_path / "a", Inline(HostedTrainer)),
        jobs.Place({}), tmp_path / "runs", tmp_path, {},
    )  # fmt: skip
    stopping = threading.Thread(target=run.processes.stop)
    try:
        assert run.processes.grace_s >= 2 * watchdog.GRACE_S  # by request, then by force
        assert wait_until((tmp_path / "up").exists, 60)
    finally:
        stopping.start()
    assert wait_until((tmp_path / "asked").exists, 60)
    (tmp_path / "its own have ended").touch()
    stopping.join()
    assert (tmp_path / "ended").exists()


@pytest.mark.slow
def test_two_federations_of_processes_stand_beside_each_other(
    grid_file: Callable[..., Path], sites: Path, tmp_path: Path
) -> None:
    folder, rows = run_grid(grid_file(a={}, b={}), sites, tmp_path / "runs", jobs=2)
    assert [row.failure for row in rows] == [None, None]
    first, second = (digest(load_file(folder / name / "weights.safetensors")[0]) for name in ("a", "b"))
    assert first == second  # the same study under two names
    assert (folder / "a/sites.json").read_text() == (folder / "b/sites.json").read_text()


# --- what is said on the way -----------------------------------------------------------------


def test_the_time_left_counts_the_runs_at_a_time_and_the_rounds_that_are_done(
    make_study: Callable[..., StudyConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    waiting = {name: make_study(name=name, rounds=4) for name in ("b", "c")}
    pace = Pace(tmp_path, waiting, jobs=2)
    (tmp_path / "b").mkdir()
    append_round(tmp_path / "b", RoundState(1, {}, {}, {}), waiting["b"])
    with caplog.at_level("INFO", "consilium"):
        pace.add(make_study(name="a", rounds=4), Ended("a", Outcome(failure=None), 120.0, under_way=("b",)))
    # 4 rounds in 120 s are 30 s a round; 3 rounds of b and 4 of c are 210 s, and half of that for two at a time
    assert "a finished after 2 min (1 of 3 runs ended)" in caplog.text
    assert "about 105 s left for 2 runs of 7 rounds, 2 at a time, as long as the rounds so far" in caplog.text


def test_a_run_whose_record_cannot_be_read_counts_whole(
    make_study: Callable[..., StudyConfig], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "rounds.jsonl").write_text('{"round": 1}\n')  # of another version
    with caplog.at_level("INFO", "consilium"):
        Pace(tmp_path, {"b": make_study(name="b", rounds=4)}, jobs=2).add(
            make_study(name="a", rounds=4), Ended("a", Outcome(failure=None), 40.0, under_way=("b",))
        )
    assert "about 40 s left for 1 run of 4 rounds" in caplog.text


# --- what a run has of the machine -----------------------------------------------------------


def test_runs_share_the_cores_and_take_turns_over_the_gpus(
    sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(16)))
    taken = jobs.places(20, 3, sites)
    # 16 cores for 3 runs: 5 threads each
    assert [place.env["OMP_NUM_THREADS"] for place in taken] == ["5", "5", "5"]
    assert [place.env["CUDA_VISIBLE_DEVICES"] for place in taken] == ["4", "6", "4"]
    assert jobs.describe(taken, 3, Path("runs/side")) == (
        "3 runs at a time; each with 5 CPU threads unless its sites say another number; they take turns over 2 GPUs; "
        "each writes to runs/side/RUN.log"
    )


@pytest.mark.parametrize(("num_cores", "threads"), [(16, "8"), (None, "1")])
def test_a_system_that_does_not_say_which_cores_are_free_to_use_has_all_of_them(
    num_cores: int | None, threads: str, sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delattr(os, "sched_getaffinity", raising=False)  # macOS has none
    monkeypatch.setattr(os, "cpu_count", lambda: num_cores)
    assert [place.env["OMP_NUM_THREADS"] for place in jobs.places(20, 2, sites)] == [threads] * 2


def test_what_a_person_set_stays(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0,1")
    with (sites / "north.yaml").open("a") as file:
        file.write("# device: cuda:1\n")  # another one, where a process sees one GPU alone
    assert [place.env for place in jobs.places(20, 2, sites)] == [{}, {}]


def test_one_gpu_is_not_named(sites: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3")
    assert "CUDA_VISIBLE_DEVICES" not in jobs.places(2, 2, sites)[0].env


def test_more_jobs_than_runs_are_as_many_as_runs_and_it_is_said(
    sites: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    taken = jobs.places(2, 8, sites)
    assert len(taken) == 2
    assert jobs.describe(taken, 8, Path("runs")).startswith("2 runs at a time, not 8: there are no more;")


@pytest.mark.parametrize(
    ("number", "engine", "said"),
    [
        (0, Processes(), "jobs is 0; give the number of runs at the same time, 1 or more"),
        (-3, Inline(HostedTrainer), "jobs is -3; give the number"),
        (2, Processes(9100), "port 9100 is for one run at a time, and jobs is 2"),
        (2, Ray(HostedTrainer, 4), "the engine `ray` spreads the sites of one run over the cores already"),
    ],
)
def test_a_number_of_jobs_that_cannot_be_is_refused_before_anything_runs(
    number: int,
    engine: Engine,
    said: str,
    grid_file: Callable[..., Path],
    sites: Path,
    tmp_path: Path,
) -> None:
    with pytest.raises(ConfigError, match=said):
        run_grid(grid_file(a={}), sites, tmp_path / "runs", engine=engine, jobs=number)
    assert not (tmp_path / "runs").exists()


def test_two_servers_that_are_given_one_free_port_do_not_both_take_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    taken, other = launch.free_ports(2)
    first = launch.claim_port(taken)
    assert first is not None
    offered = iter([[taken], [other]])
    monkeypatch.setattr(launch, "free_ports", lambda _: next(offered))
    monkeypatch.setattr(launch, "obstacle", lambda port: f"port {port} is taken by another process")
    with first, launch._claimed_port(None) as port:
        assert port == other
