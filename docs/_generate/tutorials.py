"""Tutorials: notebooks written as text, and how they are run.

A tutorial is Markdown with cells of Python (MyST). It holds no outputs: they are made when it is run, by `make docs`
and by a test. What a cell prints is checked by a hidden cell after it, so a tutorial that became wrong fails.

    python -m docs._generate.tutorials docs/tutorials/heads.md FOLDER       # runs one in FOLDER
"""

import os
import sys
from pathlib import Path

import nbformat
from jupyter_client.manager import KernelManager
from myst_nb.core.read import read_myst_markdown_notebook
from nbclient import NotebookClient

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "docs" / "tutorials"
HIDDEN = "remove-cell"
"""Tag of cells that the built page does not show."""
TIMEOUT_S = 300
"""Of one cell."""


def pages() -> list[Path]:
    """Every tutorial, in the order of their names."""
    return sorted(path for path in FOLDER.glob("*.md") if path.name != "index.md")


def read(page: Path) -> nbformat.NotebookNode:
    """The notebook of a page."""
    text = page.read_text(encoding="utf-8")
    return nbformat.from_dict(read_myst_markdown_notebook(text, add_source_map=False, path=page))


def environment() -> dict[str, str]:
    """Variables with which the cells find this checkout, its commands and one thread."""
    commands = str(Path(sys.executable).parent)
    return {
        "PATH": os.pathsep.join([commands, os.environ.get("PATH", "")]),
        "PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")])),
        "OMP_NUM_THREADS": "1",
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }


def run(notebook: nbformat.NotebookNode, folder: Path) -> None:
    """Run every cell in `folder`, over a Unix socket. Raises CellExecutionError at the first cell that fails."""
    manager = KernelManager(kernel_name="python3", transport="ipc", ip=str(folder / "kernel"))
    client = NotebookClient(
        notebook, km=manager, timeout=TIMEOUT_S, resources={"metadata": {"path": str(folder)}}
    )
    client.execute(env=os.environ | environment())


if __name__ == "__main__":
    run(read(Path(sys.argv[1])), Path(sys.argv[2]).resolve())
