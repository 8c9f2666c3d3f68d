"""The arrows of the design: the contracts in pyproject.toml hold, and they fail when an arrow is turned around.

The contracts read the source. What a process really loads is looked at here as well: an import inside a
function, or one made by a library, is in no contract.
"""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.places import ROOT

PACKAGES = ("common", "client", "server", "consilium_fl")
MODULES = sorted(path.relative_to(ROOT) for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

TURNED = {
    "server and client meet only in common": ("server/rounds/loop.py", "import client.training.fit"),
    "the Python interface does not import the commands": (
        "consilium_fl/records.py",
        "import server.cli.main",
    ),
    "the Python interface on the server's side": ("consilium_fl/runs.py", "import client.predict"),
    "the Python interface on the sites' side": ("consilium_fl/sites.py", "import server.state"),
    "the Python interface on neither side": ("consilium_fl/studies.py", "import client.config"),
    "torch and what needs it only at the sites": ("server/aggregation/mean.py", "import torch"),
    "no torch where the network is": ("client/gateway/link.py", "import client.training.hardware.device"),
    "no images where the site's console is": ("client/console/reading.py", "import client.data.manifest"),
    "flwr only where messages are packed, sent and launched": ("client/trainer.py", "import flwr"),
    "folders of common, from top to bottom": ("common/config/study.py", "import common.wire"),
    "folders of the server, from top to bottom": ("server/aggregation/mean.py", "import server.rounds.loop"),
    "folders of the client, from top to bottom": ("client/model/build.py", "import client.trainer"),
    "folders of client/data, from top to bottom": (
        "client/data/decoding/nifti.py",
        "import client.data.readers.read",
    ),
}
"""By contract: a file, and an import in it that the contract forbids."""


def lint_imports(checkout: Path) -> "subprocess.CompletedProcess[str]":
    program = Path(sys.executable).with_name("lint-imports")
    return subprocess.run(
        [program, "--no-cache", "--no-logo"], cwd=checkout, env=os.environ | {"COLUMNS": "200"}, timeout=120,
        capture_output=True, text=True,
    )  # fmt: skip


def broken(output: str) -> set[str]:
    return {line.partition(" BROKEN")[0] for line in output.splitlines() if " BROKEN" in line}


def test_every_contract_on_imports_is_kept() -> None:
    done = lint_imports(ROOT)
    assert done.returncode == 0, done.stdout


def test_every_contract_fails_when_its_arrow_is_turned_around(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    for file, line in TURNED.values():
        path = tmp_path / file
        path.write_text(f"{path.read_text(encoding='utf-8')}\n\ndef turned() -> None:\n    {line}\n")
    done = lint_imports(tmp_path)
    assert done.returncode == 1
    assert broken(done.stdout) == TURNED.keys()


def test_a_new_folder_must_be_given_a_place(tmp_path: Path) -> None:
    for package in PACKAGES:
        shutil.copytree(ROOT / package, tmp_path / package, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    (tmp_path / "server" / "misc").mkdir()
    (tmp_path / "server" / "misc" / "__init__.py").write_text("")
    done = lint_imports(tmp_path)
    assert done.returncode != 0
    assert "misc" in done.stdout + done.stderr


def loads(module: str, unwanted: str) -> bool:
    code = f"import sys, {module}; sys.exit({unwanted!r} in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, timeout=120, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stderr
    assert not done.stderr, done.stderr
    return done.returncode == 1


@pytest.mark.parametrize(
    "module",
    [
        "client.gateway.relay",
        "client.gateway.link",
        "client.gateway.settings",
        "server.app",
        "client.console.app",
    ],
)
def test_a_process_without_images_starts_without_torch(module: str) -> None:
    assert not loads(module, "torch")


def test_matplotlib_waits_until_a_picture_is_drawn() -> None:
    assert not loads("server.report.write", "matplotlib")


@pytest.mark.parametrize(
    "package", ["common.config", "common.wire", "common.heads", "common.metrics", "client.config"]
)
@pytest.mark.parametrize("heavy", ["torch", "flwr"])
def test_a_package_that_many_import_loads_neither_torch_nor_flower(package: str, heavy: str) -> None:
    assert not loads(package, heavy)


@pytest.mark.parametrize("module", MODULES, ids=str)
def test_every_module_has_a_docstring_and_names_others_in_full(module: Path) -> None:
    tree = ast.parse((ROOT / module).read_text(encoding="utf-8"))
    assert ast.get_docstring(tree)
    assert not [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.level]
