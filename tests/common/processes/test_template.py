"""A fork of a template is the process that was asked for, and where it would be another, one is started."""

import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from common.errors import LaunchError
from common.processes import forked
from common.processes.forked import CannotFork, Fork, Template
from common.processes.launcher import Processes
from common.processes.watchdog import MARK, OWNER
from tests.common.processes.test_launcher import is_alive, soon
from tests.places import ROOT


@pytest.fixture
def launched(tmp_path: Path, env: dict[str, str]) -> Iterator[Processes]:
    made = Processes(tmp_path / "logs", env)
    yield made
    made.stop()


def module(name: str, *arguments: object) -> list[str | Path]:
    return [sys.executable, "-m", name, *map(str, arguments)]


def prepared(launched: Processes, tmp_path: Path, *modules: str) -> Processes:
    assert launched.prepare("tests", modules or ("heavy",), tmp_path / "s")
    return launched


def fork_of(launched: Processes, name: str) -> Fork:
    process = launched._running[name]
    assert isinstance(process, Fork), f"{name} was started, not forked"
    return process


def test_what_is_imported_once_serves_every_fork(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    for name in ("one", "two", "three"):
        launched.start(name, module("show"), {"FLWR_HOME": "/home/of"}, template="tests")
        assert fork_of(launched, name).wait() == 0
    assert len((tmp_path / "imported").read_text().split()) == 1


def test_a_fork_is_the_process_that_was_asked_for(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    launched.start("one", module("show", "a b", "--c"), {"FLWR_HOME": "/home/of/one"}, template="tests")
    fork_of(launched, "one").wait()
    assert launched.tail("one").splitlines()[1:5] == [
        "    ['a b', '--c'] __main__ True True",
        "    /home/of/one False yes",
        "    ['-m', 'show', 'a b', '--c']",
        "    ['FLWR_HOME=/home/of/one']",
    ]


def test_forks_draw_different_random_numbers(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    for name in ("one", "two"):
        launched.start(name, module("show"), {"FLWR_HOME": "x"}, template="tests")
        fork_of(launched, name).wait()
    one, two = (launched.tail(name).splitlines()[-1] for name in ("one", "two"))
    assert one != two


def test_the_exit_code_of_a_fork_is_its_programs(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    launched.start("leave", module("leave", 3), template="tests")
    launched.start("fail", module("fail"), template="tests")
    launched.start("killed", module("wait", tmp_path / "up"), template="tests")
    assert soon((tmp_path / "up").exists)
    os.kill(fork_of(launched, "killed").pid, signal.SIGKILL)
    assert soon(lambda: launched.ended() == {"leave": 3, "fail": 1, "killed": -9})
    assert launched.tail("leave").endswith("gone")
    assert launched.tail("fail").endswith("ValueError: three is no prime")


def test_at_its_end_a_fork_does_what_any_process_does_but_frees_nothing(
    launched: Processes, tmp_path: Path
) -> None:
    prepared(launched, tmp_path)
    launched.start("one", module("ends"), template="tests")
    assert fork_of(launched, "one").wait() == 1
    assert launched.tail("one").splitlines()[1:] == ["    a sentence", "    thread", "    at exit"]


def test_what_a_forked_command_prints_comes_without_its_errors(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    commands = [module("says", "one"), module("says", "two")]
    assert launched.run_all(commands, 60, template="tests") == ["one\n", "two\n"]
    with pytest.raises(LaunchError, match=r"^`says three 7` ended with exit code 7: beware of three$"):
        launched.run(module("says", "three", 7), 60, template="tests")
    assert len((tmp_path / "imported").read_text().split()) == 1


def test_a_forked_command_that_does_not_end_is_named(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    with pytest.raises(LaunchError, match="`wait up` did not end within 0 s"):
        launched.run(module("wait", "up"), 0.1, template="tests")
    (fork,) = launched._commands
    launched.stop()
    assert not is_alive(fork.pid)


def test_a_fork_carries_the_marks_by_which_the_watchdog_finds_it(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    launched.start("north-trainer", module("wait", tmp_path / "up"), template="tests")
    assert soon((tmp_path / "up").exists)
    environ = Path(f"/proc/{fork_of(launched, 'north-trainer').pid}/environ").read_bytes().split(b"\0")
    assert f"{MARK}={launched._mark}".encode() in environ
    owners = [entry for entry in environ if entry.startswith(f"{OWNER}=".encode())]
    assert owners[0] == f"{OWNER}={launched._mark}/north-trainer".encode()


def test_stopping_asks_a_fork_to_end_and_ends_the_template(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    launched.start("one", module("wait", tmp_path / "up"), template="tests")
    assert soon((tmp_path / "up").exists)
    fork, template = fork_of(launched, "one"), launched._templates["tests"]
    launched.stop()
    assert (tmp_path / "up.ended").exists()
    assert fork.wait() == 7
    assert template.process is not None
    assert template.process.returncode == 0


def test_a_fork_that_ended_is_forked_again(launched: Processes, tmp_path: Path) -> None:
    prepared(launched, tmp_path)
    launched.start("one", module("wait", tmp_path / "up"), template="tests")
    launched.end("one")
    first = fork_of(launched, "one")
    launched.restart("one")
    assert fork_of(launched, "one").pid != first.pid
    assert first.returncode == -9


def test_forks_die_with_their_template_and_are_then_started(
    launched: Processes, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("consilium"), "propagate", True)
    logging.getLogger("consilium").setLevel(logging.INFO)
    prepared(launched, tmp_path)
    launched.start("one", module("wait", tmp_path / "up"), template="tests")
    fork = fork_of(launched, "one")
    template = launched._templates["tests"]
    assert template.process is not None
    template.process.kill()
    assert soon(lambda: launched.ended() == {"one": -9})
    assert not is_alive(fork.pid)
    launched.restart("one")
    assert isinstance(launched._running["one"], subprocess.Popen)
    assert "each process of tests imports its libraries by itself, because none can be forked" in caplog.text


LAUNCHER = """
import os, sys, time
from pathlib import Path
from common.processes import forked
from common.processes.launcher import Processes
forked._DEVICES = ()
folder = Path(sys.argv[1])
processes = Processes(folder / "logs", dict(os.environ))
processes.prepare("tests", ["heavy"], folder / "s")
processes.start("one", [sys.executable, "-m", "wait", folder / "up"], template="tests")
(folder / "pid").write_text(f"{processes._running['one'].pid} {processes._templates['tests'].process.pid}\\n")
time.sleep(600)
"""


def test_a_launcher_that_is_killed_by_force_leaves_no_fork_and_no_template(
    tmp_path: Path, env: dict[str, str]
) -> None:
    launcher = subprocess.Popen([sys.executable, "-c", LAUNCHER, tmp_path], cwd=ROOT, env=env)
    try:
        assert soon(lambda: (tmp_path / "pid").exists() and "\n" in (tmp_path / "pid").read_text())
        assert soon((tmp_path / "up").exists)
        pids = [int(pid) for pid in (tmp_path / "pid").read_text().split()]
        assert all(map(is_alive, pids))
    finally:
        launcher.kill()
        launcher.wait()
    assert soon(lambda: not any(map(is_alive, pids)))


# --- where a fork would be another process -------------------------------------------------------


def test_a_variable_that_an_import_may_have_read_must_be_the_templates(
    template: Template, env: dict[str, str]
) -> None:
    with pytest.raises(CannotFork, match="the variable OMP_NUM_THREADS is another than the template's"):
        template.fork("show", [], env | {"OMP_NUM_THREADS": "17"})


def test_what_a_fork_would_inherit_must_be_the_askers(template: Template, env: dict[str, str]) -> None:
    before = os.umask(0o077)
    try:
        os.umask(0o070 if before == 0o077 else 0o077)
        with pytest.raises(CannotFork, match="Umask is another than the template's"):
            template.fork("show", [], env)
    finally:
        os.umask(before)


def test_more_than_fits_into_the_room_is_refused(template: Template, env: dict[str, str]) -> None:
    with pytest.raises(CannotFork, match="its command line or its environment is too long"):
        template.fork("show", ["x" * 17_000], env)


def test_a_template_with_threads_makes_no_fork(tmp_path: Path, env: dict[str, str]) -> None:
    made = forked.start(["threads"], env, tmp_path / "template.log", tmp_path / "s")
    try:
        with pytest.raises(CannotFork, match=r"an import has started threads \(1\)"):
            made.fork("show", [], env)
    finally:
        made.end()


def test_a_template_whose_imports_fail_makes_no_fork_and_its_log_says_why(
    tmp_path: Path, env: dict[str, str]
) -> None:
    made = forked.start(["no_such_module"], env, tmp_path / "template.log", tmp_path / "s")
    try:
        with pytest.raises(CannotFork, match=r"the template has ended|does not answer"):
            made.fork("show", [], env)
    finally:
        made.end()
    assert "No module named 'no_such_module'" in (tmp_path / "template.log").read_text()


def test_a_machine_with_a_gpu_has_no_template(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forked, "_DEVICES", (os.devnull,))
    with pytest.raises(CannotFork, match="a GPU may be in use"):
        forked.start(["heavy"], env, tmp_path / "template.log", tmp_path / "s")


@pytest.mark.parametrize("command", [["flower-superlink"], [sys.executable, "-c", "pass"]])
def test_only_a_module_of_this_python_can_be_forked(command: list[str]) -> None:
    assert forked.forkable(command) is None


# --- a template for several launchers ------------------------------------------------------------


def test_launchers_of_one_environment_share_a_template(
    tmp_path: Path, env: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with forked.sharing({"tests": ["heavy"]}, env, tmp_path, Path.cwd()) as shared:
        monkeypatch.setenv(*next(iter(shared.items())))
        for name in ("first", "second"):
            launched = Processes(tmp_path / name, env | shared)
            assert launched.prepare("tests", ["heavy"], tmp_path / "unused")
            launched.start("one", module("show"), {"FLWR_HOME": name}, template="tests")
            assert fork_of(launched, "one").wait() == 0
            launched.stop()
    assert len((tmp_path / "imported").read_text().split()) == 1


def test_several_threads_may_ask_at_once(template: Template, env: dict[str, str]) -> None:
    codes: list[int] = []

    def ask(code: int) -> None:
        process = template.fork("leave", [str(code)], env)
        codes.append(process.wait())
        process.stdout.close()

    threads = [threading.Thread(target=ask, args=(code,)) for code in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(codes) == [0, 1, 2, 3, 4, 5]
