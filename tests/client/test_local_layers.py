"""Statistics of batch normalisation that stay at a site, and what a site that has none of its own does."""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
import torch

from client import local_layers, predict
from client.config import NoSplit, SiteConfig
from client.model import parameters
from client.predict.merge import merge_run
from client.study_setup import StudySetup, set_up
from client.trainer import Trainer
from client.training.adapted_statistics import adapt_statistics
from common.config import StudyConfig
from common.errors import SiteDataError
from common.weights import Array, digest, load_file
from server.conduct import conduct
from server.config import ServerConfig
from server.rounds.sites import InProcessSites
from server.storage import start_weights

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


# --- a training site that has trained nothing ------------------------------------------------

GIVEN = {"name": "an earlier run", "sha256": "a" * 64}


def measured_on(setup: StudySetup, side: Literal["train"] | None) -> dict[str, Array]:
    """Statistics of the images on one side, or of all, under the weights in the network of `setup`."""
    adapt_statistics(setup.model.eval(), setup.store.images(side), CPU, "float32", among=setup.parts.local)
    return parameters.local_arrays(setup.model, setup.parts)


@pytest.mark.parametrize(("given", "before_round"), [(GIVEN, 1), (None, 2)], ids=["given", "late"])
def test_a_training_site_without_statistics_of_its_own_measures_them_on_its_training_images(
    make_site: MakeSite, make_study: MakeStudy, given: dict[str, str] | None, before_round: int
) -> None:
    study = make_study(model=SILO, sites={"train": ("north",)}, start_from=given)
    setup, other = (set_up(study, make_site("north"), CPU) for _ in range(2))
    local_layers.load(setup, "north", before_round=before_round)
    own = parameters.local_arrays(setup.model, setup.parts)
    assert own.keys() == setup.first_local.keys()
    assert digest(own) == digest(measured_on(other, "train"))
    assert digest(own) != digest(measured_on(other, None))


def test_a_site_that_trained_once_keeps_what_it_learned(make_site: MakeSite, make_study: MakeStudy) -> None:
    setup = set_up(make_study(model=SILO, start_from=GIVEN), make_site("north"), CPU)
    learned = {name: array + 1 for name, array in setup.first_local.items()}
    setup.state.keep_local(1, learned)
    local_layers.load(setup, "north", before_round=2)
    assert digest(parameters.local_arrays(setup.model, setup.parts)) == digest(learned)


def test_a_site_with_too_few_training_images_trains_all_the_same_but_scores_nothing(
    make_site: MakeSite, make_study: MakeStudy, caplog: pytest.LogCaptureFixture
) -> None:
    study = make_study(model=SILO, sites={"train": ("north",)}, start_from=GIVEN)
    setup = set_up(study, make_site("north", per_class=7), CPU)  # 21 images, of which 15 are for training
    assert len(setup.store.manifest.on("train")) < 16
    with caplog.at_level("WARNING", "consilium"):
        local_layers.load(setup, "north", before_round=1, trains=True)
    assert "begins with the first means and variances" in caplog.text
    assert running_means(setup) == [0.0] * len(running_means(setup))
    with pytest.raises(SiteDataError, match=r"to adapt to, expected 16 or more"):
        local_layers.load(setup, "north", before_round=1)


