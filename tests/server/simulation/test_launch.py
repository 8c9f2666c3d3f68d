"""A local federation before its first process: ports, folders, names."""

import logging
import os
import socket
import sys
import tempfile
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace

import pytest

from common import log
from common.config import StudyConfig
from common.errors import LaunchError
from common.network import unix_sockets
from common.processes.launcher import Interrupted, Processes
from common.processes.ports import claim_port
from server.simulation import launch
from server.simulation.launch import LocalSite, run_local
from server.simulation.local_federation import LocalFederation
from server.state import Approvals, SiteApproval
from server.storage import status

MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(autouse=True)
def _log_to_caplog(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)


@pytest.fixture
def taken_port() -> Iterator[int]:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


class StoppedShort(Exception):
    """In place of the first process."""


@pytest.fixture
def started_on(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The port of each start; nothing is started."""
    ports: list[int] = []

    def start(federation: LocalFederation) -> None:
        ports.append(federation.fleet_port)
        raise StoppedShort

    monkeypatch.setattr(LocalFederation, "start", start)
    return ports


@pytest.fixture
def sites(tmp_path: Path) -> list[LocalSite]:
    return [LocalSite(name, tmp_path / f"{name}.yaml") for name in ("north", "south")]


def test_if_the_usual_port_is_taken_another_is_chosen_and_said(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, taken_port: int,
    started_on: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(launch, "FLEET_PORT", taken_port)
    with pytest.raises(StoppedShort):
        run_local(make_study(), sites, tmp_path / "run")
    (port,) = started_on
    assert port != taken_port
    assert f"port {taken_port} is taken by another process; the server listens on {port}" in caplog.text


def test_a_port_that_another_launcher_is_about_to_use_counts_as_taken(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, taken_port: int,
    started_on: list[int], monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    free = taken_port + 1 if taken_port < 65535 else taken_port - 1
    monkeypatch.setattr(launch, "FLEET_PORT", free)
    claim = claim_port(free)
    assert claim is not None
    with claim, pytest.raises(StoppedShort):
        run_local(make_study(), sites, tmp_path / "run")
    assert started_on != [free]


def test_a_port_that_was_asked_for_is_taken_or_nothing_starts(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, taken_port: int, started_on: list[int]
) -> None:
    with pytest.raises(LaunchError, match=f"port {taken_port} is taken.*--port"):
        run_local(make_study(), sites, tmp_path / "run", port=taken_port)
    assert started_on == []


def test_a_refused_start_leaves_an_earlier_run_where_it_is(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, taken_port: int
) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "weights.safetensors").write_text("precious")
    with pytest.raises(LaunchError):
        run_local(make_study(), sites, tmp_path / "run", port=taken_port)
    assert (tmp_path / "run" / "weights.safetensors").read_text() == "precious"


def test_an_earlier_run_is_set_aside_and_never_written_over(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, started_on: list[int],
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    run = tmp_path / "runs" / "tiny"
    for number in range(3):
        run.mkdir(parents=True, exist_ok=True)
        (run / "weights.safetensors").write_text(f"run {number}")
        with pytest.raises(StoppedShort):
            run_local(make_study(), sites, run)
    kept = {
        path.parent.name: path.read_text()
        for path in sorted((tmp_path / "runs").glob("*/weights.safetensors"))
    }
    assert kept == {"tiny.1": "run 0", "tiny.2": "run 1", "tiny.3": "run 2"}
    assert "an earlier run was there; it is now" in caplog.text


def test_a_site_without_settings_is_named(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, started_on: list[int]
) -> None:
    study = make_study(sites={"train": ("north", "west"), "evaluate": ("unseen",)})
    with pytest.raises(LaunchError, match="names unseen, west, but there are settings only for north, south"):
        run_local(study, sites, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_only_a_site_of_the_study_can_be_left_out(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path
) -> None:
    with pytest.raises(LaunchError, match="west cannot be left out"):
        run_local(make_study(), sites, tmp_path / "run", leave_out=["west"])


def test_the_folder_of_the_sockets_is_this_users_only_and_goes_with_the_run(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Path] = {}

    def start(federation: LocalFederation) -> None:
        seen.update({name: socket for name, (_, socket) in federation.sites.items()})
        folders = {socket.parent for socket in seen.values()}
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700]
        raise StoppedShort

    monkeypatch.setattr(LocalFederation, "start", start)
    with pytest.raises(StoppedShort):
        run_local(make_study(), sites, tmp_path / "run", port=None)
    assert seen.keys() == {"north", "south"}
    assert not any(socket.parent.exists() for socket in seen.values())


def test_sites_with_long_names_that_begin_alike_have_sockets_of_their_own() -> None:
    names = ["x" * 62 + end for end in "ab"]
    with launch._sockets(names) as sockets:
        assert len(set(sockets.values())) == 2
        longest = max(len(str(socket)) for socket in sockets.values()) - len(tempfile.gettempdir())
        assert longest < 40


@pytest.mark.parametrize(
    ("end", "stage", "reason"),
    [
        (LaunchError("north-trainer is given up"), "failed", "north-trainer is given up"),
        (Interrupted(2), "crashed", "it was stopped; `consilium-server resume` goes on with it"),
    ],
    ids=["given up", "Ctrl-C"],
)
def test_however_a_launch_ends_the_status_says_why(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    end: BaseException, stage: str, reason: str,
) -> None:  # fmt: skip
    def start(_: LocalFederation) -> None:
        now = status.read_status(tmp_path / "run")
        assert now is not None
        assert now.or_died().status == "starting"
        raise end

    monkeypatch.setattr(LocalFederation, "start", start)
    with pytest.raises(type(end)):
        run_local(make_study(), sites, tmp_path / "run")
    now = status.read_status(tmp_path / "run")
    assert now is not None
    assert (now.status, now.reason) == (stage, reason)


def test_a_study_that_finished_stays_finished_when_its_launcher_is_stopped(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: LocalFederation) -> None:
        status.set_status(tmp_path / "run", "finished", "3 rounds")
        raise Interrupted(2)

    monkeypatch.setattr(LocalFederation, "start", start)
    with pytest.raises(Interrupted):
        run_local(make_study(), sites, tmp_path / "run")
    now = status.read_status(tmp_path / "run")
    assert now is not None
    assert now.status == "finished"


def test_what_a_launcher_says_is_in_the_runs_folder(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def start(_: LocalFederation) -> None:
        log.warn("north-trainer was ended by SIGKILL")
        raise StoppedShort

    monkeypatch.setattr(LocalFederation, "start", start)
    with pytest.raises(StoppedShort):
        run_local(make_study(), sites, tmp_path / "run")
    log.warn("after the run")
    told = (tmp_path / "run" / "launcher.log").read_text().splitlines()
    assert [line[10:] for line in told] == ["WARNING: north-trainer was ended by SIGKILL"]


@pytest.fixture
def federation(make_study: MakeStudy, tmp_path: Path) -> LocalFederation:
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("unseen",), "required": 1})
    sites = {name: (tmp_path / f"{name}.yaml", tmp_path / f"{name}.sock") for name in study.sites.all}
    processes = Processes(tmp_path / "logs", dict(os.environ))
    return LocalFederation(
        study=study, sites=sites, work=tmp_path, processes=processes, fleet_port=9092,
        write_settings=lambda _: tmp_path / "server.yaml",
    )  # fmt: skip


def test_each_trainer_knows_its_turn_for_a_gpu(federation: LocalFederation, tmp_path: Path) -> None:
    federation.sites = {f"s{number}": (tmp_path / "a.yaml", tmp_path / "a.sock") for number in range(8)}
    commands = [federation.trainer_command(name, *paths) for name, paths in federation.sites.items()]
    assert [list(command)[-2:] for command in commands] == [["--turn", str(turn)] for turn in range(8)]


@pytest.mark.parametrize(
    ("lost", "fatal"),
    [
        (["north-trainer"], False),
        (["north-trainer", "north-gateway"], False),
        (["unseen-trainer"], False),
        (["north-trainer", "south-gateway"], True),
        (["superlink"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_study_goes_on_without_what_was_given_up_as_long_as_there_are_enough(
    federation: LocalFederation, lost: list[str], fatal: bool
) -> None:
    for name in lost:
        federation._supervision._given_up.add(name)
    if fatal:
        with pytest.raises(LaunchError, match=f"{lost[-1]} ended 11 times and is given up"):
            federation._lost(lost[-1])
    else:
        federation._lost(lost[-1])


def test_a_trainer_that_dies_is_started_again_and_named(
    federation: LocalFederation, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [100.0]
    monkeypatch.setattr("server.deployment.superlink.time", SimpleNamespace(monotonic=lambda: clock[0]))
    sleeper = [sys.executable, "-c", "import time; time.sleep(60)"]
    federation.processes.start("north-trainer", sleeper)
    try:
        federation.processes.end("north-trainer")
        assert federation.look() is False
        assert (
            "north-trainer was ended by SIGKILL; starting it again in 1 s (restart 1 of at most 10)"
            in caplog.text
        )
        clock[0] += 1
        assert federation.look() is False
        assert federation.processes.ended() == {}
    finally:
        federation.processes.stop()


def test_sockets_have_a_short_place_however_deep_the_folder_for_temporary_files_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    deep = tmp_path / ("d" * 100)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))
    with launch._sockets(["north", "south"]) as sockets:
        assert all(unix_sockets.too_long(path) is None for path in sockets.values())


def test_without_a_short_place_for_sockets_nothing_starts(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, started_on: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / ("d" * 100)))
    monkeypatch.setattr(unix_sockets, "_SHORT_FOLDERS", ())
    with pytest.raises(
        LaunchError, match=r"no place for the trainers' sockets.*set TMPDIR to a short folder"
    ):
        run_local(make_study(), sites, tmp_path / "run")
    assert started_on == []


@pytest.mark.parametrize("port", [0, 65536])
def test_a_number_that_is_no_port_is_refused(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, started_on: list[int], port: int
) -> None:
    with pytest.raises(LaunchError, match=f"{port} is not a port"):
        run_local(make_study(), sites, tmp_path / "run", port=port)
    assert started_on == []


def test_a_site_that_asks_a_person_gets_the_command_for_this_machine_once(
    make_study: MakeStudy, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    federation = LocalFederation(
        study=make_study(),
        sites={"north": (tmp_path / "north.yaml", tmp_path / "0.sock")},
        work=tmp_path,
        processes=Processes(tmp_path / "logs", {}),
        fleet_port=1,
        write_settings=lambda _: tmp_path / "server.yaml",
    )
    now = datetime(2026, 3, 1, tzinfo=UTC)
    waiting = Approvals(since=now, until=None, sites={"north": SiteApproval(answer="undecided", since=now)})
    for approvals in (None, waiting, waiting):
        federation.show_approvals(approvals)
    told = [line for line in caplog.messages if "consilium-site approve" in line]
    assert len(told) == 1
    assert f"`consilium-site approve {tmp_path / 'north.yaml'} tiny`" in told[0]
