"""Template of a local federation's processes: it imports once, and each process is a fork of it.

    python -m common.processes.template ROOM DESCRIPTOR MODULE...

A trainer's imports cost five seconds of a processor, on one machine once for every site. So one process imports
MODULEs and then only waits on the listening Unix socket DESCRIPTOR. Each connection asks for one process: `python -m
MODULE ARGUMENTS` with an environment and the asker's own standard output and error. The fork is that program. Session,
command line and environment are its own, also in /proc, where the watchdog looks for its mark.

A fork copies one thread and nothing of a device. So a template runs nothing but imports, and refuses once it has a
second thread. What a fork inherits, such as limits and namespaces, is the template's and not the asker's. So it is
refused as soon as any of that differs (`surroundings`), or a variable that a library may read at its import. Who was
refused starts its process as it always did (`forked.py`). Forks die with their template. The template ends with its
starter, whose end of the pipe on standard input closes.
"""

import atexit
import contextlib
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import selectors
import signal
import socket
import struct
import sys
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from common.processes import watchdog

ROOM = "CONSILIUM_TEMPLATE_ROOM"
"""Variable that holds room for a fork's own variables. It stands first in the template's environment."""
ROOM_BYTES = 16 * 1024
MOST_BYTES = 128 * 1024
"""Of one message: less than what a Unix socket takes at once."""

SHARED = "CONSILIUM_TEMPLATES"
"""Variable with the folder of templates that several launchers share, such as those of one run of the tests."""
VARYING = frozenset(
    {watchdog.MARK, watchdog.OWNER, SHARED, ROOM, "FLWR_HOME", "PATH", "SHLVL", "OLDPWD", "_"}
    | {"PYTEST_CURRENT_TEST", "PYTEST_VERSION", "PYTEST_XDIST_WORKER"}
)
"""Variables that no library reads at its import. A fork may have others than its template, and other proxies."""

_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG of prctl(2)
_LIFELINE = 0
_ASKING_S = 10.0


def surroundings() -> dict[str, Any]:
    """What a process hands on to its forks and its children, and what no request can set."""
    status = dict(line.partition(":")[::2] for line in Path("/proc/self/status").read_text().splitlines())
    words = ("Uid", "Gid", "Groups", "CapEff", "NoNewPrivs", "Seccomp", "Cpus_allowed", "TracerPid", "Umask")
    limits = {
        name: resource.getrlimit(getattr(resource, name)) for name in dir(resource) if "RLIMIT_" in name
    }
    found: dict[str, Any] = {name: status.get(name, "").strip() for name in words}
    found |= {name: list(limit) for name, limit in limits.items()}
    found |= {f"namespace {path.name}": str(path.readlink()) for path in Path("/proc/self/ns").iterdir()}
    found |= {"folder": str(Path.cwd()), "niceness": os.nice(0), "Python": sys.executable, "code": __file__}
    found["cgroup"] = Path("/proc/self/cgroup").read_text()
    return found


def difference(env: Mapping[str, str], other: Mapping[str, str]) -> str | None:
    """A variable that differs and may have been read by an import; None if there is none."""
    for name in sorted(env.keys() | other.keys()):
        if name not in VARYING and not name.lower().endswith("_proxy") and env.get(name) != other.get(name):
            return name
    return None


@dataclass(frozen=True)
class Request:
    """One process that is asked for."""

    module: str
    arguments: Sequence[str]
    env: Mapping[str, str]
    surroundings: Mapping[str, Any]

    def to_bytes(self) -> bytes:
        """As one message."""
        return json.dumps(vars(self)).encode()