def test_a_study_without_rounds_scores_a_training_site_with_statistics_of_its_own(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    sites = {name: make_site(name) for name in ("north", "south")}
    trained = make_study(model=SILO, sites={"train": ("north",)}, rounds=1)
    conducted(trained, tmp_path / "runs/trained", sites)
    scoring = make_study(name="scoring", model=SILO, sites={"train": ("south",)}, rounds=0, local={})
    scoring = start_weights.started_from(scoring, tmp_path / "runs/trained", tmp_path / "runs")
    conducted(scoring, tmp_path / "runs/scoring", sites)

    setup = set_up(scoring, sites["south"], CPU)
    network = predict.load(setup.state.folder, None, None, CPU).model.state_dict()
    sent, _ = load_file(tmp_path / "runs/trained/weights.safetensors")
    parameters.load_shared(setup.model, setup.parts, sent)
    for name, array in measured_on(setup, "train").items():
        assert (network[name].numpy() == array).all(), name


# --- what was measured is kept ---------------------------------------------------------------


@pytest.fixture
def measurements(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """One entry for each time that a site measures."""
    counted = list[int]()

    def adapt(*arguments: Any, **options: Any) -> int:
        counted.append(adapt_statistics(*arguments, **options))
        return counted[-1]

    monkeypatch.setattr(local_layers, "adapt_statistics", adapt)
    return counted


def test_the_same_weights_are_measured_once_even_by_a_trainer_that_was_restarted(
    make_site: MakeSite, study: StudyConfig, measurements: list[int]
) -> None:
    site, found = make_site("south", test_only=True), list[str]()
    for before_round in (1, 2):
        setup = set_up(study, site, CPU)
        local_layers.load(setup, "south", before_round=before_round)
        found.append(digest(parameters.local_arrays(setup.model, setup.parts)))
    assert len(measurements) == 1
    assert found[0] == found[1]


def test_other_weights_and_other_images_are_measured_again(
    make_site: MakeSite, study: StudyConfig, measurements: list[int]
) -> None:
    site = make_site("south", test_only=True)
    setup = set_up(study, site, CPU)
    local_layers.load(setup, "south", before_round=1)
    first = parameters.shared_arrays(setup.model, setup.parts)
    other = {name: array + 0.1 for name, array in first.items()}
    for weights in (other, first, other):
        parameters.load_shared(setup.model, setup.parts, weights)
        local_layers.load(setup, "south", before_round=2)
    assert len(measurements) == 2
    make_site("south", per_class=11, test_only=True)
    setup = set_up(study, site.model_copy(update={"split": NoSplit(all="test")}), CPU)
    local_layers.load(setup, "south", before_round=2)
    assert len(measurements) == 3


@pytest.mark.parametrize("damage", [b"", b"not safetensors"])
def test_a_damaged_file_of_statistics_is_measured_again(
    make_site: MakeSite, study: StudyConfig, measurements: list[int], damage: bytes
) -> None:
    setup = set_up(study, make_site("south", test_only=True), CPU)
    local_layers.load(setup, "south", before_round=1)
    whole = digest(parameters.local_arrays(setup.model, setup.parts))
    (file,) = setup.state.folder.glob("measured-*.safetensors")
    file.write_bytes(damage)
    local_layers.load(setup, "south", before_round=1)
    assert len(measurements) == 2
    assert digest(parameters.local_arrays(setup.model, setup.parts)) == whole


def test_few_files_of_statistics_are_kept_and_none_when_the_study_begins_again(
    make_site: MakeSite, study: StudyConfig
) -> None:
    setup = set_up(study, make_site("south", test_only=True), CPU)
    for number in range(5):
        shared = parameters.shared_arrays(setup.model, setup.parts)
        parameters.load_shared(
            setup.model, setup.parts, {name: array + 0.01 for name, array in shared.items()}
        )
        local_layers.load(setup, "south", before_round=number + 1)
    assert len(list(setup.state.folder.glob("measured-*.safetensors"))) == 3
    setup.state.forget()
    assert not list(setup.state.folder.glob("measured-*"))


# --- what is made of the site's own statistics -----------------------------------------------


def conducted(study: StudyConfig, run: Path, sites: Mapping[str, SiteConfig]) -> None:
    """Run `study` with those of these sites that it names."""
    run.mkdir(parents=True)
    (run / "study.yaml").write_text(json.dumps(study.model_dump(mode="json")))
    numbers = {name: number for number, name in enumerate(study.sites.all, start=1)}
    first = start_weights.place_of(study, run.parent)
    config = ServerConfig(study=run / "study.yaml", run_dir=run, node_ids=numbers, start_from=first)
    conduct(config, InProcessSites({name: Trainer(sites[name]).answer for name in study.sites.all}))


@pytest.mark.parametrize("kind", ["local", "local_statistics"])
def test_a_training_site_predicts_with_what_stayed_there(
    make_site: MakeSite, make_study: MakeStudy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    monkeypatch.setattr("common.log.start", lambda *_: None)
    study = make_study(model={**SILO, "batch_norm": kind}, sites={"train": ("north",)}, rounds=1)
    run, north = tmp_path / "run", make_site("north")
    conducted(study, run, {"north": north})

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
    run, sites = tmp_path / "run", {"north": make_site("north"), "south": make_site("south", test_only=True)}
    conducted(study, run, sites)
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
