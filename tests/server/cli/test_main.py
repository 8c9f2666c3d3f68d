"""`consilium-server` as it is typed."""

import subprocess
import sys
from pathlib import Path

import pytest

from server import simulation
from server.cli.main import main
from server.simulation import Finished

ROOT = Path(__file__).parents[3]


@pytest.fixture(autouse=True)
def _keep_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def run(module: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """The program in a process of its own that tells on standard error if it loaded torch or Flower."""
    code = (
        f"import sys, atexit; from {module} import main\n"
        "heavy = {'torch', 'flwr', 'matplotlib'}\n"
        "atexit.register(lambda: sys.stderr.write('HEAVY' * bool(heavy & sys.modules.keys())))\n"
        "sys.exit(main())"
    )
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)


@pytest.mark.parametrize("command", [(), ("simulate",), ("compare",), ("report",)], ids=" ".join)
def test_help_is_there_at_once_without_torch_or_flower(command: tuple[str, ...]) -> None:
    done = run("server.cli.main", *command, "--help")
    assert done.returncode == 0
    assert "usage:" in done.stdout
    assert "HEAVY" not in done.stderr


def test_without_a_command_the_usage_is_shown_and_the_code_is_2() -> None:
    with pytest.raises(SystemExit) as caught:
        main([])
    assert caught.value.code == 2


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    folder = tmp_path / "sites"
    folder.mkdir()
    (folder / "federation.yaml").write_text("synthetic: true\nclasses: [mel, nv]\nsites: {north: 3}\n")
    (folder / "north.yaml").write_text("name: north\n")
    return folder


def test_all_mistakes_of_a_study_are_told_at_once(
    tmp_path: Path, sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "bad.yaml"
    study.write_text("name: x\nclasses: [mel, nv]\nrounds: 0\nlearning_rate: 1\nsites: {train: [a, a]}\n")
    assert main(["simulate", str(study), "--sites", str(sites), "--runs", str(tmp_path / "runs")]) == 1
    told = capsys.readouterr().err
    for mistake in ("rounds: ", "learning_rate: no such setting", "a is named twice", "model: missing"):
        assert mistake in told
    assert "Traceback" not in told
    assert not (tmp_path / "runs").exists()


def test_a_study_of_other_classes_than_the_images_is_refused(
    tmp_path: Path, sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study.yaml"
    study.write_text(
        "name: x\nclasses: [cat, dog]\nrounds: 1\nsites: {train: [north]}\nmodel: {encoder: convnext_t}\n"
    )
    assert main(["simulate", str(study), "--sites", str(sites), "--runs", str(tmp_path)]) == 1
    assert "has the classes cat, dog, the images of" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["simulate", "gone.yaml"], ["compare", "gone.yaml"]], ids=lambda a: a[0]
)
def test_a_file_that_is_not_there_is_named(
    arguments: list[str], sites: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([*arguments, "--sites", str(sites), "--runs", str(tmp_path / "runs")]) == 1
    assert "gone.yaml cannot be read" in capsys.readouterr().err


def test_a_folder_that_is_no_federation_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["simulate", "study.yaml", "--sites", str(tmp_path)]) == 1
    assert "federation.yaml cannot be read" in capsys.readouterr().err


def test_the_exit_code_is_0_only_for_a_finished_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for finished, code in ((True, 0), (False, 1)):
        monkeypatch.setattr(simulation, "simulate", lambda *_, _f=finished, **__: Finished(_f, "told"))
        assert main(["simulate", "s.yaml", "--sites", "d"]) == code
        assert "told" in capsys.readouterr().out


def test_a_report_of_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "study.yaml cannot be read" in capsys.readouterr().err
