"""Example settings come out of the installed package, and never over what is there."""

from pathlib import Path

import pytest

from common.config import StudyConfig
from common.settings import load_settings
from server.cli.main import main
from server.provisioning import examples, startup_kit
from tests.places import CONFIGS


def test_the_example_federation_can_be_provisioned_at_once(tmp_path: Path) -> None:
    list(examples.write_examples(tmp_path / "skin"))
    list(startup_kit.provision(tmp_path / "skin" / "federation.yaml", tmp_path / "skin"))
    assert {path.name for path in (tmp_path / "skin" / "kits").iterdir()} == {"north.zip", "south.zip"}


def test_examples_are_the_files_of_configs(tmp_path: Path) -> None:
    lines = list(examples.write_examples(tmp_path))
    written = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert written >= {
        "federation.yaml",
        "examples/study/demo.yaml",
        "examples/site/example.yaml",
        "examples/monitoring/rules.yml",
        "examples/monitoring/grafana/dashboards/consilium.json",
        "examples/schema/study.schema.json",
    }
    for name in written - {"federation.yaml"}:
        assert (tmp_path / name).read_bytes() == (CONFIGS / name.removeprefix("examples/")).read_bytes()
    assert len(lines) == len(written) + 2  # the last two are the next steps
    assert load_settings(tmp_path / "examples/study/demo.yaml", StudyConfig, "study").name == "demo"
    assert examples.federation_yaml() == (CONFIGS / "server" / "federation.yaml").read_text()


def test_the_first_line_of_each_example_leads_to_its_schema(tmp_path: Path) -> None:
    list(examples.write_examples(tmp_path))
    written = [path for path in tmp_path.rglob("*.yaml") if path.parent.name != "monitoring"]
    assert {"federation.yaml", "demo.yaml", "example.yaml"} <= {path.name for path in written}
    for path in written:
        schema = path.read_text(encoding="utf-8").splitlines()[0].partition("$schema=")[2]
        assert schema
        assert (path.parent / schema).is_file()


def test_a_file_that_is_there_is_not_overwritten(tmp_path: Path) -> None:
    (tmp_path / "federation.yaml").write_text("mine")
    lines = list(examples.write_examples(tmp_path))
    assert (tmp_path / "federation.yaml").read_text() == "mine"
    assert lines[0] == f"{tmp_path / 'federation.yaml'} is there already and stays as it is"


@pytest.fixture
def _keep_the_log(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


@pytest.mark.usefixtures("_keep_the_log")
def test_the_command_prints_the_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "--example"]) == 0
    assert capsys.readouterr().out == (CONFIGS / "server" / "federation.yaml").read_text()


@pytest.mark.usefixtures("_keep_the_log")
def test_the_command_writes_the_example(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", "--example", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "federation.yaml").is_file()
    assert (
        f"consilium-server provision {tmp_path / 'federation.yaml'} --out {tmp_path}"
        in capsys.readouterr().out
    )


@pytest.mark.usefixtures("_keep_the_log")
@pytest.mark.parametrize("arguments", [["--out", "skin"], ["f.yaml"], ["f.yaml", "--example"]], ids=" ".join)
def test_a_half_command_names_the_example(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["provision", *arguments]) != 0
    assert "--example" in capsys.readouterr().err
