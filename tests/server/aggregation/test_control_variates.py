"""The server's half of SCAFFOLD and FedNova's mean, on numbers worked out by hand."""

import numpy as np
import pytest

from common.config import LocalConfig, Sgd, StudyConfig
from server.aggregation import local_work
from server.aggregation.control_variates import next_control
from server.aggregation.normalised import normalised_mean
from server.aggregation.update import AdmittedUpdate


def update(site: str, entry: float, num_examples: int = 1, num_steps: int = 1) -> AdmittedUpdate:
    delta = {"w": np.array([entry]), "running_mean": np.array([entry])}
    return AdmittedUpdate(site, num_examples, delta, frozenset({"running_mean"}), num_steps)


def test_the_servers_control_variate_is_the_mean_of_the_sites() -> None:
    # lr 0.1. North: 2 steps moved it by -0.6, a mean gradient of 3. South: 4 steps by 0.4, a mean gradient of -1.
    updates = [update("north", -0.6, num_steps=2), update("south", 0.4, num_steps=4)]
    shares = {"north": 0.25, "south": 0.75}
    after = next_control({}, updates, shares, lambda num_steps: 0.1 * num_steps)
    assert after["w"] == pytest.approx([0.25 * 3 - 0.75 * 1])
    assert "running_mean" not in after


def test_a_site_that_is_not_in_a_round_keeps_its_part_of_the_control_variate() -> None:
    # c = 2. North's change is -c - delta / 0.2 = -2 + 3 = 1, and its share is a quarter.
    after = next_control(
        {"w": np.array([2.0])},
        [update("north", -0.6, num_steps=2)],
        {"north": 0.25, "south": 0.75},
        lambda num_steps: 0.1 * num_steps,
    )
    assert after["w"] == pytest.approx([2.0 + 0.25 * 1.0])


def test_fednova_divides_each_delta_by_its_way_and_multiplies_the_mean_by_the_mean_way() -> None:
    updates = [update("north", 1.0, 1, num_steps=1), update("south", 6.0, 3, num_steps=3)]
    mean = normalised_mean(updates, way=float)
    # Shares 1/4 and 3/4; the mean way is 1/4 + 9/4 = 2.5; a quarter of 1 / 1 and three of 6 / 3: 1.75, times 2.5.
    assert mean["w"] == pytest.approx([4.375])
    assert mean["running_mean"] == pytest.approx([0.25 + 4.5])  # measured, so the plain mean


def study(**local: object) -> StudyConfig:
    return StudyConfig.model_validate(
        {
            "name": "tiny", "classes": ("a", "b"), "sites": {"train": ("north",)}, "rounds": 2,
            "model": {"encoder": "test_vit", "image_size": 32}, "local": local,
        }
    )  # fmt: skip


def test_momentum_lengthens_a_way_as_fednovas_vector_says() -> None:
    """Wang et al. 2020: a_i = [1 - m^t, ..., 1 - m] / (1 - m), and its norm."""
    with_momentum = study(optimizer={"kind": "sgd", "lr": 0.3, "momentum": 0.5})
    # Three steps: (0.875 + 0.75 + 0.5) / 0.5
    assert local_work.way(with_momentum, 1, 3) == pytest.approx(4.25)
    assert local_work.way(study(optimizer={"kind": "sgd", "lr": 0.3, "momentum": 0}), 1, 3) == pytest.approx(
        3
    )
    assert local_work.way(study(optimizer={"kind": "adamw"}), 1, 3) == pytest.approx(3)


def test_ways_follow_the_schedule() -> None:
    # Round 2 of 2 of a cosine with two steps: the middles lie at 5/8 and 7/8 of the study.
    cosine = study(optimizer={"kind": "sgd", "lr": 0.5, "momentum": 0}, schedule={"kind": "cosine"})
    expected = sum((1 + np.cos(np.pi * share)) / 2 for share in (5 / 8, 7 / 8))
    assert local_work.way(cosine, 2, 2) == pytest.approx(expected)
    assert local_work.rate_sum(cosine, 2, 2) == pytest.approx(0.5 * expected)


@pytest.mark.parametrize(
    ("local", "num_images", "possible"),
    [
        (LocalConfig(steps=7), 100, [7]),
        (LocalConfig(batch_size=32), 100, [3, 4]),
        (LocalConfig(batch_size=32), 97, [3, 4]),  # 32, 32, 33: the last one joins
        (LocalConfig(batch_size=32, epochs=2), 64, [4]),
        (LocalConfig(batch_size="all"), 100, [1]),
        (LocalConfig(batch_size=32), 5, [1]),
        (LocalConfig(batch_size=10, epochs=0.25), 100, [2, 3]),
        (LocalConfig(batch_size=50, epochs=0.1), 100, [1]),
    ],
)
def test_steps_that_a_round_can_have_follow_from_the_images(
    local: LocalConfig, num_images: int, possible: list[int]
) -> None:
    assert list(local_work.possible_steps(local, num_images)) == possible


def test_the_default_optimizer_has_a_way() -> None:
    assert isinstance(study().local.optimizer, Sgd)
    assert local_work.way(study(), 1, 1) == pytest.approx(1)
