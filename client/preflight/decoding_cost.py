"""Findings about decoded images: the memory or disk space they need, and the time to decode them."""

import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path

from client.config import SiteConfig
from client.preflight.findings import Finding
from client.preflight.inspection import InspectedImage


def speed(images: Sequence[InspectedImage], side: int, num_threads: int) -> Finding:
    """How long the first epoch decodes."""
    decode_s = sum(image.decode_s for image in images) / num_threads
    return Finding(
        "fine",
        f"decoding all images once, to {side} x {side} pixels, takes about {decode_s:,.0f} s with {num_threads} "
        "thread(s); later epochs take them from the cache",
    )


def space(num_images: int, site: SiteConfig, side: int) -> Iterator[Finding]:
    """Whether decoded images will fit, into memory or on the disk."""
    mib = _kept_mib(num_images, side)
    in_memory = mib <= site.cache.memory_mib
    if not in_memory and mib > site.cache.disk_mib:
        yield Finding(
            "stops",
            f"decoded images of {side} x {side} pixels need {mib:,.0f} MiB, more than cache.disk_mib="
            f"{site.cache.disk_mib} and cache.memory_mib={site.cache.memory_mib}; raise one of them in the site's YAML",
        )
        return
    if not in_memory and mib > (free_mib := _free_mib(site.state_dir)):
        yield Finding(
            "stops",
            f"decoded images need {mib:,.0f} MiB on the disk of state_dir, which has {free_mib:,.0f} MiB left; free "
            "some space there or choose another state_dir",
        )
    yield Finding(
        "fine",
        f"decoded images will take {mib:,.0f} MiB {'of memory' if in_memory else 'in a file under state_dir'}, "
        f"for an encoder that keeps {side} x {side} pixels",
    )


def _kept_mib(num_images: int, side: int) -> float:
    return num_images * side * side * 3 / 2**20


def _free_mib(state_dir: Path) -> float:
    """Free, or taken by decoded images of earlier studies, which make room."""
    home = next(path for path in (state_dir, *state_dir.parents) if path.is_dir())
    kept = sum(path.stat().st_size for path in (state_dir / "images").glob("*.rgb"))
    return (shutil.disk_usage(home).free + kept) / 2**20
