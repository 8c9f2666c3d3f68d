"""The frame of a benchmark's page: what ran where, the figures, and a person's reading of them.

A new run replaces the figures. The reading below them was written by a person and is kept.
"""

import platform
import subprocess
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "docs" / "results"
READING = "\n## What this shows"
"""Heading of the part that a person wrote."""


def write_page(path: Path, title: str, lines: Sequence[str], command: str, conditions: str) -> None:
    """Write a page: title, `lines` with the figures, how they were measured, and the reading that was there.

    `command` is the line that was typed, `conditions` what else a reader must know: threads, tries, seconds.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    page = [f"# {title}", "", *lines, "", measured(command, conditions), ""]
    path.write_text("\n".join(page) + reading(path), encoding="utf-8")


def measured(command: str, conditions: str) -> str:
    """The paragraph that says with which command, when, at which commit and on what the figures were measured."""
    return (
        f"Command: `{command}`. {datetime.now(UTC):%Y-%m-%d}, commit {commit()}, "
        f"{platform.system()} {platform.machine()}, {conditions}"
    )


def reading(path: Path) -> str:
    """What a person wrote below the figures of the page at `path`; empty without it."""
    page = path.read_text(encoding="utf-8") if path.exists() else ""
    _, heading, text = page.partition(READING)
    return heading + text


def commit() -> str:
    """The short name of the commit that is checked out, "unknown" outside a repository."""
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"
