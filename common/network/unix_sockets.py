"""Unix sockets: how long a path may be, and a folder that is short enough for one."""

import tempfile
from pathlib import Path

LONGEST = 107
"""Bytes. sun_path of struct sockaddr_un holds 108 with its closing zero (unix(7))."""

_SHORT_FOLDERS = ("/tmp", "/dev/shm", "/var/tmp")


def too_long(socket: Path) -> str | None:
    """Why no socket can be made at this path, as a sentence; None if it is short enough."""
    size = len(str(socket.absolute()).encode(errors="surrogateescape"))
    if size <= LONGEST:
        return None
    return (
        f"the path of the socket {socket.name} has {size} bytes, and a Unix socket's may have {LONGEST}; name a "
        "shorter one as `socket`, or move the folder to a shorter place"
    )


def short_folder(longest_name: str) -> Path:
    """A new folder for this user only, where a socket of that name can be made.

    It is in the usual place for temporary files, unless that is too deep. Raises OSError if there is none.
    """
    tried: OSError | None = None
    for parent in dict.fromkeys((tempfile.gettempdir(), *_SHORT_FOLDERS)):
        if too_long(Path(parent) / "consilium-12345678" / longest_name) is not None:
            continue
        try:
            return Path(tempfile.mkdtemp(prefix="consilium-", dir=parent))
        except OSError as error:
            tried = error
    raise tried or OSError(
        f"no folder for temporary files is short enough for a Unix socket ({LONGEST} bytes)"
    )
