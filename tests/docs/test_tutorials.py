"""The tutorials run from their first cell to their last, and a tutorial that is wrong is noticed."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("myst_nb", reason="the extra `docs` is not installed as requirements.lock has it")

from docs._generate import tutorials

every_tutorial = pytest.mark.parametrize("page", tutorials.pages(), ids=lambda page: page.stem)


def run(page: Path, folder: Path) -> "subprocess.CompletedProcess[str]":
    """In a process of its own: a kernel's sockets are closed with it."""
    folder.mkdir()
    return subprocess.run(
        [sys.executable, "-m", "docs._generate.tutorials", page, folder],
        cwd=tutorials.ROOT, timeout=600, capture_output=True, text=True, check=False,
    )  # fmt: skip


def cells(page: Path) -> list[Any]:
    return [cell for cell in tutorials.read(page).cells if cell.cell_type == "code"]


@every_tutorial
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_tutorial_runs_and_what_it_prints_passes_its_own_checks(page: Path, tmp_path: Path) -> None:
    done = run(page, tmp_path / "run")
    assert done.returncode == 0, done.stderr[-4000:]


@every_tutorial
def test_a_tutorial_checks_what_it_shows(page: Path) -> None:
    found = cells(page)
    checks = [cell for cell in found if tutorials.HIDDEN in cell.metadata.get("tags", [])]
    assert len(checks) >= 2
    assert all("assert " in cell.source for cell in checks)
    assert tutorials.HIDDEN in found[-1].metadata.tags  # nothing is shown after the last check


@every_tutorial
def test_a_tutorial_draws_with_a_seed_and_holds_no_outputs(page: Path) -> None:
    assert "--seed 0" in page.read_text(encoding="utf-8")
    assert not any(cell.outputs for cell in cells(page))


@pytest.mark.slow
@pytest.mark.parametrize("wrong", ["assert 1 == 2", "%%bash\nexit 7"], ids=["figure", "command"])
def test_a_tutorial_with_a_wrong_figure_or_a_command_that_fails_is_noticed(
    wrong: str, tmp_path: Path
) -> None:
    page = tmp_path / "wrong.md"
    header = "---\nfile_format: mystnb\nkernelspec:\n  name: python3\n---\n"
    page.write_text(f"{header}```{{code-cell}} ipython3\n{wrong}\n```\n", "utf-8")
    done = run(page, tmp_path / "run")
    assert done.returncode == 1
    assert "AssertionError" in done.stderr or "exit status 7" in done.stderr
