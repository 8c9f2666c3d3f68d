"""The commands that run a site."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from client.cli.main import main

ROOT = Path(__file__).parents[3]


def test_a_trainer_without_a_socket_says_where_to_name_one(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "sites"
    main(["simulate", "--data", str(labels.parent), "--out", str(out)])
    assert main(["trainer", str(out / "north.yaml")]) == 1
    assert "--socket" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize(
    ("number", "option", "filters"),
    [(signal.SIGTERM, ["--no-network"], 1), (signal.SIGINT, [], 0)],
)
def test_a_trainer_listens_until_it_is_stopped_and_leaves_no_socket(
    labels: Path, tmp_path: Path, number: signal.Signals, option: list[str], filters: int
) -> None:
    out, socket = tmp_path / "sites", tmp_path / "t.sock"
    main(["simulate", "--data", str(labels.parent), "--out", str(out), "--threads", "1"])
    process = subprocess.Popen(
        [sys.executable, "-m", "client.cli", "trainer", str(out / "north.yaml"), "--socket", str(socket), *option],
        cwd=ROOT, stderr=subprocess.PIPE, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    try:
        assert process.stderr is not None
        until = time.monotonic() + 120
        while "ready" not in (line := process.stderr.readline()):
            assert line
            assert time.monotonic() < until
        assert socket.is_socket()
        if sys.platform == "linux":  # with --no-network one filter more than here, which every thread has
            tasks = [task / "status" for task in Path(f"/proc/{process.pid}/task").iterdir()]
            assert len(tasks) > 1
            assert {seccomp_filters(task) - seccomp_filters(Path("/proc/self/status")) for task in tasks} == {
                filters
            }
        process.send_signal(number)
        assert process.wait(60) == 0
    finally:
        process.kill()
        process.communicate()
    assert not socket.exists()


def seccomp_filters(status: Path) -> int:
    (line,) = [line for line in status.read_text().splitlines() if line.startswith("Seccomp_filters:")]
    return int(line.split()[1])


@pytest.mark.slow
def test_a_trainer_ends_when_the_file_it_waits_for_appears(labels: Path, tmp_path: Path) -> None:
    out, over = tmp_path / "sites", tmp_path / "over"
    main(["simulate", "--data", str(labels.parent), "--out", str(out), "--threads", "1"])
    over.touch()
    command = ["trainer", out / "north.yaml", "--socket", tmp_path / "t.sock", "--until", over]
    done = subprocess.run(
        [sys.executable, "-m", "client.cli", *map(str, command)],
        cwd=ROOT, capture_output=True, text=True, timeout=240, check=False,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    assert done.returncode == 0
    assert "the federation is over" in done.stderr


def test_a_trainer_names_a_socket_with_too_long_a_path_before_it_reads_an_image(
    labels: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "sites"
    main(["simulate", "--data", str(labels.parent), "--out", str(out)])
    monkeypatch.setattr("client.trainer.Trainer", None)  # would read the images
    assert main(["trainer", str(out / "north.yaml"), "--socket", str(tmp_path / ("d" * 110) / "t.sock")]) == 1
    assert "may have 107" in capsys.readouterr().err
