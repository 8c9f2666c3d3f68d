"""What the server ships to gateways is what docs/what-leaves.md lists."""

import io
import re
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from server.deployment import bundle
from tests.places import ROOT

PAGE = ROOT / "docs" / "what-leaves.md"


def listed() -> set[str]:
    """The entries on the page; one that ends in `/` stands for all that is in it."""
    page = PAGE.read_text(encoding="utf-8")
    block = page.partition("<!-- bundle")[2].partition("<!-- end of bundle -->")[0]
    return set(re.findall(r"^- `([^`]+)`", block, re.MULTILINE))


def entry_of(file: str, entries: set[str]) -> str | None:
    return next(
        (entry for entry in entries if file == entry or (entry[-1] == "/" and file.startswith(entry))), None
    )


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.stage(tmp_path_factory.mktemp("bundle") / "app")


def test_the_page_lists_exactly_what_is_staged(app: Path) -> None:
    staged = {path.relative_to(app).as_posix() for path in app.rglob("*") if path.is_file()}
    entries = listed() - {".info/CONTENT"}  # Flower adds it
    assert [file for file in staged if entry_of(file, entries) is None] == []
    assert {entry_of(file, entries) for file in staged} == entries


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr's
def test_the_page_lists_exactly_what_flower_packs(app: Path) -> None:
    packed = set(zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))).namelist())
    assert [file for file in packed if entry_of(file, listed()) is None] == []
    assert {entry_of(file, listed()) for file in packed} == listed()


def test_no_file_that_touches_images_is_shipped(app: Path) -> None:
    shipped = {path.relative_to(app / "client").as_posix() for path in (app / "client").rglob("*.py")}
    assert {"app.py", "link.py"} <= {Path(name).name for name in shipped}
    assert not {name for name in shipped if name.startswith(("data/", "model/", "training/", "trainer"))}


def test_gateways_get_the_files_that_a_gateway_needs_and_no_others(tmp_path: Path) -> None:
    app = bundle.stage(tmp_path / "app")
    gateway = {path.relative_to(app).as_posix() for path in (app / "client").rglob("*.py")}
    assert gateway == {f"client/{name}" for name in bundle.GATEWAY_FILES}
    assert {path.name for path in app.iterdir()} == {
        "client",
        "common",
        "server",
        "pyproject.toml",
        "LICENSE",
    }
    assert not list(app.rglob("*.pyc"))
    size = sum(path.stat().st_size for path in app.rglob("*") if path.is_file())
    assert size < 10 * 2**20  # Flower's limit
