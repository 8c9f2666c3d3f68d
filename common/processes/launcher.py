"""Processes of a federation on this machine: started, watched, and all of them stopped.

The output of each process goes to a file of its own, which stops growing (`common/bounded_log.py`). `stop` ends every
process that was started, with all its children, and nothing else. If this process is killed by force, its watchdog does
the same.
"""

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import IO, TypeAlias

from common import log, polling
from common.bounded_log import BoundedLog, Pump
from common.errors import LaunchError
from common.processes import forked, watchdog
from common.processes.forked import CannotFork, Fork, Template
from common.text import one_line

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Command: TypeAlias = Sequence[str | Path]
Output: TypeAlias = IO[bytes] | int


_LAST_LINES_S = 2.0
"""Time for the last lines of a process that has ended to reach its log."""


class Interrupted(KeyboardInterrupt):
    """A signal asked this process to end."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.exit_code = 128 + number
        """As shells report it: 130 after Ctrl-C."""


def _pass(_number: int, _frame: FrameType | None) -> None:
    """Another signal while everything is ending already."""


@contextlib.contextmanager
def interruptible() -> Iterator[None]:
    """Ctrl-C, a closed terminal and `kill` all raise Interrupted, once, so that cleaning up ends.

    Only in the main thread, where Python delivers signals.
    """

    def interrupt(number: int, _frame: FrameType | None) -> None:
        for other in _SIGNALS:
            # Not SIG_IGN: of a second signal that has come already, Python would print a trace.
            signal.signal(other, _pass)
        raise Interrupted(number)

    former = {number: signal.signal(number, interrupt) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in former.items():
            signal.signal(number, handler)


@dataclass(frozen=True)
class _Output:
    """The output of a process on its way to a log."""

    source: IO[bytes]
    log: BoundedLog
    pump: Pump


@dataclass
class Processes:
    """The processes that this launcher started, by name."""

    logs: Path
    env: Mapping[str, str]
    scratch: tuple[Path, ...] = ()
    """Folders that the watchdog removes if this process cannot."""
    grace_s: float = watchdog.GRACE_S
    """Between the request to end and the end by force. More for what has processes of its own to end."""
    _started: dict[str, tuple[Command, Mapping[str, str], str | None]] = field(default_factory=dict)
    _running: dict[str, subprocess.Popen[bytes] | Fork] = field(default_factory=dict)
    _outputs: dict[str, "_Output"] = field(default_factory=dict)
    _commands: list[subprocess.Popen[bytes] | Fork] = field(default_factory=list)
    _watchdog: subprocess.Popen[bytes] | None = None
    _templates: dict[str, Template] = field(default_factory=dict)
    _without_forks: set[str] = field(default_factory=set)
    """Templates that could not make a process."""
    _mark: str = field(default_factory=lambda: uuid.uuid4().hex)

    def prepare(
        self, template: str, modules: Sequence[str], socket: Path, env: Mapping[str, str] | None = None
    ) -> bool:
        """Import `modules` in a template that listens at `socket`, for processes that may be forked (`template.py`).

        A template of that name that the environment names is taken instead. False where there can be none.
        """
        if self.share(template):
            return True
        try:
            made = forked.start(
                modules,
                self._environment("template", env or {}),
                self.logs / f"template-{template}.log",
                socket,
            )
        except CannotFork as why:
            self._no_forks(template, why)
            return False
        if made.process is not None:
            self._watch(made.process.pid)
        self._templates[template] = made
        return True

    def share(self, template: str) -> bool:
        """Take the template of that name that the environment names. False if there is none."""
        if (made := forked.shared(template, self.env)) is not None:
            self._templates[template] = made
        return made is not None

    def start(
        self,
        name: str,
        command: Command,
        env: Mapping[str, str] | None = None,
        *,
        template: str | None = None,
    ) -> None:
        """Start `command`; its output goes to logs/NAME.log. `env` is added to the environment of all.

        It is a fork of `template`, if there is one of that name.
        """
        self._close_log(name)
        self._started[name] = command, env or {}, template
        output = BoundedLog(self.logs / f"{name}.log")
        try:
            process = self._fork(command, template, name, env or {}) or self._spawn(
                command, subprocess.PIPE, subprocess.STDOUT, name=name, env=env or {}
            )
        except BaseException:
            output.close()
            raise
        assert process.stdout is not None, "it was asked for"
        self._running[name] = process
        self._outputs[name] = _Output(process.stdout, output, Pump(process.stdout.fileno(), output))

    def restart(self, name: str) -> None:
        """Start a process again that has ended; its remaining children are ended first."""
        self.end_family(name)
        command, env, template = self._started[name]
        self.start(name, command, env, template=template)

    def end(self, name: str) -> None:
        """End one process by force, so that it can be restarted."""
        process = self._running[name]
        process.kill()
        process.wait()

    def end_family(self, name: str) -> None:
        """End the children of a process that has ended."""
        assert self._running[name].poll() is not None, f"{name} is still running"
        watchdog.end_family(self._mark, name)

    def run(self, command: Command, deadline_s: float, *, template: str | None = None) -> str:
        """Run a command to its end; returns what it printed. Raises LaunchError."""
        return self.run_all([command], deadline_s, template=template)[0]

    def run_all(
        self, commands: Sequence[Command], deadline_s: float, *, template: str | None = None
    ) -> list[str]:
        """Run commands side by side to their ends; returns what each printed. Raises LaunchError.

        They are forks of `template`, if there is one of that name.
        """
        end = time.monotonic() + deadline_s
        started = [
            self._fork(command, template, "command", {}, has_errors=True)
            or self._spawn(command, subprocess.PIPE, subprocess.PIPE)
            for command in commands
        ]
        self._commands += started
        printed = []
        for command, process in zip(commands, started, strict=True):
            shown = _shown(command)
            try:
                out, err = process.communicate(timeout=max(0.0, end - time.monotonic()))
            except subprocess.TimeoutExpired as error:
                raise LaunchError(f"`{shown}` did not end within {deadline_s:.0f} s") from error
            if process.returncode != 0:
                output = (err or out).decode(errors="replace").strip()
                raise LaunchError(f"`{shown}` ended with exit code {process.returncode}: {output}")
            self._commands.remove(process)
            printed.append(out.decode(errors="replace"))
        return printed

    def ended(self) -> dict[str, int]:
        """Exit codes of the processes that have ended, by name."""
        codes = {name: process.poll() for name, process in self._running.items()}
        return {name: code for name, code in codes.items() if code is not None}

    def require_alive(self) -> None:
        """Raises LaunchError that names the first process that ended, with the end of its log."""
        for name, code in self.ended().items():
            raise LaunchError(f"{name} ended with exit code {code}. {self.tail(name)}")

    def wait_until(
        self,
        ready: Callable[[], bool],
        what: str,
        deadline_s: float,
        check: Callable[[], None] | None = None,
    ) -> None:
        """Return when `ready()`; raises LaunchError after `deadline_s` or if a process ends.

        `check` replaces the demand that every process is alive.
        """

        def is_ready() -> bool:
            if ready():
                return True
            (check or self.require_alive)()
            return False

        if not polling.wait_until(is_ready, deadline_s):
            raise LaunchError(f"{what} within {deadline_s:.0f} s; the logs in {self.logs} tell why")

    def tail(self, name: str, lines: int = 8) -> str:
        """The end of a process's log, for a message."""
        path = self.logs / f"{name}.log"
        if name in self._outputs and name in self.ended():
            self._outputs[name].pump.wait(_LAST_LINES_S)
        text = path.read_text(errors="replace").strip().splitlines() if path.exists() else []
        return f"Its log {path} ends:\n" + "\n".join(f"    {one_line(line)}" for line in text[-lines:])

    def stop(self) -> None:
        """End everything that was started, children included: by request, after a grace period by force."""
        started = [*self._running.values(), *self._commands]
        if started:
            watchdog.end(
                self._mark,
                [process.pid for process in started],
                lambda: all(process.poll() is not None for process in started),
                self.grace_s,
            )
        for process in started:
            process.wait()
        for template in self._templates.values():
            template.end()
        self._templates.clear()
        for name in list(self._outputs):
            self._close_log(name)
        for process in self._commands:
            for pipe in (process.stdout, process.stderr):
                if pipe is not None:
                    pipe.close()
        self._running.clear()
        self._commands.clear()
        self._dismiss()

    def _spawn(
        self,
        command: Command,
        stdout: Output,
        stderr: Output,
        name: str = "command",
        env: Mapping[str, str] | None = None,
    ) -> subprocess.Popen[bytes]:
        process = subprocess.Popen(
            [str(part) for part in command],
            stdin=subprocess.DEVNULL,
            stdout=stdout,
            stderr=stderr,
            env=self._environment(name, env or {}),
            start_new_session=True,
        )
        self._watch(process.pid)
        return process

    def _fork(
        self,
        command: Command,
        template: str | None,
        name: str,
        env: Mapping[str, str],
        *,
        has_errors: bool = False,
    ) -> Fork | None:
        """None if there is no such template, or if it cannot make this process."""
        wanted = forked.forkable(command)
        if template is None or template not in self._templates or wanted is None:
            return None
        if template in self._without_forks:
            return None
        try:
            process = self._templates[template].fork(
                *wanted, self._environment(name, env), has_errors=has_errors
            )
        except CannotFork as why:
            self._no_forks(template, why)
            return None
        self._watch(process.pid)
        return process

    def _no_forks(self, template: str, why: CannotFork) -> None:
        """From now on every such process is started; those that were forked go on."""
        log.event(
            f"each process of {template} imports its libraries by itself, because none can be forked: {why}"
        )
        self._without_forks.add(template)

    def _environment(self, name: str, env: Mapping[str, str]) -> dict[str, str]:
        marks = {watchdog.MARK: self._mark, watchdog.OWNER: f"{self._mark}/{name}"}
        return {**self.env, **env, **marks}

    def _watch(self, group: int) -> None:
        """Tell the watchdog of a process, which leads a group of its own."""
        if self._watchdog is None:
            self._watchdog = _start_watchdog(self._mark, self.grace_s, self.scratch)
        self._tell(f"{group}\n")

    def _close_log(self, name: str) -> None:
        """Close the log of a process that has ended, after its last line."""
        output = self._outputs.pop(name, None)
        # A grandchild that could not be ended still holds the pipe. Its log then stays open, and so does the pipe.
        if output is not None and output.pump.wait(_LAST_LINES_S):
            output.source.close()
            output.log.close()

    def _tell(self, line: str) -> None:
        if self._watchdog is not None and self._watchdog.stdin is not None:
            with contextlib.suppress(BrokenPipeError):  # without a watchdog everything else still works
                self._watchdog.stdin.write(line.encode(errors="surrogateescape"))
                self._watchdog.stdin.flush()

    def _dismiss(self) -> None:
        if self._watchdog is None:
            return
        self._tell("done\n")
        with contextlib.suppress(BrokenPipeError):
            self._watchdog.communicate()
        self._watchdog = None


def _start_watchdog(mark: str, grace_s: float, scratch: Sequence[Path]) -> subprocess.Popen[bytes]:
    # Of no other launcher: one that started this one must not end the watchdog before what it watches.
    own = {name: text for name, text in os.environ.items() if name not in (watchdog.MARK, watchdog.OWNER)}
    return subprocess.Popen(
        [sys.executable, "-I", "-S", str(watchdog.__file__), mark, str(grace_s), *map(str, scratch)],
        env=own,
        stdin=subprocess.PIPE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )


def _shown(command: Command) -> str:
    """The beginning of a command, for a message: programs and modules by their own names."""
    words = [Path(str(part)).name for part in command[:3]]
    if words[1:2] == ["-m"]:
        words = [words[2].rpartition(".")[2], *map(str, command[3:5])]
    return " ".join(words)


def flower_command(name: str) -> Path:
    """The path of one of Flower's commands, installed beside this Python."""
    return Path(sys.executable).parent / name
