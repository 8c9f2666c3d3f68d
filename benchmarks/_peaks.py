"""The largest resident memory of the programs of a federation, by what they do."""

import os
import threading
from collections.abc import Iterable
from pathlib import Path

_OURS = {
    "SuperLink": ("flower_superlink", "access_log", "server.door"),
    "ServerApp": ("serverapp",),
    "gateway": ("supernode", "clientapp", "superexec", "gateway"),
}
_FLOWER = {
    "SuperLink": ("flower-superlink",),
    "ServerApp": ("flwr-serverapp",),
    "gateway": ("supernode", "clientapp"),
}
_NVFLARE = {"gateway": ("simulator_worker",), "ServerApp": ("nvflare",)}
"""By what is shown: parts of command lines. A SuperExec beside the SuperLink is counted nowhere."""


class Peaks(threading.Thread):
    """Looks at all processes whose environment or command line names a folder, five times a second."""

    def __init__(self, folder: Path, kind: str) -> None:
        super().__init__(daemon=True)
        self._folder, self._kind, self._over = str(folder).encode(), kind, threading.Event()
        self._mib = dict.fromkeys(_OURS, 0.0)

    @property
    def mib(self) -> tuple[float, ...]:
        """SuperLink, ServerApp and gateway, in MiB; of gateways the largest."""
        return tuple(self._mib.values())

    def run(self) -> None:
        while not self._over.wait(0.2):
            now: dict[tuple[str, str], float] = {}
            for process in Path("/proc").glob("[0-9]*"):
                if (found := self._look(process)) is not None:
                    program, owner, mib = found
                    now[program, owner] = now.get((program, owner), 0.0) + mib
            for (program, _), mib in now.items():
                self._mib[program] = max(self._mib[program], mib)

    def stop(self) -> None:
        """Look no more."""
        self._over.set()
        self.join()

    def _look(self, process: Path) -> tuple[str, str, float] | None:
        """Program, who it belongs to, MiB."""
        try:
            command = (process / "cmdline").read_bytes()
            environment = (process / "environ").read_bytes()
            pages = int((process / "statm").read_text().split()[1])
        except (OSError, IndexError):
            return None
        if self._folder not in command + environment:
            return None
        match self._kind:
            case "ours":
                owner = _variable(environment, b"CONSILIUM_PROCESS=").rpartition("/")[2]
                if owner.endswith("trainer") or not owner:
                    return None
                programs = {
                    name: _OURS[name]
                    for name in (("gateway",) if owner.endswith("gateway") else ("SuperLink", "ServerApp"))
                }
            case "flower":
                owner, programs = _variable(environment, b"ROUNDS_SITE="), _FLOWER
            case _:
                owner, programs = str(process) if b"simulator_worker" in command else "server", _NVFLARE
        program = next((name for name in programs if _names(command, programs[name])), None)
        return None if program is None else (program, owner, pages * os.sysconf("SC_PAGE_SIZE") / 2**20)


def _variable(environment: bytes, start: bytes) -> str:
    entries = [entry for entry in environment.split(b"\0") if entry.startswith(start)]
    return entries[0].decode(errors="replace").partition("=")[2] if entries else ""


def _names(command: bytes, parts: Iterable[str]) -> bool:
    return any(part.encode() in command for part in parts)
