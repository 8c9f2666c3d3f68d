"""Whatever a launcher started ends with it, and what went wrong is told with the end of its log."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from common import bounded_log
from common.errors import LaunchError
from common.processes import launcher as processes
from common.processes import watchdog
from common.processes.launcher import Interrupted, Processes, interruptible
from tests.places import ROOT

# A program with a child in its group and one that left it, as Flower starts them.
PARENT = """
import subprocess, sys, time
from pathlib import Path
sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
near = subprocess.Popen(sleep)
far = subprocess.Popen(sleep, start_new_session=True)
Path(sys.argv[1]).write_text(f"{near.pid} {far.pid}")
time.sleep(600)
"""

DEAF = """
import signal, sys, time
from pathlib import Path
signal.signal(signal.SIGTERM, signal.SIG_IGN)
Path(sys.argv[1]).write_text("0")
time.sleep(600)
"""


@pytest.fixture
def launched(tmp_path: Path) -> Iterator[Processes]:
    made = Processes(tmp_path / "logs", dict(os.environ))
    yield made
    made.stop()


def python(code: str, *arguments: object) -> list[str | Path]:
    return [sys.executable, "-c", code, *map(str, arguments)]


def is_alive(pid: int) -> bool:
    """True for a process that runs; a zombie has ended."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def soon(what: Callable[[], bool], within_s: float = 60) -> bool:
    until = time.monotonic() + within_s
    while not what():
        if time.monotonic() > until:
            return False
        time.sleep(0.02)
    return True


def test_stopping_ends_children_of_children_even_those_that_left_the_group(
    launched: Processes, tmp_path: Path
) -> None:
    told = tmp_path / "pids"
    launched.start("parent", python(PARENT, told))
    launched.wait_until(lambda: told.exists() and " " in told.read_text(), "no children", 60)
    near, far = map(int, told.read_text().split())
    assert is_alive(near)
    assert is_alive(far)
    launched.stop()
    assert not is_alive(near)
    assert not is_alive(far)


def test_children_of_a_process_that_was_killed_are_ended_too(launched: Processes, tmp_path: Path) -> None:
    told = tmp_path / "pids"
    launched.start("parent", python(PARENT, told))
    launched.wait_until(lambda: told.exists() and " " in told.read_text(), "no children", 60)
    os.kill(launched._running["parent"].pid, signal.SIGKILL)
    near, far = map(int, told.read_text().split())
    assert soon(lambda: "parent" in launched.ended())
    launched.stop()
    assert not is_alive(near)
    assert not is_alive(far)


def test_what_does_not_listen_is_ended_by_force(tmp_path: Path) -> None:
    launched = Processes(tmp_path / "logs", dict(os.environ), grace_s=0.2)
    told = tmp_path / "ready"
    launched.start("deaf", python(DEAF, told))
    launched.wait_until(told.exists, "not ready", 60)
    pid = launched._running["deaf"].pid
    launched.stop()
    assert not is_alive(pid)


def test_a_launcher_in_another_ones_process_has_a_watchdog_that_the_other_does_not_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(watchdog.MARK, "outer")
    monkeypatch.setenv(watchdog.OWNER, "outer")
    inner = Processes(tmp_path / "logs", dict(os.environ))
    try:
        inner.start("sleeps", [sys.executable, "-c", "import time; time.sleep(600)"])
        assert inner._watchdog is not None
        seen = Path(f"/proc/{inner._watchdog.pid}/environ").read_text().split("\0")
        assert not [line for line in seen if line.startswith((f"{watchdog.MARK}=", f"{watchdog.OWNER}="))]
    finally:
        inner.stop()


def test_stopping_ends_nothing_else_and_may_be_done_twice(launched: Processes) -> None:
    other = subprocess.Popen(python("import time; time.sleep(600)"))
    try:
        launched.start("one", python("import time; time.sleep(600)"))
        launched.stop()
        launched.stop()
        assert is_alive(other.pid)
    finally:
        other.kill()
        other.wait()


def test_the_log_of_a_process_that_talks_much_stops_growing_and_has_its_last_line(
    launched: Processes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bounded_log, "MOST_BYTES", 10_000)
    launched.start("talker", python("for number in range(5000): print('line', number)"))
    assert soon(lambda: "talker" in launched.ended())
    assert launched.tail("talker").endswith("line 4999")
    sizes = {path.name: path.stat().st_size for path in (tmp_path / "logs").iterdir()}
    assert sizes.keys() == {"talker.log", "talker.log.1"}
    assert max(sizes.values()) < 10_100  # with the line on what was dropped
    said = (tmp_path / "logs" / "talker.log").read_text().splitlines()[0]
    assert "talker.log.1; older lines, 0.0 MiB, were dropped" in said


