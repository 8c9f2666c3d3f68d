"""Processes of a local federation that are forks of one template, and who starts it (`template.py`).

A fork is asked for on a Unix socket. It is handled as a started process is, but its exit code comes over that socket,
because the template is its parent.
"""

import contextlib
import json
import os
import select
import selectors
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from common.network import unix_sockets
from common.processes import template

_START_S = 600.0  # for its imports, on a busy, cold disk
_DEVICES = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")


class CannotFork(Exception):
    """A process has to be started in the usual way; the text says why."""


@dataclass
class Fork:
    """A process that was forked, as `subprocess.Popen` shows one that was started."""

    pid: int
    stdout: IO[bytes]
    stderr: IO[bytes] | None
    """None: it goes where the output goes."""
    _end: int
    """A pidfd, which no other process can come by."""
    _template: socket.socket
    returncode: int | None = None

    def poll(self) -> int | None:
        """The exit code, as Popen's; None while it runs."""
        if self.returncode is None and _is_readable(self._template.fileno(), 0):
            self.wait()
        return self.returncode

    def wait(self) -> int:
        """The exit code, once there is one."""
        if self.returncode is None:
            message = b""
            with contextlib.suppress(OSError):
                message = self._template.recv(template.MOST_BYTES)
            if not message:  # the template has died, and the kernel ends its forks
                _is_readable(self._end, None)
            self.returncode = int(json.loads(message)["code"]) if message else -signal.SIGKILL
            self._template.close()
            os.close(self._end)
        return self.returncode

    def communicate(self, timeout: float) -> tuple[bytes, bytes]:
        """What it prints and its errors until it ends, within seconds. Raises TimeoutExpired."""
        until, said = time.monotonic() + timeout, {1: b"", 2: b""}
        with selectors.DefaultSelector() as open_ones:
            for number, pipe in ((1, self.stdout), (2, self.stderr)):
                if pipe is not None:
                    open_ones.register(pipe, selectors.EVENT_READ, number)
            while open_ones.get_map():
                ready = open_ones.select(max(0.0, until - time.monotonic()))
                if not ready:
                    raise subprocess.TimeoutExpired(str(self.pid), timeout)
                for key, _ in ready:
                    piece = os.read(key.fd, 2**16)
                    said[key.data] += piece
                    if not piece:
                        open_ones.unregister(key.fileobj)
        self.wait()
        for pipe in (self.stdout, self.stderr):
            if pipe is not None:
                pipe.close()
        return said[1], said[2]

    def kill(self) -> None:
        """End it by force."""
        if self.poll() is None:
            with contextlib.suppress(ProcessLookupError):
                signal.pidfd_send_signal(self._end, signal.SIGKILL)


@dataclass(frozen=True)
class Template:
    """A template that this process started, or one that it may use."""

    path: Path
    """Its socket."""
    process: subprocess.Popen[bytes] | None = None

    def fork(
        self, module: str, arguments: Sequence[str], env: Mapping[str, str], *, has_errors: bool = False
    ) -> Fork:
        """`python -m MODULE ARGUMENTS`. Waits for the template's imports. Raises CannotFork.

        `has_errors`: what it writes to its standard error comes by itself, not with its output.
        """
        request = template.Request(module, arguments, dict(env), template.surroundings())
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        pipes = [os.pipe() for _ in range(1 + has_errors)]
        sources, is_forked = [source for source, _ in pipes], False
        try:
            answer, descriptors = self._ask(connection, request, (pipes[0][1], pipes[-1][1]))
            is_forked = "pid" in answer
        finally:
            for source, output in pipes:
                os.close(output)
                if not is_forked:
                    os.close(source)
            if not is_forked:
                connection.close()
        if not is_forked:
            raise CannotFork(str(answer["refused"]))
        stdout, *others = (os.fdopen(source, "rb", buffering=0) for source in sources)
        return Fork(int(answer["pid"]), stdout, others[0] if others else None, descriptors[0], connection)

    def _ask(
        self, connection: socket.socket, request: template.Request, outputs: Sequence[int]
    ) -> tuple[dict[str, Any], list[int]]:
        """The template's answer, and the new process's pidfd. Raises CannotFork."""
        message = request.to_bytes()
        if len(message) > template.MOST_BYTES:
            most_kib = template.MOST_BYTES // 1024
            raise CannotFork(
                f"its environment and its command line take {len(message) // 1024} KiB, and a template reads "
                f"{most_kib} KiB at most; start it with fewer or shorter variables"
            )
        try:
            connection.settimeout(_START_S)
            connection.connect(str(self.path))
            socket.send_fds(connection, [message], outputs)
            message, descriptors, _, _ = socket.recv_fds(connection, template.MOST_BYTES, 1)
            connection.settimeout(None)
        except OSError as error:
            raise CannotFork(f"the template does not answer: {error}") from error
        for descriptor in descriptors:
            os.set_inheritable(descriptor, False)
        return json.loads(message) if message else {"refused": "the template has ended"}, descriptors

    def end(self) -> None:
        """End it, with its forks."""
        if self.process is not None and self.process.stdin is not None:
            self.process.stdin.close()
            self.process.wait()


