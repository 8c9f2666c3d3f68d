"""The commands on a server's folder, without a SuperLink."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from common import keys
from common.config import StudyConfig
from common.processes.launcher import Interrupted
from common.settings import to_yaml
from server.cli import main, operate
from server.deployment import daemon, queue, server_overview, site_keys
from server.deployment.folder import ServerFolder, open_folder
from server.deployment.study_runner import StudyEnd
from server.provisioning import startup_kit
from server.storage import status
from server.storage.requests import take_readmitted


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    about = {"name": "f", "server": {"hosts": ["s.example"]}, "sites": {"north": {}, "south": {}}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    list(startup_kit.provision(tmp_path / "federation.yaml", tmp_path / "server"))
    made = open_folder(tmp_path / "server")
    for site in ("north", "south"):
        site_keys.enrol(made, site, keys.make_site_key(tmp_path / "made" / site, "site").public)
    return made


@pytest.fixture
def named(study: StudyConfig) -> Callable[[str], StudyConfig]:
    sites = study.sites.model_copy(update={"train": ("north", "south"), "evaluate": (), "required": 1})
    return lambda name: study.model_copy(update={"name": name, "sites": sites})


@pytest.fixture
def command(folder: ServerFolder, capsys) -> Callable[..., tuple[int, str]]:
    def run(name: str, *arguments: object) -> tuple[int, str]:
        code = main.main([name, str(folder.root), *map(str, arguments)])
        told = capsys.readouterr()
        return code, told.out + told.err

    return run


def test_a_study_of_a_site_without_a_key_is_not_taken(command, folder, named, tmp_path) -> None:
    site_keys.revoke(folder, "south")
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(named("a").model_dump(mode="json")))
    code, said = command("run", tmp_path / "s.yaml")
    assert code == 1
    assert "the study names south, whose keys are not enrolled" in said
    assert queue.waiting(folder) == []


def test_a_study_waits_and_it_is_said_that_no_server_runs(command, folder, named, tmp_path) -> None:
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(named("a").model_dump(mode="json")))
    code, said = command("run", tmp_path / "s.yaml")
    assert code == 0
    assert "a waits for its turn, it is next; no server runs here yet" in said
    code, said = command("status")
    assert code == 1
    assert said.splitlines()[:3] == [
        "f: the server is NOT running; `consilium-server up` starts it",
        "0 of 2 enrolled sites online",
        "waiting: a",
    ]


def test_waiting_for_a_study_ends_if_no_server_runs(command, folder, named, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(operate, "_WAIT_S", 0.0)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(named("a").model_dump(mode="json")))
    code, said = command("run", tmp_path / "s.yaml", "--wait")
    assert code == 1
    assert "no server has run here for 0 s; study a goes on with the next" in said
    assert [entry.name for entry in queue.waiting(folder)] == ["a"]


def test_ctrl_c_while_it_waits_ends_the_waiting_and_not_the_study(
    command, folder, named, tmp_path, monkeypatch
) -> None:
    def interrupt(*_: object) -> int:
        raise Interrupted(2)

    monkeypatch.setattr(operate, "_wait", interrupt)
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(named("a").model_dump(mode="json")))
    code, said = command("run", tmp_path / "s.yaml", "--wait")
    assert code == 130
    assert f"study a goes on at the server: `consilium-server logs {folder.root} -f` shows it" in said
    assert "every process that was started has ended" not in said
    assert [entry.name for entry in queue.waiting(folder)] == ["a"]


@pytest.mark.parametrize(
    ("round_", "said"), [(None, "it had no round, so `consilium-server run"), (2, "`consilium-server resume")]
)
def test_a_stopped_study_is_only_said_to_go_on_if_it_can(
    command, folder, named, monkeypatch, round_: int | None, said: str
) -> None:
    queue.put(folder, named("a"))
    entry = queue.begin(folder, queue.waiting(folder)[0])
    (folder.runs / "a" / "checkpoints").mkdir(parents=True)
    if round_ is not None:
        (folder.runs / "a" / "checkpoints" / f"round-{round_:04}.safetensors").touch()
    monkeypatch.setattr(ServerFolder, "is_up", True)
    monkeypatch.setattr(operate, "_wait_until", lambda *_: queue.end(entry))
    code, printed = command("stop")
    assert code == 0
    assert said in printed


def test_sites_are_listed_whether_they_have_a_key_or_not(command, folder) -> None:
    site_keys.revoke(folder, "south")
    code, said = command("sites")
    key = site_keys.enrolled(folder)["north"].fingerprint
    assert code == 0
    assert said.splitlines() == [
        f"north: offline, never seen, not yet known to the server, key {key}",
        "south: no key enrolled",
    ]


def test_nothing_can_be_stopped_where_nothing_runs(command, folder, named) -> None:
    assert command("stop") == (1, "ConfigError: no study is running\n")
    queue.put(folder, named("a"))
    queue.begin(folder, queue.waiting(folder)[0])
    code, said = command("stop")
    assert code == 1
    assert "study a goes on at the next `consilium-server up`" in said


def test_the_log_of_the_last_study_is_shown(command, folder) -> None:
    assert "no study has run" in command("logs")[1]
    (folder.runs / "a").mkdir(parents=True)
    (folder.runs / "a" / "server.log").write_text("round 1\nround 2\n")
    status.set_status(folder.runs / "a", "finished", "2 rounds")
    assert command("logs") == (0, "round 1\nround 2\n")
    assert command("logs", "a") == (0, "round 1\nround 2\n")
    (folder.runs / "a" / "server.log.1").write_text("round 0\n")
    assert command("logs") == (0, "round 0\nround 1\nround 2\n")


def test_the_log_of_a_study_that_there_is_not_is_no_empty_log(command, folder, named) -> None:
    status.set_status(folder.runs / "a", "finished", "2 rounds")
    code, said = command("logs", "typo")
    assert code == 1
    assert f"no study typo has run in {folder.root}; there are a" in said
    queue.put(folder, named("later"))
    assert "study later has not begun: it waits for its turn" in command("logs", "later")[1]


def test_only_a_site_of_a_study_that_is_not_finished_is_readmitted(folder, named, capsys) -> None:
    def readmit(site: str) -> str:
        main.main(["readmit", str(folder.runs / "a"), site])
        told = capsys.readouterr()
        return told.out + told.err

    status.set_status(folder.runs / "a", "running", "study a")
    (folder.runs / "a" / "study.yaml").write_bytes(to_yaml(named("a").model_dump(mode="json")))
    assert "study a names no site nowhere, only north, south" in readmit("nowhere")
    assert readmit("north") == "north gets a plan again in the next round of a\n"
    status.set_status(folder.runs / "a", "stopped", "by the operator")
    assert readmit("north") == "north gets a plan again once it is resumed, in the next round of a\n"
    assert take_readmitted(folder.runs / "a") == ("north",)
    status.set_status(folder.runs / "a", "finished", "3 rounds")
    assert "study a is finished; there is no next round" in readmit("north")
    assert take_readmitted(folder.runs / "a") == ()


def test_the_state_of_a_server_is_json_too(folder) -> None:
    now = server_overview.read_server(folder)
    assert (now.up, now.enrolled, now.online, now.study) == (False, ("north", "south"), (), None)
    assert server_overview.ServerNow.model_validate_json(now.model_dump_json()) == now


def test_the_command_prints_that_json(folder: ServerFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.main(["--json", "status", str(folder.root)]) == 1  # the server is not up
    printed = json.loads(capsys.readouterr().out)
    assert (printed["federation"], printed["enrolled"]) == ("f", ["north", "south"])


def test_a_key_is_enrolled_and_revoked_for_good(command, folder, tmp_path) -> None:
    pair = keys.make_site_key(tmp_path / "new", "site")
    site_keys.revoke(folder, "south")
    code, said = command("enrol", "south", pair.public)
    assert code == 0
    assert f"south may connect, with the key\n  {site_keys.enrolled(folder)['south'].fingerprint}" in said
    assert command("revoke", "south")[0] == 0
    code, said = command("enrol", "south", pair.public)
    assert code == 1
    assert "ConfigError" in said


@pytest.mark.parametrize(
    ("options", "code"), [([], 0), (["--exit-when-done"], 143)], ids=["for ever", "once"]
)
def test_a_server_that_is_stopped_has_done_its_work_unless_it_was_to_finish(
    command, monkeypatch: pytest.MonkeyPatch, options: list[str], code: int
) -> None:
    def up(*_: object, **__: object) -> StudyEnd:
        raise Interrupted(15)  # SIGTERM

    monkeypatch.setattr(daemon, "up", up)
    assert command("up", *options)[0] == code


def test_a_server_whose_last_study_failed_says_so(command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(daemon, "up", lambda *_, **__: StudyEnd(False, "no quorum"))
    assert command("up", "--exit-when-done")[0] == 1


def test_the_exit_code_of_an_incomplete_study_is_3(command, folder, monkeypatch, tmp_path, named) -> None:
    monkeypatch.setattr(
        daemon, "up", lambda *_, **__: StudyEnd(False, "3 rounds; no unseen", incomplete=True)
    )
    assert command("up", "--exit-when-done")[0] == 3
    over = tmp_path / "over"
    assert command("up", "--exit-when-done", "--over", over)[0] == 0  # a container that is not started again
    assert over.read_text() == "finished, incomplete: 3 rounds; no unseen\n"
    run_dir = folder.runs / "a"
    run_dir.mkdir(parents=True)
    status.set_status(run_dir, status.INCOMPLETE, "3 rounds; no unseen")
    assert main.main(["status", str(run_dir)]) == 3
    # `run --wait`: the study's turn is over by the time that it looks
    monkeypatch.setattr(queue, "put", lambda *_: queue.Entry(folder.root / "queue" / "1-a.yaml"))
    (tmp_path / "s.yaml").write_text(yaml.safe_dump(named("a").model_dump(mode="json")))
    code, said = command("run", tmp_path / "s.yaml", "--wait")
    assert code == 3
    assert "The study finished, but it is INCOMPLETE: 3 rounds; no unseen" in said


@pytest.mark.parametrize(
    ("outcome", "text"),
    [(StudyEnd(True, "3 rounds"), "finished"), (StudyEnd(False, "no quorum"), "failed: no quorum")],
)
def test_a_container_reads_how_the_last_study_ended(
    command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, outcome: StudyEnd, text: str
) -> None:
    monkeypatch.setattr(daemon, "up", lambda *_, **__: outcome)
    assert command("up", "--exit-when-done", "--over", tmp_path / "over")[0] == 0
    assert (tmp_path / "over").read_text() == f"{text}\n"