@dataclass
class _Forks:
    """The forks that run, by the descriptor that tells their end."""

    wakes: selectors.BaseSelector = field(default_factory=selectors.DefaultSelector)
    running: dict[int, tuple[int, socket.socket]] = field(default_factory=dict)

    def add(self, pid: int, asker: socket.socket) -> None:
        """Tell the asker of its fork; without an asker nothing would end it."""
        end = os.pidfd_open(pid)
        self.running[end] = pid, asker
        self.wakes.register(end, selectors.EVENT_READ)
        try:
            socket.send_fds(asker, [json.dumps({"pid": pid}).encode()], [end])
        except OSError:
            signal.pidfd_send_signal(end, signal.SIGKILL)

    def reap(self, descriptor: int) -> None:
        """Tell the asker how a fork has ended."""
        pid, asker = self.running.pop(descriptor)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
        with contextlib.suppress(OSError), asker:  # an asker that has ended does not ask
            asker.send(json.dumps({"code": code}).encode())
        self.wakes.unregister(descriptor)
        os.close(descriptor)

    def forget(self) -> None:
        """In a fork: close what is the template's."""
        self.wakes.close()
        for descriptor, (_, asker) in self.running.items():
            os.close(descriptor)
            asker.close()


def main() -> None:
    """Import, and serve until the starter has ended; a fork returns from `_serve` and runs its program."""
    if not (arguments := sys.argv[2:]) or not Path("/proc/self/environ").read_bytes().startswith(
        ROOM.encode()
    ):
        raise SystemExit("a template is started by common.processes.forked alone")
    os.environ.pop(ROOM)
    given = dict(os.environ)  # imports add to it
    for module in arguments[1:]:
        importlib.import_module(module)
    if os.fork() == 0:
        os._exit(
            0
        )  # numpy's OpenBLAS ends its idle threads before a fork, and starts them again when it needs them
    os.wait()
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    with socket.socket(fileno=int(arguments[0])) as listener:
        request = _serve(listener, given)
    if request is None:
        os._exit(0)  # at once: what was imported has nothing to finish
    sys.argv = [sys.argv[0], *request.arguments]
    os._exit(_run(request.module))


def _run(module: str) -> int:
    """Run a fork's program; returns its exit code once all that Python does at its end is done, but for freeing.

    To free what was imported takes as long as to import it: every page of the template would be copied first.
    """
    code: object = 0
    try:
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    except SystemExit as end:
        code = 0 if end.code is None else end.code
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # closed by the program, or by its reader
            stream.flush()
    assert isinstance(code, int)
    return code & 0xFF


def _serve(listener: socket.socket, given: Mapping[str, str]) -> Request | None:
    """Answer until the template is to end: None. In a fork: what it is to run."""
    forks, heard, is_ending = _Forks(), socket.socketpair(), False
    for end in heard:
        end.setblocking(False)
    signal.signal(signal.SIGTERM, lambda *_: None)  # its forks end first, each in its own way
    signal.set_wakeup_fd(heard[1].fileno())
    for descriptor in (_LIFELINE, listener.fileno(), heard[0].fileno()):
        forks.wakes.register(descriptor, selectors.EVENT_READ)
    while not (is_ending and not forks.running):
        for key, _ in forks.wakes.select():
            if key.fd == _LIFELINE:
                return None
            if key.fd == heard[0].fileno():
                heard[0].recv(64)
                is_ending = True
            elif key.fd == listener.fileno():
                request = _answer(listener.accept()[0], forks, given)
                if request is not None:
                    signal.set_wakeup_fd(-1)
                    forks.forget()
                    for end in heard:
                        end.close()
                    return request
            elif key.fd in forks.running:
                forks.reap(key.fd)
    return None


def _answer(asker: socket.socket, forks: _Forks, given: Mapping[str, str]) -> Request | None:
    """Fork for one connection. None in the template; the request in the fork."""
    descriptors: list[int] = []
    if _user(asker) == os.geteuid():
        asker.settimeout(_ASKING_S)
        with contextlib.suppress(OSError):
            message, descriptors, flags, _ = socket.recv_fds(asker, MOST_BYTES, 2)
    changed: dict[str, str] = {}
    if len(descriptors) != 2:
        _close(descriptors)
        asker.close()
        return None
    if flags & socket.MSG_TRUNC:
        why: str | None = f"its message is longer than {MOST_BYTES // 1024} KiB"
    else:
        request = Request(**json.loads(message))
        changed = {name: text for name, text in request.env.items() if given.get(name) != text}
        why = _obstacle(request, given, changed)
    if why is not None:
        _close(descriptors)
        with contextlib.suppress(OSError), asker:  # an asker that has ended does not ask
            asker.send(json.dumps({"refused": why}).encode())
        return None
    template = os.getpid()
    # A request to end that comes before the fork is a process of its own waits for it, and is not the template's.
    signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGTERM,))
    if (pid := os.fork()) != 0:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
        _close(descriptors)
        forks.add(pid, asker)
        return None
    asker.close()
    for name in given.keys() - request.env.keys():
        os.environ.pop(name, None)
    os.environ.update(changed)
    _become(request, changed, descriptors, template)
    return request


