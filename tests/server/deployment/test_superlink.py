"""A SuperLink that dies, and what is enrolled and started again when it is back."""

import logging
import os
import socket
import sys
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from flwr.cli import config_migration
from flwr.common.config import parse_config_args
from sqlalchemy import create_engine, text

from common.config import StudyConfig
from common.errors import LaunchError
from common.network import proxies
from common.polling import wait_until
from common.processes import flower
from common.processes.launcher import Command, Processes
from common.processes.ports import taken
from common.wire.gateway_calls import PIECE_BYTES
from server.deployment import flower_superlink, site_keys, superlink
from server.deployment.certificates import ServerIdentity
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


def test_a_superlink_with_its_database_comes_back_without_enrolling_again(sleepers) -> None:
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


def test_a_gateway_that_was_given_up_stays_so_when_keys_are_enrolled_again(sleepers) -> None:
    all_of_it = sleepers([False])
    all_of_it.federation._supervision._given_up.add("north-gateway")
    all_of_it.federation._database.unlink()
    for name in ("superlink", "north-gateway"):
        all_of_it.processes.end(name)
    assert [all_of_it.look(), all_of_it.look(after_s=1)] == [False, True]
    assert all_of_it.processes.ended().keys() == {"north-gateway"}


def test_a_checkout_in_the_working_directory_is_not_taken_for_the_connection(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Flower then asks to migrate that folder's settings, and registers no key."""
    for folder in ("consilium", "server", "client", "skin"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "pyproject.toml").touch()
    monkeypatch.chdir(tmp_path)
    assert config_migration._is_legacy_usage("consilium", [])  # what this test is about
    assert not config_migration._is_legacy_usage(superlink.CONNECTION, [])


# --- where it listens, and what it is given ---------------------------------------------------


def test_an_address_of_another_machine_is_named_before_anything_starts(
    federation: LocalFederation,
) -> None:
    federation.fleet_host = "203.0.113.77"
    with pytest.raises(
        LaunchError, match=r"cannot listen on 203\.0\.113\.77:9092: 203\.0\.113\.77 is not an address of this"
    ):
        federation.start_superlink(ServerIdentity(Path("ca"), Path("pem"), Path("key")))
    assert federation.processes.ended() == {}


def test_a_port_that_another_process_has_is_named_before_anything_starts(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("server.deployment.superlink._ENDING_S", 0.0)
    with socket.create_server(("127.0.0.1", 0)) as other:
        federation.fleet_port = port = other.getsockname()[1]
        with pytest.raises(LaunchError, match=f"cannot listen on 127.0.0.1:{port}: port {port} is taken"):
            federation.start_superlink(ServerIdentity(Path("ca"), Path("pem"), Path("key")))


def test_a_port_that_a_killed_server_still_has_is_waited_for(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its processes take a moment to end, and a service manager starts the next server at once."""
    answers = [taken(9092), taken(9092), None, None]
    monkeypatch.setattr("server.deployment.superlink.obstacle", lambda *_: answers.pop(0))
    assert federation._obstacle() is None
    assert answers == []


def test_the_superlink_gives_pieces_of_weights_back_to_the_system(monkeypatch: pytest.MonkeyPatch) -> None:
    """Or it keeps what each site's thread once needed: 100 MiB more with 16 sites of 16 MiB."""
    for name in ("MALLOC_ARENA_MAX", "MALLOC_MMAP_THRESHOLD_"):
        monkeypatch.setenv(name, "0")
    asked = dict[int, int]()
    libc = SimpleNamespace(mallopt=asked.__setitem__)
    monkeypatch.setattr(flower_superlink, "ctypes", SimpleNamespace(CDLL=lambda _: libc))
    flower_superlink.give_memory_back()
    # malloc.h: M_ARENA_MAX is -8, M_MMAP_THRESHOLD -3; children read the same from their environment
    assert asked == {-8: int(os.environ["MALLOC_ARENA_MAX"]), -3: int(os.environ["MALLOC_MMAP_THRESHOLD_"])}
    assert 0 < asked[-3] < PIECE_BYTES
    assert 0 < asked[-8] < 16


@pytest.mark.parametrize("name", ["what?", "100%41", "a#b", "it's", 'say "so"', "a b&c=d", "Köln", "a@b:c"])
def test_the_database_lies_in_a_folder_of_any_name(tmp_path: Path, name: str) -> None:
    """SQLAlchemy reads an address: of the plain path it took `%41` for an A, and everything after ? for options."""
    (tmp_path / name).mkdir()
    database = (tmp_path / name / "superlink.db").resolve()
    engine = create_engine(superlink._sqlite_url(database))
    with engine.connect() as connection:
        connection.execute(text("CREATE TABLE run (run_id INTEGER)"))
    engine.dispose()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert site_keys._rows(database, "SELECT * FROM run") == []
    assert database.exists()


@pytest.mark.parametrize("host", ["127.0.0.2", "0.0.0.0"])
def test_readiness_is_asked_for_where_it_listens(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch, host: str
) -> None:
    """Version 0.1.0 asked 127.0.0.1 alone, and waited for ever for a server on another address."""
    monkeypatch.setattr(LocalFederation, "has_superlink", True)
    with socket.create_server((host, 0)) as fleet, socket.create_server(("127.0.0.1", 0)) as control:
        federation.fleet_host, federation.fleet_port = host, fleet.getsockname()[1]
        federation._control_port = control.getsockname()[1]
        assert federation._is_ready()


def test_ports_that_answer_are_not_ready_without_the_superlink(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(LocalFederation, "has_superlink", False)
    with socket.create_server(("127.0.0.1", 0)) as other:
        federation.fleet_port = federation._control_port = other.getsockname()[1]
        assert not federation._is_ready()


def test_a_path_with_quotes_is_written_as_toml_has_it(tmp_path: Path) -> None:
    keys = tmp_path / 'it\'s "mine"\\ü'
    superlink._write_connection(tmp_path, 9093, keys / "ca.pem")
    connection = tomllib.loads((tmp_path / "config.toml").read_text(encoding="utf-8"))["superlink"][
        superlink.CONNECTION
    ]
    assert connection == {"address": "127.0.0.1:9093", "root-certificates": str(keys / "ca.pem")}


def test_a_study_starts_from_a_folder_with_any_character_in_its_name(
    federation: LocalFederation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commands: list[list[str]] = []

    def run(_: Processes, command: Command, deadline_s: float, **__: object) -> str:
        commands.append([str(part) for part in command])
        return '{"run-id": 7}'

    monkeypatch.setattr(Processes, "run", run)
    settings = tmp_path / 'it\'s "mine"\\ü =' / "server.yaml"
    assert federation.run(settings) == 7
    ((*_, option, config, _, _),) = commands
    assert option == "--run-config"
    assert parse_config_args([config]) == {"server": str(settings)}


def test_trainers_keep_the_way_out_of_this_machine_and_flower_gets_none(
    federation: LocalFederation, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A study may name weights that a trainer fetches; loopback goes through no proxy in either."""
    monkeypatch.setenv("https_proxy", "http://web.example:3128")
    federation.processes = Processes(tmp_path / "logs", flower.environment(tmp_path, os.environ))
    show = [
        sys.executable,
        "-c",
        "import os; print(os.environ.get('https_proxy'), os.environ.get('no_proxy'))",
    ]
    monkeypatch.setattr(LocalFederation, "trainer_command", lambda *_: show)
    federation.processes.start("superlink", show)
    federation.processes.start("north-trainer", show, proxies.sparing_loopback(os.environ))
    try:
        assert wait_until(lambda: len(federation.processes.ended()) == 2, 60)
        said = {name: federation.processes.tail(name).split() for name in ("superlink", "north-trainer")}
    finally:
        federation.processes.stop()
    assert said["superlink"][-2:] == ["None", "None"]
    assert said["north-trainer"][-2] == "http://web.example:3128"
    assert {"localhost", "127.0.0.1", "::1"} <= set(said["north-trainer"][-1].split(","))
