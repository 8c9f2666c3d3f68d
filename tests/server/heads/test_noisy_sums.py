import numpy as np
import numpy.typing as npt
import pytest

from common.config import NoisySums
from common.heads import triangle
from server.heads import noisy_sums, solvers

SETTINGS = NoisySums(noise=1.0, max_feature_norm=10.0)
QUIET = NoisySums(noise=1.0, max_feature_norm=10.0).model_copy(update={"noise": 1e-9})
Floats = npt.NDArray[np.float64]


def drawn(seed: int = 0) -> tuple[Floats, npt.NDArray[np.int64]]:
    draws = np.random.default_rng(seed)
    labels_N = np.repeat([0, 1], 200)
    return draws.normal(size=(400, 5)) + 2 * labels_N[:, None], labels_N


def sums_of(features_NF: Floats, labels_N: npt.NDArray[np.int64]) -> dict[str, Floats]:
    of_class_CN = (labels_N == np.arange(3)[:, None]).astype(float)
    return {
        "counts": of_class_CN.sum(axis=1),
        "sums": of_class_CN @ features_NF,
        "moments": triangle(features_NF.T @ features_NF),
    }


def right(parameters: dict[str, Floats], features_ND: Floats, labels_N: npt.NDArray[np.int64]) -> float:
    scores_NC = features_ND @ parameters["weights"] + parameters["bias"]
    return float((scores_NC.argmax(axis=1) == labels_N).mean())


def test_without_noise_the_heads_are_the_exact_ones() -> None:
    features_NF, labels_N = drawn()
    sums = sums_of(features_NF, labels_N)
    half = [sums_of(features_NF[part::2], labels_N[part::2]) for part in (0, 1)]
    noisy = noisy_sums.added(half, [1.0, 1.0], QUIET)
    exact = solvers.Statistics(
        sums["counts"], sums["sums"], moments_DD=features_NF.T @ features_NF, weights_C=np.ones(3)
    )
    view = noisy.view(None)
    for head in (lambda s: solvers.lda(s, "counted", 0.0), lambda s: solvers.ridge(s, 1.0)):
        expected, found = head(exact), head(noisy.statistics(view, balanced=False))
        np.testing.assert_allclose(found["weights"], expected["weights"], atol=1e-5)
        np.testing.assert_allclose(found["bias"], expected["bias"], atol=1e-5)
    bayes = solvers.naive_bayes(noisy.statistics(view, balanced=False), "equal", 1e-9)
    # One variance for all classes: that of the features around the means of their classes.
    around_NF = features_NF - bayes["means"][labels_N]
    np.testing.assert_allclose(bayes["variances"][0], (around_NF**2).mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(bayes["variances"][1], bayes["variances"][0])


def test_heads_of_sums_with_noise_know_the_classes_still() -> None:
    features_NF, labels_N = drawn()
    draws = np.random.default_rng(1)
    exact = sums_of(features_NF, labels_N)
    noisy = {name: array + draws.normal(size=array.shape) for name, array in exact.items()}
    found = noisy_sums.added([noisy], [1.0], NoisySums(noise=1 / 3**0.5, max_feature_norm=1.0))
    for components in (None, 2):
        view = found.view(components)
        statistics = found.statistics(view, balanced=True)
        assert right(solvers.lda(statistics, "equal", 0.0), view.of(features_NF), labels_N) > 0.95
        assert right(solvers.ridge(statistics, 1.0), view.of(features_NF), labels_N) > 0.95
        assert right(solvers.nearest_mean(statistics), view.of(features_NF), labels_N) > 0.95


def test_second_moments_of_noise_alone_become_positive() -> None:
    draws = np.random.default_rng(2)
    noise = draws.normal(0, 100 * 3**0.5, size=210)
    found = noisy_sums.added(
        [{"counts": np.array([50.0, 50.0, 0.0]), "sums": np.zeros((3, 20)), "moments": noise}],
        [1.0],
        SETTINGS,
    )
    assert np.linalg.eigvalsh(found.moments_FF).min() < 0
    statistics = found.statistics(found.view(None), balanced=True)
    assert np.linalg.eigvalsh(statistics.moments_DD).min() > 0
    for head in (solvers.lda(statistics, "equal", 0.1), solvers.ridge(statistics, 1.0)):
        assert np.isfinite(head["weights"]).all()


def test_a_class_of_no_more_patients_than_noise_is_absent() -> None:
    # Noise on a count: 1 x root of 2 arrays x root of 2 sites = 2. So 3.9 patients are none, 4.1 are some.
    half = {"counts": np.array([30.0, 1.95, 2.05]), "sums": np.ones((3, 4))}
    found = noisy_sums.added([half, half], [1.0, 1.0], SETTINGS)
    assert found.present_C.tolist() == [True, False, True]
    assert solvers.nearest_mean(found.statistics(found.view(None), balanced=False))["bias"][1] == -1e9


def test_a_mean_that_noise_hides_is_that_of_all() -> None:
    # Mean of all: (0, 0, 0, 0.05); the second class's lies 1 from it, its noise over 4 features is
    # 4 x (10 x root of 2 / 100) squared = 0.08 of 1 squared.
    sums_CF = np.array([[0.0, 0, 0, -90], [0, 0, 0, 100]])
    found = noisy_sums.added([{"counts": np.array([100.0, 100]), "sums": sums_CF}], [1.0], SETTINGS)
    means_CF = found.statistics(found.view(None), balanced=False).means_CD
    assert means_CF[1, 3] == pytest.approx(0.05 + 0.95 * (1 - 0.08 / 0.95**2))
    loud = NoisySums(noise=30, max_feature_norm=10)
    hidden = noisy_sums.added([{"counts": np.array([100.0, 100]), "sums": sums_CF}], [1.0], loud)
    means_CF = hidden.statistics(hidden.view(None), balanced=False).means_CD
    np.testing.assert_allclose(means_CF, [[0, 0, 0, 0.05]] * 2)


@pytest.mark.parametrize(
    ("name", "value", "why"),
    [
        ("counts", np.array([-40.0, 10, 10]), "further below 0"),
        ("sums", np.full((3, 5), 400.0), "longer than so many patients"),
        ("moments", np.full(15, 1e6), "larger than so many patients"),
        ("moments", np.zeros(14), "14 entries, expected 15"),
    ],
)
def test_what_neither_patients_nor_noise_can_give_is_refused(name: str, value: Floats, why: str) -> None:
    fine = {"counts": np.array([10.0, -5, 0]), "sums": np.zeros((3, 5)), "moments": np.zeros(15)}
    assert noisy_sums.wrong(fine, SETTINGS) is None
    assert why in str(noisy_sums.wrong({**fine, name: value}, SETTINGS))
