"""A lock is held by one, and by nobody who has ended."""

import os
import subprocess
import sys

import pytest

from common.errors import LaunchError
from common.lock import held


def test_a_second_holder_is_refused_and_the_first_one_named(tmp_path):
    with (
        held(tmp_path / "run" / "lock", "a server"),
        pytest.raises(LaunchError, match=rf"run is in use by a server, process {os.getpid()}; wait"),
        held(tmp_path / "run" / "lock", "another"),
    ):
        pass


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
