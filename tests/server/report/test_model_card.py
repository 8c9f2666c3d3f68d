"""The model card: what was trained, by which sites, and what it must not be used for."""

from collections.abc import Callable
from pathlib import Path

import pytest

from common.config import FedAvg, FedProx, StudyConfig
from server.report.model_card import algorithm_name, model_card, model_kind
from server.report.outcome import Outcome
from server.report.write import append_round
from server.state import RoundState
from server.storage import history


@pytest.fixture
def outcome(tmp_path: Path, study: StudyConfig, random_state: Callable[[int], RoundState]) -> Outcome:
    """Two rounds in which all three sites trained: 10, 20 and 30 images in the order of names, unseen among them."""
    for number in (1, 2):
        append_round(tmp_path, random_state(number), study)
    return Outcome(study, history.read_rounds(tmp_path), {"image_size": 64}, synthetic=False)


def test_each_training_site_stands_with_its_images_and_its_rounds(outcome: Outcome) -> None:
    card = model_card(outcome)
    # sorted names: north 10, south 20, unseen (scores only), west 40
    assert "| north | 10 | 2 |" in card
    assert "| south | 20 | 2 |" in card
    assert "| west | 40 | 2 |" in card
    assert "| unseen |" not in card


def test_the_card_says_what_the_model_is_for_and_how_images_are_prepared(outcome: Outcome) -> None:
    card = model_card(outcome)
    assert "research only. Not a medical device" in card
    assert '**Preprocessing**: `{"image_size": 64}`' in card
    assert "bkl, mel, nv (in the order of the outputs)" in card


def test_only_a_card_of_synthetic_images_says_so(outcome: Outcome) -> None:
    assert "**Data**" not in model_card(outcome)
    synthetic = Outcome(outcome.study, outcome.rounds, None, synthetic=True)
    assert model_card(synthetic).splitlines()[2].startswith("- **Data**")
    assert "as stored in `weights.safetensors`" in model_card(synthetic)


def test_a_classifier_is_named_by_its_encoder(study: StudyConfig) -> None:
    assert model_kind(study) == "An image classifier (`convnext_t`)"


def test_an_algorithm_is_named_with_its_settings() -> None:
    assert algorithm_name(FedAvg()) == "FedAvg (their mean, weighted by images)"
    assert algorithm_name(FedProx(mu=0.01)) == "FedProx (mu 0.01)"
    assert algorithm_name(FedProx(mu=0.01, squared=False)) == "FedProx (mu 0.01, norm not squared)"
