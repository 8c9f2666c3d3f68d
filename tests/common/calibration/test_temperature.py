"""One temperature of several sites, against the one that a search over all their images finds."""

import numpy as np
import pytest
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

from common.calibration import fit_temperature
from common.metrics.calibration import calibration_counts


def drawn(scale: float, num_images: int = 4000, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are `scale` times too large, and labels drawn from the right ones."""
    rng = np.random.default_rng(seed)
    right_NC = rng.normal(size=(num_images, 4)) * 2
    shares_NC = np.exp(log_softmax(right_NC, axis=1))
    labels_N = (shares_NC.cumsum(axis=1) > rng.random((num_images, 1))).argmax(axis=1)
    return right_NC * scale, labels_N


def best(logits_NC: np.ndarray, labels_N: np.ndarray) -> float:
    """The temperature with the lowest loss, found with all images at hand."""
    rows = np.arange(len(labels_N))
    found = minimize_scalar(
        lambda log_t: -log_softmax(logits_NC / np.exp(log_t), axis=1)[rows, labels_N].mean(),
        bounds=(-2, 3),
        method="bounded",
    )
    return float(np.exp(found.x))


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.7, 3.0])
@pytest.mark.parametrize("num_bins", [20, 500])
def test_sums_of_sites_give_nearly_the_temperature_of_all_images(scale, num_bins):
    logits_NC, labels_N = drawn(scale)
    parts = np.array_split(np.arange(len(labels_N)), [500, 700])
    probabilities_NC = np.exp(log_softmax(logits_NC, axis=1))
    counts = [calibration_counts(probabilities_NC[part], labels_N[part], num_bins) for part in parts]
    fitted = fit_temperature(counts)
    assert fitted.temperature == pytest.approx(best(logits_NC, labels_N), rel=0.05)
    assert not fitted.at_end
    assert fitted.after.loss <= fitted.before.loss


def test_an_overconfident_model_becomes_reliable():
    logits_NC, labels_N = drawn(3.0)
    fitted = fit_temperature([calibration_counts(np.exp(log_softmax(logits_NC, axis=1)), labels_N, 20)])
    assert fitted.temperature == pytest.approx(3.0, rel=0.1)
    assert fitted.before.ece > 0.15
    assert fitted.after.ece < 0.03


def test_a_model_that_is_always_right_ends_at_the_end_of_the_grid():
    probabilities_NC, labels_N = np.array([[0.6, 0.4]] * 10), np.zeros(10, np.int64)
    fitted = fit_temperature([calibration_counts(probabilities_NC, labels_N, 20)])
    assert (fitted.temperature, fitted.at_end) == (0.25, True)
    wrong = fit_temperature([calibration_counts(probabilities_NC, 1 - labels_N, 20)])
    assert wrong.temperature == pytest.approx(8.0)
    assert wrong.at_end


def test_the_temperature_does_not_depend_on_the_order_of_sites():
    logits_NC, labels_N = drawn(1.7, num_images=60)
    probabilities_NC = np.exp(log_softmax(logits_NC, axis=1))
    first, second = (
        calibration_counts(probabilities_NC[p], labels_N[p], 20) for p in (slice(20), slice(20, 60))
    )
    assert fit_temperature([first, second]).temperature == pytest.approx(
        fit_temperature([second, first]).temperature
    )