def _close(descriptors: Sequence[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def _user(asker: socket.socket) -> int:
    """The user at the other end (unix(7), SO_PEERCRED)."""
    _, user, _ = struct.unpack("3i", asker.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return int(user)


def _obstacle(request: Request, given: Mapping[str, str], changed: Mapping[str, str]) -> str | None:
    """Why a fork would not be the process that is asked for."""
    ours = surroundings()
    for name in sorted(ours.keys() | request.surroundings.keys()):
        if ours.get(name) != request.surroundings.get(name):
            return f"{name} is another than the template's"
    if (variable := difference(given, request.env)) is not None:
        return f"the variable {variable} is another than the template's"
    if len(_variables(changed)) >= ROOM_BYTES or len(_command_line(request)) >= ROOM_BYTES:
        return "its command line or its environment is too long"
    if (num := len(list(Path("/proc/self/task").iterdir()))) != 1:
        return f"an import has started threads ({num - 1})"
    return None


def _variables(env: Mapping[str, str]) -> bytes:
    """As the kernel keeps them."""
    return b"".join(os.fsencode(f"{name}={text}") + b"\0" for name, text in env.items())


def _command_line(request: Request) -> bytes:
    command = (sys.executable, "-m", request.module, *request.arguments)
    return b"".join(os.fsencode(part) + b"\0" for part in command)


def _become(request: Request, changed: Mapping[str, str], outputs: Sequence[int], template: int) -> None:
    """Turn this fork into the process that was asked for, but for its program."""
    os.setsid()
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, (signal.SIGTERM,))
    ctypes.CDLL(None).prctl(_DIE_WITH_PARENT, signal.SIGKILL)
    if os.getppid() != template:
        os._exit(1)  # it died in between
    nothing = os.open(os.devnull, os.O_RDONLY)
    for target, source in enumerate((nothing, *outputs)):
        os.dup2(source, target)
    _close((nothing, *outputs))
    _open_standard_streams()
    _show(_command_line(request), _variables(changed))
    if (numpy := sys.modules.get("numpy")) is not None:
        numpy.random.seed()  # of one template, all forks would draw the same from numpy's own generator


def _open_standard_streams() -> None:
    """As Python does at its start: those of the template remember what kind of file they wrote to."""
    sys.stdin = sys.__stdin__ = open(0, closefd=False)  # type: ignore[misc]  # noqa: SIM115
    for name, descriptor, buffering in (("stdout", 1, -1), ("stderr", 2, 1)):
        former = getattr(sys, name)
        stream = open(  # noqa: SIM115
            descriptor, "w", buffering, encoding=former.encoding, errors=former.errors, closefd=False
        )
        if os.environ.get("PYTHONUNBUFFERED"):
            stream.reconfigure(write_through=True)
        setattr(sys, name, stream)
        setattr(sys, f"__{name}__", stream)


def _show(command_line: bytes, changed: bytes) -> None:
    """Write command line and variables where /proc shows them, into the room that was kept for them (proc(5))."""
    fields = Path("/proc/self/stat").read_text().rpartition(")")[2].split()
    arguments, arguments_end, environment = (int(fields[number - 3]) for number in (48, 49, 50))
    ctypes.memset(arguments, 0, arguments_end - arguments)
    ctypes.memmove(arguments, command_line, len(command_line))
    ctypes.memset(environment, 0, ROOM_BYTES)
    ctypes.memmove(environment, changed, len(changed))


if __name__ == "__main__":
    main()
