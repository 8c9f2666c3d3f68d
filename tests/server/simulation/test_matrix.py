"""The studies that one study is compared with."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from client.data.simulation.site_files import SIMULATED
from common.config import StudyConfig
from common.errors import ConfigError
from common.settings import to_yaml
from consilium_fl import simulation
from server.simulation import matrix

MakeStudy = Callable[..., StudyConfig]
THREE = {"train": ("east", "north", "south"), "evaluate": ("west",)}


def test_each_sites_own_model_the_federated_and_the_pooled_share_all_settings(make_study: MakeStudy) -> None:
    study = make_study(
        sites=THREE, algorithm={"kind": "fedprox"}, selection={"metric": "loss", "sites": ["north"]}
    )
    found = matrix.models(study, pooled=True)
    assert list(found) == ["local-east", "local-north", "local-south", "federated", "pooled"]
    assert found["federated"] == study.model_copy(update={"name": "federated"})
    assert found["local-north"].sites.train == ("north",)
    assert found["local-north"].sites.evaluate == ("east", "south", "west")
    assert found["local-north"].algorithm.kind == "fedavg"
    assert found["local-north"].selection is not None
    assert found["local-north"].selection.sites == ("north",)
    assert found["local-east"].selection is not None
    assert found["local-east"].selection.sites is None
    assert found["pooled"].sites.evaluate == study.sites.all
    assert {one.local for one in found.values()} == {study.local}


def test_each_training_site_is_left_out_once_and_scores(make_study: MakeStudy) -> None:
    found = matrix.left_out(make_study(sites=THREE))
    assert list(found) == ["federated", "without-east", "without-north", "without-south"]
    assert found["without-north"].sites.train == ("east", "south")
    assert found["without-north"].sites.evaluate == ("north", "west")


@pytest.mark.parametrize(
    ("sites", "said"),
    [
        ({"train": ("north", "south")}, "leaving one out takes 3 or more"),
        ({**THREE, "required": 2}, "sites.required or sites.per_round"),
    ],
)
def test_a_site_cannot_be_left_out_of_too_few(
    make_study: MakeStudy, sites: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        matrix.left_out(make_study(sites=sites))


def test_a_matrix_runs_and_goes_on_where_it_stopped(
    make_site: Callable[..., Any], make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    folder = tmp_path / "sites"
    folder.mkdir()
    for name in ("north", "south"):
        site = make_site(name, policy=SIMULATED)
        (folder / f"{name}.yaml").write_bytes(to_yaml(site.model_dump(mode="json", exclude_none=True)))
    about = {"synthetic": True, "classes": ["dark", "pale", "red"], "sites": {"north": 30, "south": 30}}
    (folder / "federation.yaml").write_bytes(to_yaml(about))
    study = make_study(rounds=1)
    table = simulation.matrix(study, folder, runs=tmp_path / "runs", engine="inline")
    assert not table.failures
    assert not table.lacking
    text = table.path.read_text()
    for model in ("local-north", "local-south", "federated"):
        assert f"| {model} |" in text
    assert "| *test images* | 6 | 6 | 12 |" in text
    monkeypatch.setattr("server.simulation.grid.run_study", lambda *_, **__: pytest.fail("it was run again"))
    assert simulation.matrix(study, folder, runs=tmp_path / "runs", engine="inline") == table
    with pytest.raises(ConfigError, match="leave start_from out and set rounds to 1 or more"):
        simulation.matrix(make_study(rounds=0, local={}), folder, runs=tmp_path / "runs", engine="inline")
