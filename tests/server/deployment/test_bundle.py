"""What the ServerApp's bundle holds: it stays on the server, and nothing of a site's code is in it."""

import io
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from flwr.cli.build import build_fab_from_disk

from server.deployment import bundle


@pytest.fixture(scope="module")
def app(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return bundle.stage(tmp_path_factory.mktemp("bundle") / "app")


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr's
def test_flower_packs_the_servers_code_and_the_common_one_alone(app: Path) -> None:
    packed = set(zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))).namelist())
    assert {name.partition("/")[0] for name in packed} == {
        ".info",
        "LICENSE",
        "common",
        "pyproject.toml",
        "server",
    }


@pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")  # flwr's
def test_a_study_is_conducted_and_reported_from_what_flower_packs(app: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(io.BytesIO(build_fab_from_disk(app))).extractall(tmp_path)
    code = "import server.app, server.conduct; print(server.conduct.__file__)"
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.stdout.strip() == str(tmp_path / "server/conduct.py"), done.stderr


def test_nothing_of_a_sites_code_is_staged(app: Path) -> None:
    assert {path.name for path in app.iterdir()} == {"common", "server", "pyproject.toml", "LICENSE"}
    assert not list(app.rglob("*.pyc"))
    size = sum(path.stat().st_size for path in app.rglob("*") if path.is_file())
    assert size < 10 * 2**20  # Flower's limit
