"""The commands that make what a server and its sites need."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from server.cli.main import main

ROOT = Path(__file__).parents[3]


def test_a_federation_is_provisioned_with_a_line_per_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    about = {"name": "f", "server": {"hosts": ["s.example"]}, "sites": {"north": {}}}
    (tmp_path / "federation.yaml").write_text(yaml.safe_dump(about))
    assert main(["provision", str(tmp_path / "federation.yaml"), "--out", str(tmp_path / "f")]) == 0
    assert "north.zip" in capsys.readouterr().out
    assert (tmp_path / "f" / "kits" / "north.zip").is_file()
    open_to_others = [path for path in (tmp_path / "f").rglob("*") if path.stat().st_mode & 0o077]
    assert [path.name for path in open_to_others if path.name != "ca.pem"] == []


def test_a_compose_file_is_printed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["compose", "--sites", "4"]) == 0
    assert "trainer-4" in yaml.safe_load(capsys.readouterr().out)["services"]


def test_a_compose_file_that_is_not_there_is_named(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["compose", "--sites", "4", "--file", "gone.yml"]) == 1
    assert "gone.yml cannot be read: No such file or directory; run this beside" in capsys.readouterr().err


def test_a_reader_that_goes_away_ends_the_command_quietly() -> None:
    read, write = os.pipe()
    os.close(read)  # as `| head -1` when it has its line
    command = [sys.executable, "-m", "server.cli", "compose", "--sites", "100"]
    try:
        done = subprocess.run(
            command, cwd=ROOT, stdout=write, stderr=subprocess.PIPE, timeout=120, check=False
        )
    finally:
        os.close(write)
    assert (done.returncode, done.stderr) == (141, b"")  # 128 + SIGPIPE
