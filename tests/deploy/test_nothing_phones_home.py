"""A whole study on a machine whose only way out is watched: nobody else is ever called."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks.faults.world import ENV, ROOT

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

UNSHARE = ["unshare", "--net"] if os.geteuid() == 0 else ["unshare", "--net", "--map-root-user"]


def alone(folder: Path, *command: str) -> dict[str, Any]:
    """Run a command where every packet that wants to leave the machine is noted."""
    report = folder / "report.json"
    done = subprocess.run(
        [*UNSHARE, sys.executable, str(Path(__file__).with_name("alone.py")), str(report), *command],
        cwd=ROOT, env=ENV, timeout=800, capture_output=True, text=True,
    )  # fmt: skip
    assert report.exists(), done.stdout + done.stderr
    told: dict[str, Any] = json.loads(report.read_text())
    return told | {"said": done.stdout + done.stderr}


@pytest.fixture(autouse=True)
def _needs_a_network_of_its_own() -> None:
    if shutil.which("unshare") is None or not Path("/dev/net/tun").exists():
        pytest.skip("needs util-linux's unshare and /dev/net/tun, which CI has")


def test_the_watch_sees_a_call_by_address_and_a_call_by_name(tmp_path: Path) -> None:
    calls = (
        "import contextlib, socket\n"
        "with contextlib.suppress(OSError): socket.create_connection(('203.0.113.7', 443), timeout=0.2)\n"
        "with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s: s.sendto(b'who?', ('203.0.113.53', 53))"
    )
    assert set(alone(tmp_path, sys.executable, "-c", calls)["called"]) == {"203.0.113.7", "203.0.113.53"}


def test_a_whole_study_calls_nobody(tmp_path: Path) -> None:
    sites = tmp_path / "sites"
    study = ROOT / "configs" / "study" / "demo.yaml"
    small = tmp_path / "study.yaml"
    small.write_text(study.read_text().replace("rounds: 6", "rounds: 1"))
    run = (
        f"{sys.executable} -m client.cli simulate --images 20 --threads 1 --out {sites} && "
        f"{sys.executable} -m server.cli simulate {small} --sites {sites} --adopt --runs {tmp_path / 'runs'}"
    )
    told = alone(tmp_path, "sh", "-c", run)
    assert told["code"] == 0, told["said"]
    assert "finished after 1 rounds" in told["said"]
    assert told["called"] == []
