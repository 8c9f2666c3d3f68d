"""What `up` does with its queue, its keys and what it is asked, without a SuperLink."""

import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

from common import keys
from common.config import StudyConfig
from common.errors import ConfigError, LaunchError
from common.lock import held
from common.processes.launcher import Processes
from common.settings import to_yaml
from server.deployment import daemon, queue, site_keys
from server.deployment.daemon import Host
from server.deployment.folder import ServerFolder, open_folder
from server.deployment.study_runner import StudyEnd
from server.deployment.superlink import CONNECTION, SUPERLINK
from server.provisioning import startup_kit
from server.storage import requests, status


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


class Told:
    """A host whose Flower is a list of what it was told, and whose studies end as they are meant to."""

    def __init__(self, folder: ServerFolder, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self.commands, self.ends, self.ran = folder, [], {}, []
        self.known: dict[bytes, site_keys.Node] = {}
        processes = Processes(folder.root / "logs", dict(os.environ))
        self.host = Host(work=folder.work, processes=processes, fleet_port=9092, folder=folder)
        monkeypatch.setattr(site_keys, "nodes", lambda _: dict(self.known))
        monkeypatch.setattr(Host, "register", lambda _, new: self.register(new))
        monkeypatch.setattr(Processes, "run", lambda _, command, deadline_s: self.flwr(command))
        monkeypatch.setattr(Host, "run", lambda _, settings: self.run(settings))
        monkeypatch.setattr(daemon, "follow", lambda host, run_dir, shown: self.follow(run_dir))

    def register(self, new: dict[str, Path]) -> None:
        for site, path in new.items():
            self.commands.append(f"register {site}")
            now = site_keys.datetime.now(site_keys.UTC)
            key = site_keys.read_key(path, site)
            self.known[key.pem] = site_keys.Node(len(self.commands), now, True, now)

    def flwr(self, command: list[str]) -> str:
        words = [str(word) for word in command[1:]]
        self.commands.append(" ".join(words[:3]))
        if words[0:2] == ["supernode", "unregister"]:
            self.known = {pem: node for pem, node in self.known.items() if str(node.node_id) != words[2]}
        return ""

    def run(self, settings: Path) -> int:
        values = yaml.safe_load(settings.read_text())
        self.ran.append((settings.parent.name, sorted(values["node_ids"])))
        return 77

    def follow(self, run_dir: Path) -> StudyEnd:
        end = self.ends.get(run_dir.name, "finished")
        if isinstance(end, BaseException):
            raise end
        if end == "stop":
            requests.ask_to_stop(run_dir)
            self.host.look()
            now = status.read_status(run_dir)
            assert now is not None
            return StudyEnd(False, now.reason)
        status.set_status(run_dir, end, "3 rounds")
        return StudyEnd(end == "finished", "3 rounds", end == status.INCOMPLETE)


@pytest.fixture
def told(folder: ServerFolder, monkeypatch: pytest.MonkeyPatch) -> Iterator[Told]:
    made = Told(folder, monkeypatch)
    yield made
    made.host.processes.stop()


def test_studies_run_in_turn_with_the_sites_that_are_enrolled(told: Told, folder, named) -> None:
    for name in ("b", "a"):
        queue.put(folder, named(name))
    assert told.host.serve(once=True).finished
    assert told.ran == [("b", ["north", "south"]), ("a", ["north", "south"])]
    assert told.commands == ["register north", "register south"]
    assert (queue.waiting(folder), queue.running(folder)) == ([], None)


def test_a_study_that_fails_is_followed_by_the_next(told: Told, folder, named) -> None:
    told.ends = {"a": LaunchError("flwr run did not work"), "b": "failed"}
    for name in ("a", "b", "c"):
        queue.put(folder, named(name))
    assert told.host.serve(once=True).finished  # the last one
    assert [name for name, _ in told.ran] == ["a", "b", "c"]
    now = status.read_status(folder.runs / "a")
    assert now is not None
    assert (now.status, now.reason) == ("failed", "flwr run did not work")


def test_a_study_that_this_version_cannot_read_has_failed_and_does_not_start_for_ever(
    told: Told, folder, named, caplog
) -> None:
    """A newer command line wrote it, while an older server was still up."""
    entry = queue.put(folder, named("newer"))
    entry.path.write_text(entry.path.read_text().replace("rounds: 3", "rounds: three"))
    assert not told.host.serve(once=True).finished
    now = status.read_status(folder.runs / "newer")
    assert now is not None
    assert now.status == "failed"
    assert "newer.yaml is not a valid study: rounds: Input should be a valid integer" in now.reason
    assert queue.running(folder) is None
    assert sum("is not a valid study" in message for message in caplog.messages) == 1


def test_without_its_superlink_the_server_ends(told: Told, folder, named) -> None:
    told.ends = {"a": LaunchError("superlink is given up")}
    queue.put(folder, named("a"))
    told.host._supervision._given_up.add(SUPERLINK)
    with pytest.raises(LaunchError, match="given up"):
        told.host.serve(once=True)


def test_what_ran_when_everything_was_killed_goes_on_first_and_is_not_set_aside(
    told: Told, folder, named
) -> None:
    queue.put(folder, named("killed"))
    queue.begin(folder, queue.waiting(folder)[0])
    (folder.runs / "killed" / "checkpoints").mkdir(parents=True)
    (folder.runs / "killed" / "checkpoints" / "round-0001.safetensors").touch()
    status.set_status(folder.runs / "killed", "running", "")
    queue.put(folder, named("next"))
    told.host.serve(once=True)
    assert [name for name, _ in told.ran] == ["killed", "next"]
    assert (folder.runs / "killed" / "checkpoints" / "round-0001.safetensors").exists()


def test_a_study_that_ended_just_before_the_kill_is_not_run_again(told: Told, folder, named) -> None:
    queue.put(folder, named("done"))
    queue.begin(folder, queue.waiting(folder)[0])
    status.set_status(folder.runs / "done", "finished", "3 rounds")
    assert told.host.serve(once=True) == StudyEnd(True, "3 rounds")
    assert told.ran == []


@pytest.mark.parametrize("broken_off", [False, True])
def test_a_study_that_is_incomplete_is_over_and_can_be_gone_on_with(
    told: Told, folder, named, caplog, monkeypatch, broken_off: bool
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    told.ends = {"a": status.INCOMPLETE}
    queue.put(folder, named("a"))
    if broken_off:  # killed between its end and its removal from the queue
        queue.begin(folder, queue.waiting(folder)[0])
        status.set_status(folder.runs / "a", status.INCOMPLETE, "3 rounds")
    assert told.host.serve(once=True) == StudyEnd(False, "3 rounds", incomplete=True)
    assert "study a: finished, incomplete after 3 rounds" in caplog.text
    assert len(told.ran) == (0 if broken_off else 1)
    (folder.runs / "a" / "checkpoints").mkdir()
    (folder.runs / "a" / "checkpoints" / "round-0003.safetensors").touch()
    (folder.runs / "a" / "study.yaml").write_bytes(to_yaml(named("a").model_dump(mode="json")))
    queue.put_back(folder, "a")
    told.ends = {}
    assert told.host.serve(once=True).finished


def test_a_new_study_of_a_name_leaves_the_former_run_beside_it(told: Told, folder, named) -> None:
    for _ in range(2):
        queue.put(folder, named("a"))
        told.host.serve(once=True)
    assert {path.name for path in folder.runs.iterdir()} >= {"a", "a.1"}


def test_a_stopped_study_is_stopped_in_flower_and_can_go_on(told: Told, folder, named) -> None:
    told.ends = {"a": "stop"}
    queue.put(folder, named("a"))
    assert told.host.serve(once=True) == StudyEnd(False, "stopped by the operator before round 1")
    assert f"stop 77 {CONNECTION}" in told.commands
    with pytest.raises(ConfigError, match="has no checkpoint"):
        queue.put_back(folder, "a")
    (folder.runs / "a" / "checkpoints").mkdir()
    (folder.runs / "a" / "checkpoints" / "round-0001.safetensors").touch()
    queue.put_back(folder, "a")
    told.ends = {}
    assert told.host.serve(once=True).finished
    assert len(told.ran) == 2


def test_a_revoked_key_is_taken_from_flower_and_a_new_one_registered(
    told: Told, folder, tmp_path, caplog
) -> None:
    told.host._follow_keys()
    site_keys.revoke(folder, "south")
    told.host._follow_keys()
    site_keys.enrol(folder, "south", keys.make_site_key(tmp_path / "new", "site").public)
    told.host._follow_keys()
    assert told.commands == ["register north", "register south", "supernode unregister 2", "register south"]
    assert len(told.known) == 2


def test_a_damaged_key_file_is_logged_and_the_other_sites_may_connect(
    told: Told, folder, monkeypatch, caplog
) -> None:
    monkeypatch.setattr(Host, "has_superlink", True)
    (folder.sites / "west.pub").write_text("no key")
    assert told.host.look() is False
    assert told.commands == ["register north", "register south"]
    assert f"{folder.sites / 'west.pub'} is not a public key" in caplog.text


def test_a_damaged_key_file_cuts_no_site_off_but_a_revoked_key_is_removed(told: Told, folder) -> None:
    told.host._follow_keys()
    (folder.sites / "north.pub").write_text("damaged")  # it may be any key: its site stays registered
    site_keys.revoke(folder, "south")
    told.host._follow_keys()
    assert told.commands == ["register north", "register south", "supernode unregister 2"]


def test_a_study_goes_on_without_a_revoked_site_as_long_as_there_are_enough(
    told: Told, folder, named
) -> None:
    site_keys.revoke(folder, "south")
    queue.put(folder, named("a"))
    assert told.host.serve(once=True).finished
    assert told.ran == [("a", ["north"])]
    site_keys.revoke(folder, "north")
    queue.put(folder, named("b"))
    outcome = told.host.serve(once=True)
    assert not outcome.finished
    assert "the study names north, south, whose keys are not enrolled" in outcome.reason


def test_one_server_runs_on_a_folder(folder: ServerFolder) -> None:
    with held(folder.lock, "another"):
        assert folder.is_up
        with pytest.raises(LaunchError, match="in use by another"):
            daemon.up(folder, once=True)
    assert not folder.is_up


def test_a_folder_that_is_none_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="consilium-server provision"):
        open_folder(tmp_path)


def test_an_address_that_the_server_cannot_listen_on_is_named_with_its_settings(folder: ServerFolder) -> None:
    about = folder.config.model_copy(
        update={"server": folder.config.server.model_copy(update={"listen": "203.0.113.77"})}
    )
    with pytest.raises(LaunchError) as caught:
        daemon.up(ServerFolder(folder.root, about), once=True)
    assert "cannot listen on 203.0.113.77:9092: 203.0.113.77 is not an address of this machine" in str(
        caught.value
    )
    assert "server.listen and server.port in federation.yaml say so" in str(caught.value)
    assert not folder.is_up