def start(
    modules: Sequence[str], env: Mapping[str, str], log: Path, path: Path, cwd: Path | None = None
) -> Template:
    """Start a template with these modules in the folder `cwd`, without waiting for it. Raises CannotFork.

    It listens at `path`, whose folder is this user's alone. What its imports print goes to `log`.
    """
    if (why := _missing()) is not None:
        raise CannotFork(why)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as listener:
        path.unlink(missing_ok=True)
        try:
            listener.bind(str(path))
        except OSError as error:
            raise CannotFork(f"there is no place for its socket: {error}") from error
        listener.listen(64)
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as output:
            room = "." * template.ROOM_BYTES
            process = subprocess.Popen(
                [sys.executable, "-m", template.__name__, room, str(listener.fileno()), *modules],
                stdin=subprocess.PIPE, stdout=output, stderr=output, start_new_session=True,
                env={template.ROOM: room, **env}, cwd=cwd, pass_fds=[listener.fileno()],
            )  # fmt: skip
    return Template(path, process)


def shared(name: str, env: Mapping[str, str]) -> Template | None:
    """The template of this name in the folder that an environment names."""
    if (folder := env.get(template.SHARED)) is None:
        return None
    return Template(path) if (path := Path(folder) / _socket(name)).exists() else None


def _socket(name: str) -> str:
    return f"{name}.sock"


def _is_readable(descriptor: int, timeout_ms: int | None) -> bool:
    """Whether something can be read before the time is up; None waits without end."""
    ready = select.poll()
    ready.register(descriptor, select.POLLIN)
    return bool(ready.poll(timeout_ms))


def _missing() -> str | None:
    """What a template would need here."""
    if sys.platform != "linux" or not hasattr(os, "pidfd_open"):
        return "it needs Linux with pidfds"
    if any(Path(device).exists() for device in _DEVICES):
        return "a GPU may be in use from an import on, and a fork cannot have it"
    return None


def forkable(command: Sequence[str | Path]) -> tuple[str, list[str]] | None:
    """Module and arguments of a command `python -m MODULE ARGUMENTS` with this Python; None of another."""
    match [str(part) for part in command]:
        case [sys.executable, "-m", module, *arguments]:
            return module, arguments
        case _:
            return None


@contextlib.contextmanager
def sharing(
    templates: Mapping[str, Sequence[str]], env: Mapping[str, str], logs: Path, cwd: Path
) -> Iterator[dict[str, str]]:
    """Templates by name, each with its modules, for launchers in the folder `cwd`; yields what their environment needs.

    That is nothing where there can be no template.
    """
    folder = unix_sockets.short_folder(max(map(_socket, templates), key=len))
    started: list[Template] = []
    try:
        with contextlib.suppress(CannotFork):
            for name, modules in templates.items():
                started.append(start(modules, env, logs / f"{name}.log", folder / _socket(name), cwd))
        yield {template.SHARED: str(folder)} if started else {}
    finally:
        for one in started:
            one.end()
        shutil.rmtree(folder)
