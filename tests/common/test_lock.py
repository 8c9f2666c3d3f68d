"""A lock is held by one, and by nobody who has ended."""

import errno
import fcntl
import os
import subprocess
import sys

import pytest

from common.errors import LaunchError, StorageError
from common.lock import held, is_held


def test_a_second_holder_is_refused_and_the_first_one_named(tmp_path):
    with (
        held(tmp_path / "run" / "lock", "a server"),
        pytest.raises(LaunchError, match=rf"run is in use by a server, process {os.getpid()}; wait"),
        held(tmp_path / "run" / "lock", "another"),
    ):
        pass


def test_what_to_do_otherwise_is_said_only_where_there_is_something(tmp_path):
    with held(tmp_path / "lock", "a server"):
        with (
            pytest.raises(LaunchError, match=r"wait until it has ended\Z"),
            held(tmp_path / "lock", "another"),
        ):
            pass
        with (
            pytest.raises(LaunchError, match="wait until it has ended, or rename yours"),
            held(tmp_path / "lock", "another", otherwise="rename yours"),
        ):
            pass


def test_a_disk_without_locks_is_named_and_not_taken_for_a_free_one(tmp_path, monkeypatch):
    def refuse(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with (
        pytest.raises(
            StorageError, match=r"lock cannot be locked \(No locks available\).*a disk of this machine"
        ),
        held(tmp_path / "lock", "a server"),
    ):
        pass
    with pytest.raises(StorageError, match="cannot be locked"):
        is_held(tmp_path / "lock")


def test_a_lock_is_free_again_after_its_holder(tmp_path):
    for _ in range(2):
        with held(tmp_path / "lock", "a server"):
            pass


def test_a_holder_that_was_killed_holds_nothing(tmp_path):
    code = (
        "import sys, time; from pathlib import Path; from common.lock import held\n"
        "with held(Path(sys.argv[1]), 'a server'): print(flush=True); time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code, tmp_path / "lock"], stdout=subprocess.PIPE) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        with pytest.raises(LaunchError), held(tmp_path / "lock", "another"):
            pass
        holder.kill()
        with held(tmp_path / "lock", "another", wait_s=30):
            pass
