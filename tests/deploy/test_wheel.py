"""One wheel, built by `make wheel`, is the whole program: it runs in an environment that has nothing else."""

import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

from common import release

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]

ROOT = Path(__file__).parents[2]
UV = Path(sys.executable).with_name("uv")
PACKAGES = ("client", "common", "configs", "consilium_fl", "server")
BUILT_FROM = ("LICENSE", "Makefile", "README.md", "pyproject.toml", "requirements.lock")

Run = Callable[..., str]


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What a wheel is built from, in a folder of its own: building leaves files behind."""
    folder = tmp_path_factory.mktemp("checkout")
    for name in BUILT_FROM:
        shutil.copy(ROOT / name, folder)
    for name in PACKAGES:
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
    stale = folder / "build" / "lib" / "server" / "gone.py"  # of an earlier build
    stale.parent.mkdir(parents=True)
    stale.touch()
    return folder


@pytest.fixture(scope="module")
def wheel(checkout: Path) -> Path:
    # -o: the environment that runs this test is up to date.
    _done(["make", "-o", f"{sys.prefix}/.installed", "wheel", f"VENV={sys.prefix}"], checkout)
    (built,) = (checkout / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def run(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """Runs a program of an environment that holds the wheel, what it needs, and no torch; in an empty folder."""
    venv = tmp_path_factory.mktemp("environment") / "venv"
    _done([UV, "venv", "--quiet", "--python", sys.executable, venv], ROOT)
    python = venv / "bin" / "python"
    _done(
        [UV, "pip", "install", "--quiet", "--python", python, "--constraint", ROOT / "requirements.lock",
         f"{wheel}[server]"],
        wheel.parent,
    )  # fmt: skip

    def run(program: str, *arguments: str, folder: Path | None = None) -> str:
        return _done([venv / "bin" / program, *arguments], folder or tmp_path_factory.mktemp("empty"))

    return run


def _done(command: list[str | Path], folder: Path) -> str:
    """What the command prints. It sees no package of this checkout, and must end with exit code 0."""
    environment = {
        name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")
    }
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def test_the_wheel_is_named_after_the_distribution_and_its_version(wheel: Path) -> None:
    name = release.DISTRIBUTION.replace("-", "_")
    assert wheel.name == f"{name}-{release.version()}-py3-none-any.whl"


def test_the_wheel_holds_every_file_of_the_packages_and_no_other(wheel: Path, checkout: Path) -> None:
    expected = {
        path.relative_to(checkout).as_posix()
        for package in PACKAGES
        for path in (checkout / package).rglob("*")
        if path.is_file()
    }
    with zipfile.ZipFile(wheel) as archive:
        packed = {name for name in archive.namelist() if ".dist-info/" not in name}
    assert packed == expected
    assert {Path(name).suffix for name in packed} >= {
        ".sh",
        ".service",
        ".md",
        ".json",
        ".yml",
        ".yaml",
        ".typed",
    }


def test_nothing_comes_from_the_checkout_and_torch_is_not_there(run: Run) -> None:
    code = (
        "import importlib.util as u, pathlib, client, common, configs, consilium_fl, server\n"
        "assert u.find_spec('torch') is None\n"
        "for package in (client, common, configs, consilium_fl, server):\n"
        "    assert 'site-packages' in package.__file__, package.__file__\n"
        "from common import release\n"
        "print(release.version())"
    )
    assert run("python", "-c", code).strip() == release.version()


@pytest.mark.parametrize("program", ["consilium-server", "consilium-site"])
def test_both_programs_explain_themselves(run: Run, program: str) -> None:
    assert program in run(program, "--help")


@pytest.mark.parametrize("program", ["consilium-server", "consilium-site"])
def test_both_programs_know_their_version(run: Run, program: str) -> None:
    assert run(program, "--version").split()[-1] == release.version()


def test_the_python_interface_reads_studies_without_torch(run: Run) -> None:
    code = (
        "import sys, consilium_fl as fl\n"
        "from importlib import resources\n"
        "with resources.as_file(resources.files('configs') / 'study' / 'demo.yaml') as path:\n"
        "    print(fl.__version__, fl.read_study(path).name, fl.Run.__name__, fl.simulate.__name__)\n"
        "try:\n    fl.load_predictor\n"
        "except ModuleNotFoundError as error:\n    print(error)"
    )
    first, second = run("python", "-c", code).splitlines()
    assert first == f"{release.version()} demo Run simulate"
    assert "which is not installed" in second
    assert "extra `trainer`" in second


def test_an_example_federation_is_printed(run: Run) -> None:
    printed = run("consilium-server", "provision", "--example")
    assert printed == (ROOT / "configs" / "server" / "federation.yaml").read_text(encoding="utf-8")


def test_an_example_federation_becomes_start_up_kits(run: Run, tmp_path: Path) -> None:
    run("consilium-server", "provision", "--example", "--out", "skin", folder=tmp_path)
    run("consilium-server", "provision", "skin/federation.yaml", "--out", "skin", folder=tmp_path)
    with zipfile.ZipFile(tmp_path / "skin" / "kits" / "north.zip") as kit:
        assert "consilium-north/site.sh" in kit.namelist()
    assert (tmp_path / "skin/examples/monitoring/grafana/dashboards/consilium.json").is_file()


def test_the_flower_app_is_made_from_the_wheel(run: Run, tmp_path: Path) -> None:
    code = "from pathlib import Path; from server.deployment import bundle; bundle.stage(Path('app'))"
    run("python", "-c", code, folder=tmp_path)
    project = (tmp_path / "app" / "pyproject.toml").read_text()
    assert f'version = "{release.version()}"' in project
    assert (tmp_path / "app" / "server" / "app.py").is_file()
    assert not (tmp_path / "app" / "client").exists()
