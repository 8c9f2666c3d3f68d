"""Findings about the machine: its device, its memory, and free space on its disk.

The check runs in the process or container that would train: a GPU that the machine has and the container
does not see is the usual problem.
"""

import os
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from client.config import SiteConfig
from client.preflight.findings import Finding
from common.errors import ConfigError
from common.network import unix_sockets

LITTLE_DISK_MIB, NO_DISK_MIB, LITTLE_MEMORY_MIB = 20_480, 1_024, 4_096


def check(site: SiteConfig) -> Iterator[Finding]:
    """The encoding of names, the socket's path, the device, the disk that state_dir is on, the memory."""
    if (encoding := sys.getfilesystemencoding()).lower().replace("-", "") != "utf8":
        yield Finding(
            "look",
            f"this shell has names of files in {encoding}, and site.yaml is in UTF-8: a name with other letters than "
            "a to z is not found. `export LC_ALL=C.UTF-8` before this, and before the trainer",
        )
    if site.socket is not None and (why := unix_sockets.too_long(site.socket)) is not None:
        yield Finding("stops", why)
    for setting in site.devices:
        yield _device(setting)
    yield _disk(site.state_dir, site.cache.disk_mib)
    yield _memory(site.cache.memory_mib)


def _device(setting: str) -> Finding:
    from client.training.hardware.device import choose_device, device_name

    try:
        device = choose_device(setting)
    except ConfigError as error:
        return Finding("stops", str(error))
    if device.type == "cpu" and setting == "auto":
        return Finding(
            "look",
            "no GPU is seen: this site would train on its CPU, tens of times slower. If the machine has one, the "
            "container or the user lacks it; `device: cuda` in site.yaml and the GPU's container toolkit give it",
        )
    return Finding("fine", f"trains on {device_name(device)}")


def _disk(state_dir: Path, cache_mib: int) -> Finding:
    try:
        state_dir.mkdir(parents=True, exist_ok=True)
        probe = state_dir / ".check"
        probe.write_bytes(b"")
        probe.unlink()
    except OSError as error:
        return Finding(
            "stops",
            f"{state_dir} cannot be written ({error.strerror}); make it this user's, or name another state_dir",
        )
    free_mib = shutil.disk_usage(state_dir).free // 2**20
    text = (
        f"{free_mib:,} MiB are free for {state_dir}; decoded images may take {cache_mib:,} (cache.disk_mib)"
    )
    if free_mib < NO_DISK_MIB:
        return Finding("stops", f"{text}. A study fails on a full disk: free some")
    return Finding("look" if free_mib < min(LITTLE_DISK_MIB, cache_mib) else "fine", text)


def _memory(cache_mib: int) -> Finding:
    total_mib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and (allowed := limit.read_text().strip()).isdigit():
        total_mib = min(total_mib, int(allowed) // 2**20)
    text = f"{total_mib:,} MiB of memory, of which decoded images take up to {cache_mib:,} (cache.memory_mib)"
    little = total_mib < LITTLE_MEMORY_MIB + cache_mib
    return Finding(
        "look" if little else "fine", text + ("; lower it if trainers are killed" if little else "")
    )
