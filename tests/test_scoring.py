"""Studies from given weights: scored without training, trained on, and refused where they do not fit."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.trainer import Trainer
from common.config import GivenWeights, StudyConfig
from common.errors import ConfigError, StorageError
from common.settings import load_settings
from common.weights import digest, load_file, save_file
from consilium_fl import Run
from server.conduct import conduct
from server.config import ServerConfig
from server.deployment.study_runner import write_server_settings
from server.rounds.sites import InProcessSites
from server.storage import start_weights

MakeSite = Callable[..., Any]
MakeStudy = Callable[..., StudyConfig]
Federation = Callable[[StudyConfig], Run]


@pytest.fixture
def federation(make_site: MakeSite, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Federation:
    """Runs a study with `north`, which has all sides, and `south`, which has test images alone."""
    monkeypatch.setattr("common.log.start", lambda *_: None)
    trainers = {
        "north": Trainer(make_site("north")).answer,
        "south": Trainer(make_site("south", per_class=4, test_only=True)).answer,
    }

    def run(study: StudyConfig) -> Run:
        folder = tmp_path / "runs" / study.name
        folder.mkdir(parents=True)
        settings = write_server_settings(study, folder, {"north": 1, "south": 2}, synthetic=True)
        conduct(
            load_settings(settings, ServerConfig, "server"), InProcessSites(trainers), pause=lambda _: None
        )
        return Run.open(folder)

    return run


SITES = {"train": ("north",), "evaluate": ("south",)}


def test_weights_of_a_run_are_scored_and_trained_on(
    federation: Federation, make_study: MakeStudy, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    trained = federation(make_study(name="trained", sites=SITES, rounds=1))
    scoring = make_study(name="scoring", sites=SITES, rounds=0, local={})
    scored = federation(start_weights.started_from(scoring, trained.folder, runs))
    assert scored.status == "finished"
    last, before = scored.scores()[-1], trained.scores()[-1]
    assert (last.after_round, last.side, last.num_images) == (0, "test", before.num_images)
    assert (last.loss, last.balanced_accuracy) == (before.loss, before.balanced_accuracy)
    assert digest(load_file(scored.weights)[0]) == digest(load_file(trained.weights)[0])
    assert "was scored by 2 sites" in scored.report.read_text()
    assert "the weights of trained, round 1, which the server sent" in scored.report.read_text()

    tuned = federation(
        start_weights.started_from(make_study(name="tuned", sites=SITES, rounds=1), trained.folder, runs)
    )
    first = tuned.scores()[0]
    known = [score for score in trained.scores() if score.site == first.site and score.side == "validation"]
    assert first.loss == known[-1].loss  # round 1 scores the weights that the earlier run ended with


def test_heads_are_fitted_on_weights_that_are_only_scored(
    federation: Federation, make_study: MakeStudy, tmp_path: Path
) -> None:
    trained = federation(make_study(name="trained", sites=SITES, rounds=1))
    study = make_study(name="heads", sites=SITES, rounds=0, local={}, heads={"federated": [{"kind": "lda"}]})
    run = federation(start_weights.started_from(study, trained.folder, tmp_path / "runs"))
    (lda,) = [score for score in run.head_scores() if (score.site, score.head) == ("south", "federated.lda")]
    assert lda.num_images == 12  # fitted from the sums of north alone
    assert 0 <= lda.f1_weighted <= 1
    assert "### Heads on south" in run.report.read_text()


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"local": {"epochs": 3}}, "local.epochs"),
        ({"algorithm": {"kind": "fedprox"}}, "algorithm"),
        ({"selection": {"metric": "loss"}}, "selection"),
        ({"personalisation": {"kind": "none", "alone": True}}, "personalisation"),
    ],
)
def test_settings_of_training_make_no_sense_without_rounds(
    make_study: MakeStudy, changes: dict[str, Any], named: str
) -> None:
    with pytest.raises(ValueError, match=f"rounds=0 scores weights and trains nothing.*{named}"):
        make_study(**{"rounds": 0, "local": {}, **changes})


def test_a_study_without_rounds_keeps_how_a_site_computes(make_study: MakeStudy) -> None:
    study = make_study(rounds=0, local={"batch_size": 4, "precision": "float32"})
    assert StudyConfig.model_validate(study.model_dump(mode="json")) == study


@pytest.fixture
def weights(make_study: MakeStudy, tmp_path: Path) -> Path:
    """A file of the weights of the study `trained`, as checkpoint.save_weights writes it."""
    study = make_study(name="trained")
    tensors = {"head.weight": np.ones((3, 2), np.float32)}
    about = {
        "study": "trained",
        "round": "2",
        "encoder": study.model.encoder,
        "classes": json.dumps(study.classes),
        "model": study.model.model_dump_json(),
        "sha256": digest(tensors),
    }
    save_file(tmp_path / "weights.safetensors", tensors, about)
    return tmp_path / "weights.safetensors"


def test_the_study_names_its_weights_by_their_tensors(
    make_study: MakeStudy, weights: Path, tmp_path: Path
) -> None:
    study = start_weights.started_from(make_study(), weights, tmp_path / "runs")
    assert study.start_from == GivenWeights(name="trained, round 2", sha256=digest(load_file(weights)[0]))
    assert study.fingerprint != make_study().fingerprint
    weights.unlink()
    place = start_weights.place_of(study, tmp_path / "runs")
    assert place is not None
    assert start_weights.load(study, place)["head.weight"].shape == (3, 2)
    shutil.rmtree(place.parent)
    with pytest.raises(ConfigError, match="give them with --start-from"):
        start_weights.place_of(study, tmp_path / "runs")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"classes": ("dark", "red", "pale")},
            "they know the classes dark, pale, red, the study has dark, red, pale",
        ),
        ({"model": {"encoder": "test_vit"}}, "they are of the encoder test_convnext, the study has test_vit"),
        (
            {"model": {"encoder": "test_convnext", "image_size": 64}},
            "model.image_size was 32, the study has 64",
        ),
        (
            {"model": {"encoder": "test_convnext", "image_size": 32, "trainable": "head"}, "seed": 4},
            r"layers that are not trained are drawn with the seed, which was \?; the study has 4",
        ),
        (
            {"model": {"encoder": "test_convnext", "image_size": 32, "trainable": "head"}},
            "model.trainable was all, the study has head",
        ),
    ],
)
def test_weights_of_another_model_are_refused(
    make_study: MakeStudy, weights: Path, tmp_path: Path, changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError, match=said):
        start_weights.started_from(make_study(**changes), weights, tmp_path / "runs")


def test_weights_that_were_altered_or_say_nothing_are_refused(weights: Path, tmp_path: Path) -> None:
    tensors, about = load_file(weights)
    save_file(weights, {"head.weight": tensors["head.weight"] + 1}, about)
    with pytest.raises(StorageError, match="was altered"):
        start_weights.find(weights)
    save_file(weights, tensors, {})
    with pytest.raises(ConfigError, match="does not say its classes, encoder"):
        start_weights.find(weights)
    with pytest.raises(ConfigError, match="the folder of a run that has finished"):
        start_weights.find(tmp_path / "runs")
