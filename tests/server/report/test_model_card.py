"""The model card: what was trained, by which sites, and what it must not be used for."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from common.config import FedAvg, FedProx, StudyConfig
from server.enrolment.census import Census, SiteCensus
from server.report.model_card import algorithm_name, model_card, model_kind
from server.report.outcome import Outcome
from server.report.write import append_round, hub_card
from server.state import RoundState
from server.storage import history
from tests.server.report.conftest import MakeOutcome, without


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


# --- a card says what a reader would take for granted and is not so --------------------------------


def test_sites_that_took_no_part_stand_in_the_card_with_the_reason(make_outcome: MakeOutcome) -> None:
    card = model_card(make_outcome(without("unseen", "absent", "no split is possible", range(9))))
    assert "- **Sites that took no part**: unseen (no split is possible)." in card
    assert "- **State**: finished, INCOMPLETE" in card
    assert "Not scored by" not in card  # it stands above already
    whole = model_card(make_outcome())
    assert "took no part" not in whole
    assert "**State**" not in whole


def test_a_site_that_did_not_score_the_final_model_stands_in_the_card(make_outcome: MakeOutcome) -> None:
    card = model_card(make_outcome(without("unseen", "missing", "no answer within 9 s", [4])))
    assert "- **Not scored by**: unseen (no answer within 9 s). unseen scored an earlier model." in card
    never = model_card(make_outcome(without("unseen", "missing", "no answer within 9 s", range(9))))
    assert "- **Not scored by**: unseen (no answer within 9 s).\n" in never
    assert "Not scored by" not in model_card(make_outcome())


def test_the_card_of_an_unfinished_study_says_so(make_outcome: MakeOutcome) -> None:
    card = model_card(make_outcome(last=2))
    assert "- **State**: NOT finished: 2 rounds of 3 on record, no closing evaluation." in card
    later = "which is written when the study finishes; until then in its checkpoints"
    assert later in card
    whole = model_card(make_outcome())
    assert "as stored in `weights.safetensors`" in whole
    assert later not in whole


def test_no_checkpoint_is_promised_where_no_round_is_on_record(make_outcome: MakeOutcome) -> None:
    card = model_card(make_outcome(last=0))
    assert "- **Preprocessing**: not on record, as no weights are" in card
    assert "checkpoints" not in card


def test_figures_of_validation_images_are_not_said_to_hold_for_test_images(make_outcome: MakeOutcome) -> None:
    def untested(state: RoundState) -> RoundState:
        return replace(state, test_scores={})

    card = model_card(make_outcome(untested))
    assert "the figures hold for images like the validation images of the sites" in card


def test_figures_are_said_to_hold_only_if_there_are_some(make_outcome: MakeOutcome) -> None:
    assert "the figures hold for images like the test images" in model_card(make_outcome())
    unscored = model_card(make_outcome(last=0))
    assert "it was not scored, so nothing is known" in unscored
    assert "the figures hold" not in unscored


def test_weights_that_the_operator_gave_are_not_said_to_be_the_studys(make_outcome: MakeOutcome) -> None:
    card = model_card(make_outcome(start_from="first.safetensors"))
    assert "- **Started from**: the operator's file `first.safetensors`" in card
    assert "operator's file" not in model_card(make_outcome())


def test_classes_that_no_site_trained_on_are_named(make_outcome: MakeOutcome) -> None:
    """west has the only images of nv, and never took part."""

    def held(*counts: int) -> SiteCensus:
        return SiteCensus(train_counts=counts, test_counts=(1, 1, 1), withheld=False, images=None)

    sites = {"north": held(4, 0, 0), "south": held(4, 2, 0), "west": held(0, 0, 9), "unseen": held(0, 0, 0)}
    counted = Census(classes=("bkl", "mel", "nv"), sites=sites)
    away = without("west", "absent", "no key", range(9))
    assert "- **Classes without training images**: nv: no site" in model_card(
        make_outcome(away, census=counted)
    )
    assert "Classes without" not in model_card(make_outcome(census=counted))
    assert "Classes without" not in model_card(make_outcome())
    assert "training images**: mel" in model_card(make_outcome(settings={"untrained_classes": ("mel",)}))


def test_the_card_for_the_hub_has_the_pooled_figures_where_the_hub_reads_them(make_outcome):
    outcome = make_outcome()
    empty, head, text = hub_card(outcome).split("---\n", 2)
    assert empty == ""
    about = yaml.safe_load(head)
    (result,) = about["model-index"][0]["results"]
    figures = outcome.final.pooled.figures
    found = {one["type"]: one["value"] for one in result["metrics"]}
    assert found["balanced_accuracy"] == pytest.approx(figures.balanced_accuracy, abs=1e-4)
    assert found["roc_auc"] == pytest.approx(figures.auroc_macro, abs=1e-4)
    assert about["pipeline_tag"] == "image-classification"
    assert "license" not in about
    assert "## Model card" in text
    assert outcome.study.fingerprint in text
    assert "research only" in text


def test_a_model_that_nobody_scored_has_a_card_without_figures(study):
    head = hub_card(Outcome(study, (), None, synthetic=False)).split("---\n")[1]
    assert "model-index" not in yaml.safe_load(head)
