"""Studies wait in the order in which they were asked for, and none is lost or run twice."""

from pathlib import Path

import pytest

from common.config import StudyConfig
from common.errors import ConfigError
from server.config import Address, FederationConfig, SiteEntry
from server.deployment import queue
from server.deployment.folder import ServerFolder
from server.storage.status import set_status


@pytest.fixture
def folder(tmp_path: Path) -> ServerFolder:
    config = FederationConfig(
        name="f", server=Address(hosts=("s.example",)), sites={"north": SiteEntry(), "south": SiteEntry()}
    )
    return ServerFolder(tmp_path, config)


@pytest.fixture
def named(study: StudyConfig):
    return lambda name: study.model_copy(update={"name": name})


def test_the_first_that_was_asked_for_is_the_first_that_runs(folder, named) -> None:
    for name in ("zebra", "ant", "mouse-2"):
        queue.put(folder, named(name))
    assert [entry.name for entry in queue.waiting(folder)] == ["zebra", "ant", "mouse-2"]
    now = queue.begin(folder, queue.waiting(folder)[0])
    assert (queue.running(folder), now.name) == (now, "zebra")
    queue.end(now)
    assert queue.running(folder) is None
    assert [entry.name for entry in queue.waiting(folder)] == ["ant", "mouse-2"]


def test_a_name_waits_once_and_not_beside_the_one_that_runs(folder, named) -> None:
    queue.put(folder, named("a"))
    with pytest.raises(ConfigError, match="a study a is waiting already"):
        queue.put(folder, named("a"))
    queue.begin(folder, queue.waiting(folder)[0])
    with pytest.raises(ConfigError, match="a study a is running"):
        queue.put(folder, named("a"))
    queue.put(folder, named("b"))


def test_a_study_that_never_began_or_is_finished_cannot_go_on_and_it_is_said_which(folder, named) -> None:
    with pytest.raises(ConfigError, match=r"no study a has run in .*; none has yet"):
        queue.put_back(folder, "a")
    set_status(folder.runs / "b", "finished", "3 rounds")
    with pytest.raises(ConfigError, match=r"no study a has run in .*; there are b"):
        queue.put_back(folder, "a")
    with pytest.raises(ConfigError, match=r"study b is finished \(3 rounds\); nothing of it is left"):
        queue.put_back(folder, "b")
    queue.put(folder, named("c"))
    with pytest.raises(ConfigError, match="a study c is waiting already"):
        queue.put_back(folder, "c")
    assert [entry.name for entry in queue.waiting(folder)] == ["c"]


def test_a_study_can_go_on_from_a_checkpoint_and_not_without(folder, named) -> None:
    (folder.runs / "a").mkdir(parents=True)
    with pytest.raises(ConfigError, match="has no checkpoint to go on from"):
        queue.put_back(folder, "a")
    checkpoints = folder.runs / "a" / "checkpoints"
    checkpoints.mkdir(parents=True)
    (checkpoints / "round-0001.safetensors").touch()
    assert not queue.put_back(folder, "a").is_new


def test_what_lies_in_the_folder_besides_is_no_study(folder, named) -> None:
    queue.put(folder, named("a"))
    (folder.root / "queue" / ".123-b.yaml.tmp").touch()
    (folder.root / "queue" / "notes-old.txt").touch()
    assert [entry.name for entry in queue.waiting(folder)] == ["a"]
