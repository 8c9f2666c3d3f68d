"""Confinement of the console's process by the kernel (Landlock, landlock(7)): from then on it cannot read an image.

The console runs as a user who may read the trainer's files, and the decoded images lie among them. So before it answers
anything, the process gives up all files but Python's own, the audit log, the approvals and its own folder, and the
right to open a connection to any machine. Nothing that a request makes it do can go beyond that.
"""

import ctypes
import os
import struct
import sys
from pathlib import Path

from client.governance import audit
from common import log

FOLDER = "console"
"""The console's own folder in `state_dir`: its token, and the page of a preflight."""

_CREATE_RULESET, _ADD_RULE, _RESTRICT_SELF = 444, 445, 446
"""Numbers of the system calls, the same on every architecture."""
_VERSION, _PATH_BENEATH, _NO_NEW_PRIVILEGES = 1, 1, 38

_EXECUTE, _WRITE_FILE, _READ_FILE, _READ_DIR = 1 << 0, 1 << 1, 1 << 2, 1 << 3
_FILES = {1: (1 << 13) - 1, 2: (1 << 14) - 1}
_ALL_FILES = (1 << 15) - 1
"""Rights on files that are given up, by version of Landlock; from the third on, all of these."""
_TCP = 3
"""To bind and to connect, from the fourth version on."""

_SYSTEM = ("/usr", "/lib", "/lib64", "/etc")


def confine(state_dir: Path) -> bool:
    """Give up what the console does not need, in this thread and those that it starts. False if the kernel cannot.

    The audit log has to exist, as a rule is for the file and not for its name.
    """
    kernel = ctypes.CDLL(None, use_errno=True)
    version = kernel.syscall(_CREATE_RULESET, None, 0, _VERSION)
    if version < 1:
        log.warn(
            "this kernel has no Landlock, so it does not keep the console from the images; run it as a user who may "
            "not read them"
        )
        return False
    handled = _FILES.get(version, _ALL_FILES)
    attributes = struct.pack("=QQ", handled, _TCP) if version >= 4 else struct.pack("=Q", handled)
    ruleset = _checked(kernel.syscall(_CREATE_RULESET, attributes, len(attributes), 0))
    try:
        for path, rights in _rules(state_dir, handled):
            _allow(kernel, ruleset, path, rights)
        _checked(kernel.prctl(_NO_NEW_PRIVILEGES, 1, 0, 0, 0))
        _checked(kernel.syscall(_RESTRICT_SELF, ruleset, 0))
    finally:
        os.close(ruleset)
    return True


def _rules(state_dir: Path, handled: int) -> list[tuple[Path, int]]:
    """What stays allowed, by file or folder; what a folder allows holds for all below it."""
    read = _EXECUTE | _READ_FILE | _READ_DIR
    python = {sys.prefix, sys.base_prefix, *(entry for entry in sys.path if entry), *_SYSTEM}
    return [
        *((Path(entry), read if Path(entry).is_dir() else _READ_FILE) for entry in sorted(python)),
        (state_dir, _READ_DIR),  # names; it is opened to flush a new log
        (state_dir / audit.FILE, _READ_FILE | _WRITE_FILE),
        (state_dir / FOLDER, _READ_FILE | _READ_DIR),
        (state_dir / "approvals", handled & ~_EXECUTE),
    ]


def _allow(kernel: ctypes.CDLL, ruleset: int, path: Path, rights: int) -> None:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    try:
        rule = struct.pack("=Qi", rights, descriptor)
        _checked(kernel.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, 0))
    finally:
        os.close(descriptor)


def _checked(result: int) -> int:
    """Raises OSError."""
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
