"""A finished study of two sites, run in this process: the real server and trainers, without Flower in between."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from client.config import SiteConfig
from client.heads import worker
from client.trainer import Trainer
from common.config import StudyConfig
from common.settings import to_yaml
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.sites import InProcessSites

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]


@pytest.fixture(scope="session")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the one run of these tests is kept, once it was made."""
    return tmp_path_factory.mktemp("kept") / "everything"


@pytest.fixture
def run_dir(
    kept: Path, make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """The folder of a run of one round; `north` trains, `south` only scores. Images lie beside it."""
    monkeypatch.setattr("common.log.start", lambda *_: None)
    if kept.exists():
        shutil.copytree(kept, tmp_path, dirs_exist_ok=True)
    else:
        monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))
        _run(make_site, make_study, tmp_path)
        shutil.copytree(tmp_path, kept)
    return tmp_path / "run"


def _run(make_site: MakeSite, make_study: MakeStudy, home: Path) -> None:
    study = make_study(
        sites={"train": ("north",), "evaluate": ("south",)},
        rounds=1,
        heads={"federated": [{"kind": "lda"}], "local": [{"kind": "naive_bayes"}]},
    )
    folder = home / "run"
    folder.mkdir()
    (folder / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=folder / "study.yaml", run_dir=folder, node_ids={"north": 1, "south": 2}, synthetic=True
    )
    (folder / "server.yaml").write_bytes(to_yaml(config.model_dump(mode="json")))
    trainers = {
        "north": Trainer(make_site("north")).answer,
        "south": Trainer(make_site("south", per_class=4, test_only=True)).answer,
    }
    conduct(config, InProcessSites(trainers))
