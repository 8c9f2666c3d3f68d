"""The Python interface is light: what a name needs is loaded when the name is used, and no sooner."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import consilium_fl
from common import release

ROOT = Path(__file__).parents[2]
HEAVY = "{'torch', 'flwr', 'matplotlib', 'pandas', 'sklearn', 'client', 'server'}"


def heavy_modules(code: str) -> str:
    """Which heavy packages a new Python has loaded after `code`."""
    code = f"import sys\n{code}\nprint(*sorted({HEAVY} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_alone_loads_nothing_heavy() -> None:
    assert heavy_modules("import consilium_fl; dir(consilium_fl); consilium_fl.__version__") == ""


def test_a_study_is_read_without_server_and_client() -> None:
    assert heavy_modules("import consilium_fl; consilium_fl.read_study('configs/study/demo.yaml')") == ""


def test_a_run_is_read_without_torch_and_flower() -> None:
    assert heavy_modules("import consilium_fl; consilium_fl.Run") == "server"


def test_simulations_load_no_part_of_the_client() -> None:
    loaded = heavy_modules("import consilium_fl; consilium_fl.simulate; consilium_fl.compare").split()
    assert "server" in loaded
    assert not {"client", "torch"} & set(loaded)


@pytest.mark.slow
def test_a_predictor_loads_no_part_of_the_server() -> None:
    assert "server" not in heavy_modules("import consilium_fl; consilium_fl.load_predictor").split()


@pytest.mark.parametrize("name", consilium_fl.__all__)
def test_every_public_name_is_there(name: str) -> None:
    assert getattr(consilium_fl, name).__doc__


def test_public_names_are_those_that_type_checkers_see() -> None:
    tree = ast.parse(Path(consilium_fl.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    seen = {
        alias.name: str(node.module)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert seen.keys() == set(consilium_fl.__all__) == set(consilium_fl._HOMES)
    for name, home in consilium_fl._HOMES.items():
        assert getattr(consilium_fl, name) is getattr(sys.modules[home], name)
        assert seen[name] == home or home == "consilium_fl.records", name


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'simulat'"):
        consilium_fl.simulat  # noqa: B018


def test_the_version_is_the_installed_one() -> None:
    assert consilium_fl.__version__ == release.version()


def test_without_torch_the_error_names_the_package_and_the_extra() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import consilium_fl\n"
        "try:\n    consilium_fl.load_predictor\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=280)
    assert done.stdout.strip() == (
        "load_predictor needs the package torch, which is not installed; install it, or install Consilium with "
        "its extra `trainer`"
    )
