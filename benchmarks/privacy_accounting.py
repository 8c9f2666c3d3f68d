"""Epsilon by dp-accounting's PLD accountant, which the accountant of the sites is compared with in a test.

    python -m venv other
    other/bin/pip install dp-accounting==0.6.0
    other/bin/python benchmarks/privacy_accounting.py

It runs in an environment of its own: dp-accounting needs an older attrs than the rest. One line for each case: noise,
sampling rate and steps, delta, epsilon.
"""

import importlib
from typing import Any

CASES = [
    ([(1.0, 0.01, 1000)], 1e-5),
    ([(5.0, 1.0, 1)], 1e-5),
    ([(20.0, 1.0, 1), (1.0, 0.05, 300)], 1e-5),
    ([(20.0, 1.0, 1), (2.0, 0.1, 200), (0.8, 0.02, 500)], 1e-4),
    ([(4.0, 0.2, 40)], 1e-6),
]


def main() -> None:
    accounting: Any = importlib.import_module("dp_accounting")
    pld: Any = importlib.import_module("dp_accounting.pld.pld_privacy_accountant")
    for history, delta in CASES:
        accountant = pld.PLDAccountant()
        for noise, rate, steps in history:
            event = accounting.PoissonSampledDpEvent(rate, accounting.GaussianDpEvent(noise))
            accountant.compose(event, steps)
        print(history, delta, round(accountant.get_epsilon(delta), 4))


if __name__ == "__main__":
    main()
