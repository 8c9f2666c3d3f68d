from collections.abc import Callable
from datetime import UTC, datetime

import numpy as np
import pytest

from client.config import PolicyConfig, SiteConfig
from client.config.policy import PrivacyPolicy
from client.governance.audit import Audit
from client.privacy import ledger, scores
from client.privacy.budget import Budget
from client.privacy.scores import confusion_of_patients, noisy_scores, whole
from common.config import StudyConfig
from common.errors import PolicyRefusal
from common.metrics import Score, figures

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
PAID = {"noise": 1, "sampling_rate": 0.1, "scores": {"noise": 2.0}}
PREDICTED_N, LABELS_N = np.array([0, 1, 1, 2, 2]), np.array([0, 0, 1, 1, 2])
PATIENTS_N = ["a", "a", "b", "c", "d"]
MATRIX_CC = np.diag([50.0, 40, 30])


def asked(
    study: StudyConfig, site: SiteConfig, question: str = "scores of these", num: int = 1
) -> dict[str, Score]:
    def clock() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    budget = Budget(site, Audit(site.state_dir, clock), clock)
    matrices = {f"head {number}": MATRIX_CC for number in range(num)}
    return noisy_scores(study, question, matrices, budget, site.state_dir)


@pytest.fixture
def site(make_site: MakeSite) -> SiteConfig:
    return make_site("north", 1, policy=PolicyConfig(privacy=PrivacyPolicy(max_epsilon=4)))


@pytest.fixture
def study(make_study: MakeStudy) -> StudyConfig:
    return make_study(privacy=PAID, local={"loss": "cross_entropy"})


def test_a_patient_counts_once_in_a_matrix_and_changes_it_by_one_at_most() -> None:
    probabilities_NC = np.eye(3)[PREDICTED_N]
    found_CC = confusion_of_patients(probabilities_NC, LABELS_N, PATIENTS_N)
    # Patient a has one image right and one of the same class taken for the next: a half each.
    assert found_CC.tolist() == [[0.5, 0.5, 0], [0, 1, 1], [0, 0, 1]]
    for patient in sorted(set(PATIENTS_N)):
        kept = np.array([one != patient for one in PATIENTS_N])
        others = [one for one in PATIENTS_N if one != patient]
        without_CC = confusion_of_patients(probabilities_NC[kept], LABELS_N[kept], others)
        assert np.linalg.norm(found_CC - without_CC) <= 1


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ([5.2, -1.0, -0.2], [4, 0, 0]),  # the sum is 4
        ([3.0, 2.0, -1.0], [3, 1, 0]),  # half a patient off each of the two: 2.5 and 1.5
        ([0.4, 0.4, 0.4], [1, 0, 0]),
        ([-3.0, 1.0, 1.0], [0, 0, 0]),
    ],
)
def test_a_row_keeps_its_sum_and_has_no_cell_below_0(row: list[float], expected: list[int]) -> None:
    assert whole(np.array(row)).tolist() == expected


def test_noise_in_empty_cells_does_not_make_a_model_look_worse() -> None:
    draws = np.random.default_rng(0)
    rows = [np.array([40.0, 0, 0, 0, 0, 0, 0]) + draws.normal(0, 3, 7) for _ in range(500)]
    cut_off = [np.maximum(row, 0) for row in rows]
    right, all_of_them = np.mean([whole(row)[0] for row in rows]), np.mean([whole(row).sum() for row in rows])
    assert all_of_them == pytest.approx(40, abs=1)
    assert right > np.mean([row[0] for row in cut_off]) - 6
    assert right / all_of_them > np.mean([row[0] / row.sum() for row in cut_off])


def test_asking_again_gives_the_same_scores_and_costs_nothing(study: StudyConfig, site: SiteConfig) -> None:
    first, again = asked(study, site), asked(study, site)
    assert first == again
    assert len(ledger.read(site.state_dir).entries) == 1
    asked(study, site, "scores of others")
    assert asked(study, site) == first
    assert [entry.what for entry in ledger.read(site.state_dir).entries] == [
        "scores of these",
        "scores of others",
    ]


def test_scores_of_several_heads_are_one_charge_with_more_noise(study: StudyConfig, site: SiteConfig) -> None:
    found = asked(study, site, num=4)
    assert {score.noise for score in found.values()} == {4.0}  # 2 x root of 4
    assert [(one.noise, one.rate, one.steps) for one in ledger.read(site.state_dir).entries] == [(2.0, 1, 1)]


def test_a_score_with_noise_has_no_figure_that_it_lacks_the_counts_for(
    study: StudyConfig, site: SiteConfig
) -> None:
    score = Score.model_validate_json(asked(study, site)["head 0"].model_dump_json())
    found = figures(score + score)
    assert found.balanced_accuracy > 0.7
    assert np.isnan([found.loss, found.ece, found.auroc_macro]).all()
    assert (score + score).noise == pytest.approx(2 * 2**0.5)


def test_where_too_little_is_left_no_score_leaves(study: StudyConfig, make_site: MakeSite) -> None:
    poor = make_site("north", 1, policy=PolicyConfig(privacy=PrivacyPolicy(max_epsilon=0.5)))
    with pytest.raises(PolicyRefusal, match="too little privacy left for scores"):
        asked(study, poor)
    assert not (poor.state_dir / scores.FILE).exists()


def test_a_trainer_that_dies_before_it_answers_has_paid(
    study: StudyConfig, site: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(scores, "write_json", die)
    with pytest.raises(KeyboardInterrupt):
        asked(study, site)
    assert len(ledger.read(site.state_dir).entries) == 1
