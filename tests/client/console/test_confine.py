"""The kernel keeps the site's console from images and from other machines."""

import ctypes
import os
import socket
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest

from client.governance import approval, audit
from common.config import StudyConfig
from tests.places import ROOT

pytestmark = pytest.mark.skipif(
    ctypes.CDLL(None).syscall(444, None, 0, 1) < 4, reason="this kernel has no Landlock for TCP"
)

SCRIPT = """
import socket, sys
from pathlib import Path
from client.console.confine import confine
from client.governance.decide import decide

state, images = Path(sys.argv[1]), Path(sys.argv[2])
assert confine(state)
for path in (images / "a.png", state / "cache.bin", Path("/proc/self/root") / images.relative_to("/") / "a.png"):
    try:
        path.read_bytes()
    except PermissionError:
        continue
    raise SystemExit(f"{path} can be read")
try:
    list(images.iterdir())
except PermissionError:
    pass
else:
    raise SystemExit("the images' names can be read")
try:
    socket.create_connection(("127.0.0.1", int(sys.argv[3])), timeout=5)
except PermissionError:
    pass
else:
    raise SystemExit("another program can be called")
decide(state, "tiny", by="a person")
"""


def test_a_confined_console_decides_and_reads_no_image_and_calls_no_machine(
    tmp_path: Path, make_study
) -> None:
    state, images = tmp_path / "state", tmp_path / "images"
    images.mkdir()
    (images / "a.png").write_bytes(b"image")
    study: StudyConfig = make_study()
    approval.note(state, study, datetime(2026, 3, 1, tzinfo=UTC))
    (state / "cache.bin").write_bytes(b"decoded images")
    (state / audit.FILE).touch()
    (state / "approvals" / "approved").mkdir()
    with socket.create_server(("127.0.0.1", 0)) as other:
        arguments = [str(state), str(images), str(other.getsockname()[1])]
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, *arguments],
            cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}, capture_output=True, text=True, timeout=120,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert approval.decision(state, study).answer == "yes"
    assert [fields["event"] for fields in audit.events(state / audit.FILE)] == ["approval"]