def test_a_process_that_is_restarted_goes_on_with_its_log(launched: Processes, tmp_path: Path) -> None:
    launched.start("one", python("print('once')"))
    assert soon(lambda: "one" in launched.ended())
    launched.restart("one")
    assert soon(lambda: "one" in launched.ended())
    assert launched.tail("one").endswith("once\n    once")
    launched.stop()
    assert (tmp_path / "logs" / "one.log").read_text() == "once\nonce\n"


LAUNCHER = """
import os, sys, time
from pathlib import Path
from common.processes.launcher import Processes
processes = Processes(Path(sys.argv[1]), dict(os.environ))
processes.start("parent", [sys.executable, "-c", sys.argv[2], sys.argv[3]])
time.sleep(600)
"""


def test_a_launcher_that_is_killed_by_force_leaves_nothing_behind(tmp_path: Path) -> None:
    told = tmp_path / "pids"
    launcher = subprocess.Popen(python(LAUNCHER, tmp_path / "logs", PARENT, told), cwd=ROOT)
    try:
        assert soon(lambda: told.exists() and " " in told.read_text())
        pids = list(map(int, told.read_text().split()))
        assert all(map(is_alive, pids))
    finally:
        launcher.kill()
        launcher.wait()
    assert soon(lambda: not any(map(is_alive, pids)))


def test_a_process_that_ends_is_named_with_the_end_of_its_log(launched: Processes) -> None:
    code = "print(*range(20), sep='\\n'); print('no such port'); raise SystemExit(3)"
    launched.start("superlink", python(code))
    with pytest.raises(LaunchError) as caught:
        launched.wait_until(lambda: False, "it did not start", 60)
    message = str(caught.value)
    assert message.startswith("superlink ended with exit code 3. Its log ")
    # the last 8 lines: 13 to 19 and what it said at the end
    assert message.splitlines()[1:] == [f"    {n}" for n in range(13, 20)] + ["    no such port"]


def test_waiting_has_a_deadline_and_says_where_to_look(launched: Processes) -> None:
    launched.start("slow", python("import time; time.sleep(600)"))
    with pytest.raises(LaunchError, match=r"the server did not start within 0 s; the logs in .*logs tell"):
        launched.wait_until(lambda: False, "the server did not start", 0.2)


def test_commands_run_side_by_side_and_their_outputs_come_in_order(launched: Processes) -> None:
    # each waits for a file that the other makes: one after the other they would never end
    meet = (
        "import sys, time; from pathlib import Path\n"
        "Path(sys.argv[1]).touch()\n"
        "while not Path(sys.argv[2]).exists(): time.sleep(0.01)\n"
        "print(sys.argv[3])"
    )
    a, b = launched.logs.parent / "a", launched.logs.parent / "b"
    printed = launched.run_all([python(meet, a, b, "first"), python(meet, b, a, "second")], 60)
    assert printed == ["first\n", "second\n"]


def test_a_command_that_fails_says_what_it_printed(launched: Processes) -> None:
    with pytest.raises(LaunchError, match="ended with exit code 1: no SuperLink"):
        launched.run(python("raise SystemExit('no SuperLink')"), 60)


def test_a_command_that_hangs_is_given_up_and_ended(launched: Processes) -> None:
    with pytest.raises(LaunchError, match="did not end within 0 s"):
        launched.run(python("import time; time.sleep(600)"), 0.2)
    pid = launched._commands[0].pid
    launched.stop()
    assert not is_alive(pid)


def test_two_signals_at_once_as_a_terminal_and_a_script_send_them_leave_no_trace() -> None:
    """Ctrl-C reaches `site.sh up` and what it started; the script then sends SIGTERM as well."""
    code = (
        "import os, signal, sys\n"
        "from common.processes.launcher import Interrupted, interruptible\n"
        "both = {signal.SIGINT, signal.SIGTERM}\n"
        "try:\n"
        "    with interruptible():\n"
        "        signal.pthread_sigmask(signal.SIG_BLOCK, both)\n"
        "        for number in both: os.kill(os.getpid(), number)\n"
        "        signal.pthread_sigmask(signal.SIG_UNBLOCK, both)\n"
        "        signal.pause()\n"
        "except Interrupted as interrupted: sys.exit(interrupted.exit_code)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert (done.returncode, done.stderr) == (128 + signal.SIGINT, "")


@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)]
)
def test_every_polite_request_to_end_is_one_and_a_second_does_not_disturb_cleaning_up(
    number: signal.Signals, code: int
) -> None:
    before = signal.getsignal(number)
    cleaned = []

    def work() -> None:
        try:
            signal.raise_signal(number)
        finally:
            signal.raise_signal(number)
            cleaned.append(True)

    with pytest.raises(Interrupted) as caught, interruptible():
        work()
    assert caught.value.exit_code == code
    assert cleaned == [True]
    assert signal.getsignal(number) == before


def test_flowers_commands_are_those_beside_this_python() -> None:
    assert processes.flower_command("flower-superlink").exists()
