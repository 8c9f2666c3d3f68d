"""A local federation before its first process: ports, folders, names."""

import logging
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import pytest

from common.config import StudyConfig
from common.errors import LaunchError
from server import bundle, local
from server.local import LocalSite, run_local
from server.processes import Processes, claim_port

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

    def start(*arguments: object) -> None:
        ports.append(arguments[-1])  # type: ignore[arg-type]
        raise StoppedShort

    monkeypatch.setattr(local, "_start", start)
    return ports


@pytest.fixture
def sites(tmp_path: Path) -> list[LocalSite]:
    return [LocalSite(name, tmp_path / f"{name}.yaml") for name in ("north", "south")]


def test_if_the_usual_port_is_taken_another_is_chosen_and_said(
    sites: list[LocalSite], make_study: MakeStudy, tmp_path: Path, taken_port: int,
    started_on: list[int], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(local, "FLEET_PORT", taken_port)
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
    monkeypatch.setattr(local, "FLEET_PORT", free)
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

    def start(_study: object, started: dict[str, tuple[Path, Path]], *_: object) -> None:
        seen.update({name: socket for name, (_, socket) in started.items()})
        folders = {socket.parent for socket in seen.values()}
        assert [folder.stat().st_mode & 0o777 for folder in folders] == [0o700]
        raise StoppedShort

    monkeypatch.setattr(local, "_start", start)
    with pytest.raises(StoppedShort):
        run_local(make_study(), sites, tmp_path / "run", port=None)
    assert seen.keys() == {"north", "south"}
    assert not any(socket.parent.exists() for socket in seen.values())


def test_sites_with_long_names_that_begin_alike_have_sockets_of_their_own() -> None:
    names = ["x" * 62 + end for end in "ab"]
    with local._sockets(names) as sockets:
        assert len(set(sockets.values())) == 2
        longest = max(len(str(socket)) for socket in sockets.values()) - len(tempfile.gettempdir())
        assert longest < 40


class Ended(Processes):
    """Processes of which some have ended."""

    codes: Mapping[str, int]

    def ended(self) -> dict[str, int]:
        return dict(self.codes)


@pytest.mark.parametrize(
    ("ended", "fatal"),
    [
        (["north-trainer"], False),
        (["north-trainer", "north-gateway"], False),
        (["unseen-trainer"], False),
        (["north-trainer", "south-gateway"], True),
        (["superlink"], True),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_study_goes_on_without_a_site_as_long_as_there_are_enough(
    make_study: MakeStudy, tmp_path: Path, ended: list[str], fatal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = make_study(sites={"train": ("north", "south"), "evaluate": ("unseen",), "required": 1})
    processes = Ended(tmp_path / "logs", {})
    processes.codes = dict.fromkeys(ended, -9)
    monkeypatch.setattr("server.processes.time.sleep", lambda _: None)
    looks = iter([None] * 3)

    def wait_until(ready: Callable[[], bool], what: str, _s: float, check: Callable[[], None] | None = None):
        if check is not None:
            for _ in looks:
                check()
            raise StoppedShort

    monkeypatch.setattr(processes, "wait_until", wait_until)
    with pytest.raises(LaunchError if fatal else StoppedShort):
        local._follow(study, tmp_path, processes, 0)


def test_nothing_phones_home_and_flowers_files_stay_in_the_run(tmp_path: Path) -> None:
    env = local._environment(tmp_path / "runs" / "a" / "federation", {"HOME": "/home/x", "PATH": "/bin"})
    assert env["FLWR_TELEMETRY_ENABLED"] == "0"
    assert env["FLWR_DISABLE_UPDATE_CHECK"] == "1"
    assert env["FLWR_HOME"] == str(tmp_path / "runs" / "a" / "federation" / "flower")
    assert env["PATH"].endswith(":/bin")
    assert env["HOME"] == "/home/x"


def test_gateways_get_the_files_that_a_gateway_needs_and_no_others(tmp_path: Path) -> None:
    app = bundle.stage(tmp_path / "app")
    assert {path.name for path in (app / "client").iterdir()} == {"__init__.py", "app.py", "link.py"}
    assert {path.name for path in app.iterdir()} == {
        "client",
        "common",
        "server",
        "pyproject.toml",
        "LICENSE",
    }
    assert not list(app.rglob("*.pyc"))
    size = sum(path.stat().st_size for path in app.rglob("*") if path.is_file())
    assert size < 10 * 2**20  # Flower's limit
