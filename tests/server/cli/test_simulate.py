"""The commands of research."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from consilium_fl import simulation
from server.cli.main import main


@pytest.fixture
def sites(tmp_path: Path) -> Path:
    folder = tmp_path / "sites"
    folder.mkdir()
    (folder / "federation.yaml").write_text("synthetic: true\nclasses: [mel, nv]\nsites: {north: 3}\n")
    (folder / "north.yaml").write_text("name: north\n")
    return folder


def test_all_mistakes_of_a_study_are_reported_at_once(
    tmp_path: Path, sites: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "bad.yaml"
    study.write_text("name: x\nclasses: [mel, nv]\nrounds: -1\nlearning_rate: 1\nsites: {train: [a, a]}\n")
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


def over(finished: bool, incomplete: bool = False) -> SimpleNamespace:
    """A run, or a comparison, that is over."""
    return SimpleNamespace(finished=finished, incomplete=incomplete, describe=lambda: "how it ended")


def test_the_exit_code_is_0_only_for_a_finished_study(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for finished, incomplete, code in ((True, False, 0), (False, True, 3), (False, False, 1)):
        run = over(finished, incomplete)
        for command in ("simulate", "resume"):
            monkeypatch.setattr(simulation, command, lambda *_, _run=run, **__: _run)
            assert main([command, "s.yaml", "--sites", "d"]) == code
            assert "how it ended" in capsys.readouterr().out
        monkeypatch.setattr(simulation, "compare", lambda *_, _run=run, **__: _run)
        assert main(["compare", "g.yaml", "--sites", "d"]) == code


def test_a_report_of_a_folder_that_is_no_run_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["report", str(tmp_path)]) == 1
    assert "study.yaml cannot be read" in capsys.readouterr().err


def test_a_list_of_sites_or_variants_ends_at_the_next_option(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    def simulate(*_: object, leave_out: list[str], **__: object) -> SimpleNamespace:
        asked.append(leave_out)
        return over(True)

    def compare(*_: object, only: list[str], **__: object) -> SimpleNamespace:
        asked.append(only)
        return over(True)

    monkeypatch.setattr(simulation, "simulate", simulate)
    monkeypatch.setattr(simulation, "compare", compare)
    assert main(["simulate", "s.yaml", "--leave-out", "north", "south", "--sites", "d"]) == 0
    assert main(["compare", "--sites", "d", "--only", "a", "b", "--", "grid.yaml"]) == 0
    assert asked == [["north", "south"], ["a", "b"]]


def test_a_study_that_goes_on_needs_its_server_or_its_sites(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["resume", "runs/demo"]) == 1
    assert "or --sites with the run of a simulation" in capsys.readouterr().err


@pytest.mark.parametrize("port", ["0", "65536", "-5"])
def test_a_number_that_is_no_port_is_wrong_usage(tmp_path: Path, sites: Path, port: str) -> None:
    study = tmp_path / "study.yaml"
    study.write_text("name: x\n")
    assert main(["simulate", str(study), "--sites", str(sites), "--port", port]) == 2
