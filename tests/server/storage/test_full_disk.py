import shutil
from collections import namedtuple

import pytest

from common.errors import LaunchError
from server.deployment import study_runner
from server.storage import status

Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def full_disk(monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(2**26, 2**26 - 5120, 5120))


def test_what_flower_calls_an_internal_error_is_called_a_full_disk(full_disk, tmp_path):
    run_dir = tmp_path / "run"
    with (
        pytest.raises(LaunchError, match=r"No space left on the disk .*5 KiB.* `consilium-server resume`"),
        study_runner.run_folder(run_dir, resume=False),
    ):
        raise LaunchError("`flwr run app` ended with exit code 1: Internal server error.")
    now = status.read_status(run_dir)
    assert now.status == "failed"
    assert "No space left" in now.reason


def test_a_server_that_crashed_on_a_full_disk_is_not_started_again(full_disk, tmp_path):
    with pytest.raises(LaunchError, match="No space left"):
        study_runner._require_room(tmp_path, "ObjectPushError")


def test_with_room_left_the_error_stays_what_it_was(tmp_path):
    run_dir = tmp_path / "run"
    with (
        pytest.raises(LaunchError, match=r"^no site came$"),
        study_runner.run_folder(run_dir, resume=False),
    ):
        raise LaunchError("no site came")
