"""A process without a network, by its own seccomp filter (seccomp(2)): from then on it can open Unix sockets alone.

In a container of its own a trainer has no network, because the container has none. The containers of a Kubernetes pod
share one network, so there the trainer gives the right up itself, before it reads a plan. The kernel keeps the filter
for every thread and every process that it starts, through `execve`, and no process can remove it.

The filter is classic BPF: it sees the number of a system call and its arguments. `io_uring` could open a socket past
it, so this is refused as well.
"""

import ctypes
import errno
import os
import platform
import socket
import struct
from dataclasses import dataclass

from common.errors import LaunchError

_SET_NO_NEW_PRIVILEGES = 38
_SET_MODE_FILTER, _ALL_THREADS = 1, 1
_IO_URING_SETUP = 425
"""The same number on every architecture."""

_LOAD, _EQUAL, _AT_LEAST, _RETURN = 0x20, 0x15, 0x35, 0x06
"""Instructions: load a word of the call, jump if it is this, jump if it is this or more, end with this verdict."""
_NUMBER, _ARCHITECTURE, _FIRST_ARGUMENT = 0, 4, 16
"""Offsets in what the filter sees (`struct seccomp_data`); all machines here are little-endian."""
_ALLOW, _FAIL = 0x7FFF0000, 0x00050000
_OTHER_FORM = 0x40000000
"""Calls from here on are of x32, a second form of the same calls on x86-64."""


@dataclass(frozen=True)
class _Machine:
    """Numbers of the calls, by architecture."""

    architecture: int
    socket: int
    socketpair: int
    seccomp: int


_MACHINES = {
    "x86_64": _Machine(0xC000003E, socket=41, socketpair=53, seccomp=317),
    "aarch64": _Machine(0xC00000B7, socket=198, socketpair=199, seccomp=277),
}


def give_up_network() -> None:
    """From now on this process opens Unix sockets and no other, for good. Raises LaunchError if the kernel cannot.

    A socket that is open already stays open: call this first.
    """
    machine = _MACHINES.get(platform.machine())
    if platform.system() != "Linux" or machine is None:
        raise LaunchError(
            f"--no-network needs Linux on x86-64 or arm64, found {platform.system()} on {platform.machine()}; "
            "run the trainer in a container without a network instead"
        )
    kernel = ctypes.CDLL(None, use_errno=True)
    code = _filter(machine)
    program = ctypes.create_string_buffer(code, len(code))
    head = struct.pack("@HP", len(code) // 8, ctypes.addressof(program))
    kernel.prctl(_SET_NO_NEW_PRIVILEGES, 1, 0, 0, 0)
    if kernel.syscall(machine.seccomp, _SET_MODE_FILTER, _ALL_THREADS, head) != 0:
        raise LaunchError(
            f"--no-network: the kernel takes no seccomp filter here ({os.strerror(ctypes.get_errno())}); "
            "run the trainer in a container without a network instead"
        )
    _require_closed()


def _require_closed() -> None:
    """A try, so that a mistake in the filter stops the trainer. Raises LaunchError."""
    for family in (socket.AF_INET, socket.AF_INET6):
        try:
            socket.socket(family, socket.SOCK_DGRAM).close()
        except OSError as error:
            if error.errno == errno.EAFNOSUPPORT:
                continue
        raise LaunchError("--no-network: a socket could be opened in spite of the filter; report this")


def _filter(machine: _Machine) -> bytes:
    """The program: eight bytes an instruction, jumps count from the next one."""
    no_family, not_permitted = _FAIL | errno.EAFNOSUPPORT, _FAIL | errno.EPERM
    return b"".join(
        struct.pack("=HBBI", *instruction)
        for instruction in (
            (_LOAD, 0, 0, _ARCHITECTURE),
            (_EQUAL, 0, 9, machine.architecture),  # else: not permitted
            (_LOAD, 0, 0, _NUMBER),
            (_AT_LEAST, 7, 0, _OTHER_FORM),
            (_EQUAL, 6, 0, _IO_URING_SETUP),
            (_EQUAL, 1, 0, machine.socket),
            (_EQUAL, 0, 2, machine.socketpair),  # else: allow
            (_LOAD, 0, 0, _FIRST_ARGUMENT),
            (_EQUAL, 0, 1, socket.AF_UNIX),
            (_RETURN, 0, 0, _ALLOW),
            (_RETURN, 0, 0, no_family),
            (_RETURN, 0, 0, not_permitted),
        )
    )
