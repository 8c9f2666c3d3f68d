from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from client.config import PolicyConfig, SiteConfig
from client.config.policy import PrivacyPolicy
from client.governance.audit import Audit
from client.privacy import head_sums, ledger
from client.privacy.budget import Budget
from client.privacy.head_sums import noisy_sums, sums_of_patients, with_noise
from client.training.private.secure_random import SecureRandom
from common.config import NoisySums, StudyConfig
from common.errors import PolicyRefusal, StorageError
from common.heads import square
from common.heads.noise import deviation, edge, off_diagonal

MakeSite = Callable[..., SiteConfig]
MakeStudy = Callable[..., StudyConfig]
BLOCKS = ("counts", "sums", "moments")
PAID: dict[str, Any] = {
    "privacy": {
        "noise": 1,
        "sampling_rate": 0.1,
        "heads": {"noise": 2.0, "max_feature_norm": 5.0},
    },
    "heads": {"federated": [{"kind": "lda", "scale": False}]},
    "local": {"loss": "cross_entropy"},
}
DRAWS = np.random.default_rng(3)
FEATURES_NF, LABELS_N = DRAWS.normal(size=(9, 4)), np.arange(9) % 3
GROUPS_N = ["a", "a", "b", "c", "c", "c", "d", "e", "f"]


def budget(site: SiteConfig) -> Budget:
    def clock() -> datetime:
        return datetime(2026, 1, 1, tzinfo=UTC)

    return Budget(site, Audit(site.state_dir, clock), clock)


def asked(study: StudyConfig, site: SiteConfig, weights: str = "a" * 64) -> dict[str, Any]:
    folder = site.state_dir / "study"
    folder.mkdir(parents=True, exist_ok=True)
    return dict(noisy_sums(study, weights, FEATURES_NF, LABELS_N, GROUPS_N, budget(site), folder))


@pytest.fixture
def site(make_site: MakeSite) -> SiteConfig:
    return make_site("north", 1, policy=PolicyConfig(privacy=PrivacyPolicy(max_epsilon=4)))


def test_a_patient_counts_once_with_the_mean_of_its_images() -> None:
    # (3, 4) has length 5 and is shrunk to 1: (0.6, 0.8). Patient a has it and (0, 0.5), b has (1, 0).
    features_NF = np.array([[3.0, 4.0], [0.0, 0.5], [1.0, 0.0]])
    found = sums_of_patients(features_NF, np.array([0, 0, 1]), ["a", "a", "b"], 2, 1.0, BLOCKS)
    assert found["counts"].tolist() == [1, 1]
    np.testing.assert_allclose(found["sums"], [[0.3, 0.65], [1, 0]])
    # 0.5 x (0.36, 0.48, 0.64) + 0.5 x (0, 0, 0.25) + (1, 0, 0), as (xx, xy, yy).
    np.testing.assert_allclose(found["moments"], [1.18, 0.24, 0.445])


@pytest.mark.parametrize("blocks", [BLOCKS, BLOCKS[:2]])
@pytest.mark.parametrize("length", [0.1, 1.0, 100.0])
def test_no_patient_changes_the_sums_by_more_than_their_noise_allows_for(
    blocks: tuple[str, ...], length: float
) -> None:
    """Each patient is taken out in turn. Long features of one class reach the bound, so it is not a loose one."""
    settings = NoisySums(noise=1.0, max_feature_norm=2.0)
    features_NF = FEATURES_NF * length
    whole = sums_of_patients(features_NF, LABELS_N, GROUPS_N, 3, 2.0, blocks)
    largest = 0.0
    for patient in sorted(set(GROUPS_N)):
        kept = [place for place, group in enumerate(GROUPS_N) if group != patient]
        without = sums_of_patients(
            features_NF[kept], LABELS_N[kept], [GROUPS_N[place] for place in kept], 3, 2.0, blocks
        )
        change = 0.0
        for name in blocks:
            unit = deviation(settings, name, len(blocks))  # with noise 1: of which one patient may change 1
            factor = off_diagonal(whole[name].size) if name == "moments" else 1.0
            change += float((((whole[name] - without[name]) / (unit * factor)) ** 2).sum())
        largest = max(largest, change**0.5)
    assert largest <= 1 + 1e-12
    assert length < 100 or largest > 0.999


def test_the_noise_is_as_large_as_the_study_says() -> None:
    settings = NoisySums(noise=3.0, max_feature_norm=2.0)
    exact = {"counts": np.zeros(5000), "sums": np.zeros((50, 100)), "moments": np.zeros(5050)}
    noisy = with_noise(exact, settings, SecureRandom(bytes(32)))
    assert noisy["counts"].std() == pytest.approx(3 * 3**0.5, rel=0.05)
    assert noisy["sums"].std() == pytest.approx(3 * 3**0.5 * 2, rel=0.05)
    full_FF = square(noisy["moments"], 100)
    assert np.diagonal(full_FF).std() == pytest.approx(3 * 3**0.5 * 4, rel=0.2)
    assert noisy["moments"].std() == pytest.approx(3 * 3**0.5 * 4 / 2**0.5, rel=0.05)
    # Wigner's law, at a width of 100.
    assert np.linalg.eigvalsh(full_FF).max() == pytest.approx(edge(settings, 100, 3), rel=0.1)


def test_asking_again_gives_the_same_sums_and_costs_nothing(make_study: MakeStudy, site: SiteConfig) -> None:
    study = make_study(**PAID)
    first, again = asked(study, site), asked(study, site)
    for name in BLOCKS:
        np.testing.assert_array_equal(first[name], again[name])
    assert [entry.what for entry in ledger.read(site.state_dir).entries] == ["head sums " + "a" * 16]
    other = asked(study, site, "b" * 64)
    assert not np.allclose(first["sums"], other["sums"])
    assert len(ledger.read(site.state_dir).entries) == 2


def test_the_seed_of_the_study_says_nothing_of_the_noise(make_study: MakeStudy, make_site: MakeSite) -> None:
    found = [asked(make_study(seed=7, **PAID), make_site(name, 1)) for name in ("north", "south")]
    assert not np.isclose(found[0]["sums"], found[1]["sums"]).any()


def test_a_trainer_that_dies_before_it_answers_has_paid_and_sent_nothing(
    make_study: MakeStudy, site: SiteConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def die(*_: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as killed:
        killed.setattr(head_sums, "save_file", die)
        with pytest.raises(KeyboardInterrupt):
            asked(make_study(**PAID), site)
    assert len(ledger.read(site.state_dir).entries) == 1
    asked(make_study(**PAID), site)
    assert len(ledger.read(site.state_dir).entries) == 2


def test_where_too_little_is_left_nothing_is_computed(
    make_study: MakeStudy, make_site: MakeSite, monkeypatch: pytest.MonkeyPatch
) -> None:
    poor = make_site("north", 1, policy=PolicyConfig(privacy=PrivacyPolicy(max_epsilon=0.5)))
    monkeypatch.setattr(head_sums, "sums_of_patients", lambda *_: pytest.fail("computed"))
    with pytest.raises(PolicyRefusal, match="too little privacy left for head sums"):
        asked(make_study(**PAID), poor)
    assert not ledger.read(poor.state_dir).entries


def test_a_damaged_file_of_sums_is_no_reason_to_draw_again(make_study: MakeStudy, site: SiteConfig) -> None:
    asked(make_study(**PAID), site)
    path: Path = site.state_dir / "study" / head_sums.FILE
    path.write_bytes(b"torn")
    with pytest.raises(StorageError):
        asked(make_study(**PAID), site)
    assert len(ledger.read(site.state_dir).entries) == 1
