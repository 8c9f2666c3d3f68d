import math

import pytest

from client.privacy.accountant import Charge, epsilon

# By the PLD accountant of dp-accounting 0.6.0, which shares no code with Opacus' one and looks at adding and at
# removing a patient: `benchmarks/privacy_accounting.py`. It is no dependency, because it needs attrs < 24.
KNOWN = [
    ([Charge(1.0, 0.01, 1000)], 1e-5, 1.8282),
    ([Charge(5.0, 1.0, 1)], 1e-5, 0.7255),
    ([Charge(20.0, 1.0, 1), Charge(1.0, 0.05, 300)], 1e-5, 5.7999),
    ([Charge(20.0, 1.0, 1), Charge(2.0, 0.1, 200), Charge(0.8, 0.02, 500)], 1e-4, 4.9243),
    ([Charge(4.0, 0.2, 40)], 1e-6, 1.4857),
]


@pytest.mark.parametrize(("charges", "delta", "known"), KNOWN)
def test_epsilon_is_that_of_another_accountant(charges: list[Charge], delta: float, known: float) -> None:
    # Opacus adds its error, 0.01, to be on the safe side.
    assert known - 0.002 <= epsilon(charges, delta) <= known + 0.03


def test_nothing_costs_nothing() -> None:
    assert epsilon([], 1e-5) == 0


def test_rounds_add_up_whatever_study_they_are_of() -> None:
    both = epsilon([Charge(1.0, 0.05, 30), Charge(1.0, 0.05, 70)], 1e-5)
    assert both == epsilon([Charge(1.0, 0.05, 100)], 1e-5)
    assert both > epsilon([Charge(1.0, 0.05, 70)], 1e-5)


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.3])
def test_next_to_no_noise_is_a_large_number_and_takes_no_time(noise: float) -> None:
    assert math.isfinite(found := epsilon([Charge(noise, 0.1, 1000)], 1e-5))
    assert found > 50


def test_the_first_charge_is_the_gaussian_mechanism() -> None:
    # delta(eps) = F(1/(2s) - eps s) - e^eps F(-1/(2s) - eps s) with normal F
    # (Balle and Wang 2018, arXiv:1805.06530, theorem 8).
    def normal(x: float) -> float:
        return (1 + math.erf(x / math.sqrt(2))) / 2

    found = epsilon([Charge(3.0, 1.0, 1)], 1e-5)
    for eps, is_enough in ((found, True), (found - 0.03, False)):
        delta = normal(1 / 6 - eps * 3) - math.exp(eps) * normal(-1 / 6 - eps * 3)
        assert (delta <= 1e-5) is is_enough


def test_sums_and_scores_with_noise_are_together_one_gaussian_mechanism() -> None:
    # Noises 20, 2 and 3 on different sums over all patients: 1 / s squared = 1/400 + 1/4 + 1/9.
    together = (1 / 400 + 1 / 4 + 1 / 9) ** -0.5
    found = epsilon([Charge(20.0, 1.0, 1), Charge(2.0, 1.0, 1), Charge(3.0, 1.0, 1)], 1e-5)

    def delta(eps: float) -> float:  # Balle and Wang 2018, theorem 8
        half, turned = 1 / (2 * together), eps * together
        return (math.erfc((turned - half) / 2**0.5) - math.exp(eps) * math.erfc((turned + half) / 2**0.5)) / 2

    assert delta(found) <= 1e-5 < delta(found - 0.05)
