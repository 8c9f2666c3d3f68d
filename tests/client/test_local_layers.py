"""Statistics of batch normalisation that stay at a site, and what a site that has none of its own does."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from client import local_layers, predict
from client.config import SiteConfig
from client.model import parameters
from client.predict.merge import merge_run
from client.study_setup import StudySetup, set_up
from client.trainer import Trainer
from common.config import StudyConfig
from common.errors import SiteDataError
from common.weights import load_file
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.sites import InProcessSites

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
CPU = torch.device("cpu")
SILO = {"encoder": "test_efficientnet", "image_size": 32, "batch_norm": "local_statistics"}


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    """North trains, south only scores."""
    return make_study(model=SILO, sites={"train": ("north",), "evaluate": ("south",)}, rounds=1)


def running_means(setup: StudySetup) -> list[float]:
    return [
        float(array.sum())
        for name, array in parameters.local_arrays(setup.model, setup.parts).items()
        if name.endswith("running_mean")
    ]


def test_a_site_that_trains_begins_with_the_first_statistics(make_site: MakeSite, study: StudyConfig) -> None:
    setup = set_up(study, make_site("north"), CPU)
    local_layers.load(setup, "north", before_round=1)
    assert running_means(setup) == [0.0] * len(running_means(setup))


def test_a_site_that_only_scores_measures_its_own(make_site: MakeSite, study: StudyConfig) -> None:
    setup = set_up(study, make_site("south", test_only=True), CPU)
    before = parameters.shared_arrays(setup.model, setup.parts)
    local_layers.load(setup, "south", before_round=1)
    assert all(mean != 0 for mean in running_means(setup))
    after = parameters.shared_arrays(setup.model, setup.parts)
    assert all((after[name] == array).all() for name, array in before.items())


def test_labels_have_no_part_in_what_it_measures(make_site: MakeSite, study: StudyConfig) -> None:
    """The folders of two classes change their names. Images are in the order of files, so sums differ in last bits."""
    site = make_site("south", test_only=True)
    measured = []
    for _ in range(2):
        setup = set_up(study, site, CPU)
        local_layers.load(setup, "south", before_round=1)
        measured.append(running_means(setup))
        root, spare = site.data.root, site.data.root / "spare"
        one, other = sorted(path for path in root.iterdir() if path.is_dir())[:2]
        one.rename(spare)
        other.rename(one)
        spare.rename(other)
        site = site.model_copy(update={"state_dir": site.state_dir / "again"})
    assert measured[0] == pytest.approx(measured[1], rel=1e-4, abs=1e-5)


def test_too_few_images_are_named(make_site: MakeSite, study: StudyConfig) -> None:
    setup = set_up(study, make_site("south", per_class=5, test_only=True), CPU)
    with pytest.raises(SiteDataError, match=r"found 15 image\(s\) to adapt to, expected 16 or more"):
        local_layers.load(setup, "south", before_round=1)


@pytest.mark.parametrize("kind", ["local", "local_statistics"])
def test_a_training_site_predicts_with_what_stayed_there(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    study = make_study(model={**SILO, "batch_norm": kind}, sites={"train": ("north",)}, rounds=1)
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    north = make_site("north")
    config = ServerConfig(study=run / "study.yaml", run_dir=run, node_ids={"north": 1})
    conduct(config, InProcessSites({"north": Trainer(north).answer}))

    setup = set_up(study, north, CPU)
    network = predict.load(setup.state.folder, None, None, CPU).model.state_dict()
    kept = setup.state.local_arrays(before_round=2)
    assert kept is not None
    assert all((network[name].numpy() == array).all() for name, array in kept.items())
    sent, _ = load_file(run / "weights.safetensors")
    assert all((network[name].numpy() == array).all() for name, array in sent.items())
    assert not kept.keys() & sent.keys()


def test_statistics_never_travel_and_a_source_without_any_gives_images(
    make_site: MakeSite, study: StudyConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    run = tmp_path / "run"
    run.mkdir()
    (run / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    sites = {"north": make_site("north"), "south": make_site("south", test_only=True)}
    config = ServerConfig(study=run / "study.yaml", run_dir=run, node_ids={"north": 1, "south": 2})
    conduct(config, InProcessSites({name: Trainer(site).answer for name, site in sites.items()}))
    status = json.loads((run / "status.json").read_text())
    assert status["status"] == "finished"
    assert "SiloBN" in (run / "report.md").read_text()

    with pytest.raises(SiteDataError, match=r"model.batch_norm is local_statistics.*or images of the source"):
        predict.load(run, None, None, CPU)
    south = tmp_path / "south-images"
    classifier = predict.load(run, None, None, CPU, adapt_to=[south])
    squares = predict.squares(classifier, [south])
    assert classifier.probabilities(squares[:2]).shape == (2, 3)
    num_tensors, _ = merge_run(run, tmp_path / "whole.safetensors", None, adapt_to=[south])
    whole, _ = load_file(tmp_path / "whole.safetensors")
    assert len(whole) == num_tensors
    assert (whole["bn1.running_mean"] == classifier.model.state_dict()["bn1.running_mean"].numpy()).all()
