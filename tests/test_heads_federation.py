"""Heads through a whole study without processes: from its YAML to the report and to what left a site."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest

from client.config import SiteConfig
from client.trainer import Trainer
from common.config import StudyConfig
from common.weights import load_file
from server import enrolment, heads
from server.app import conduct
from server.config import ServerConfig
from server.head_record import read
from server.sites import InProcessSites
from server.state import RoundState

Answer = Callable[[bytes], bytes]
MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]

EXACT = [{"kind": "nearest_mean"}, {"kind": "lda"}]


@pytest.fixture(autouse=True)
def _quiet(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)


def fitted(study: StudyConfig, trainers: Mapping[str, Answer]) -> heads.Fitted:
    """The heads on the first weights."""
    sites = InProcessSites(trainers)
    cohort = enrolment.enrol(study, sites, None)
    state = RoundState(0, cohort.weights, cohort.reference.layout, cohort.reference.preprocessing)
    return heads.fit(study, sites, cohort, state)


def test_a_study_with_heads_ends_with_a_table_of_heads_and_sites(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path
) -> None:
    study = make_study(
        sites={"train": ("north", "south"), "evaluate": ("unseen",)},
        rounds=1,
        heads={"federated": EXACT, "local": [{"kind": "nearest_mean"}]},
    )
    (tmp_path / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    config = ServerConfig(
        study=tmp_path / "study.yaml",
        run_dir=tmp_path / "run",
        node_ids={"north": 1, "south": 2, "unseen": 3},
    )
    trainers = {
        "north": Trainer(make_site("north", per_class=10)).answer,
        "south": Trainer(make_site("south", per_class=15)).answer,
        "unseen": Trainer(make_site("unseen", per_class=4, test_only=True)).answer,
    }
    conduct(config, InProcessSites(trainers))
    table = read(tmp_path / "run")
    assert table is not None
    assert list(table.cells) == ["north", "south", "unseen", "pooled, training sites"]
    # 3 classes: a fifth of 10 and of 15 images, and all of 4
    images = {site: row["federated.lda"].num_images for site, row in table.cells.items()}
    assert images == {"north": 6, "south": 9, "unseen": 12, "pooled, training sites": 15}
    assert "local.nearest_mean" not in table.cells["unseen"]
    report = (tmp_path / "run/report.md").read_text()
    assert "| head | north | south | unseen (only scores) | pooled, training sites |" in report
    assert "| federated.lda | " in report
    _, label = load_file(tmp_path / "run/heads/federated.lda.safetensors")
    _, about = load_file(tmp_path / "run/weights.safetensors")
    assert label["weights_sha256"] == about["sha256"]
