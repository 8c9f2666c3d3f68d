"""Federated heads against scikit-learn on the pooled features; nothing is trained, features are given.

Three sites answer the server's real plans with the site's real steps. Their features are drawn, or those of real
images where the shared folder is there.
"""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.kernel_approximation import RBFSampler
from sklearn.linear_model import LogisticRegression, RidgeClassifier
from sklearn.metrics import balanced_accuracy_score
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import NearestCentroid
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from client.config import CacheConfig, Columns, CsvData
from client.data.manifest import Manifest
from client.data.readers import read
from client.data.store import ImageStore
from client.heads import steps as head_steps
from client.heads import worker
from client.heads.features import Features, extract
from client.heads.own_heads import FeatureTable, Place
from client.model import build
from common import wire
from common.config import ClassifierConfig, FileWeights, StudyConfig
from common.heads import FittedHead, Fourier, View, identity, softmax
from common.weights import digest
from common.wire import codec
from server.heads import fit
from server.rounds.sites import InProcessSites
from server.state import Cohort, RoundState
from tests.places import SHARED

MakeStudy = Callable[..., StudyConfig]
Rows = npt.NDArray[np.floating[Any]]
Labels = npt.NDArray[np.int64]

NAMES = ("east", "north", "south")
CLASSES = ("a", "b", "c", "d")


@dataclass
class Pool:
    """Features of all sites together, and which site holds which."""

    train_NF: Rows
    labels_N: Labels
    site_N: Labels
    test_NF: Rows
    test_labels_N: Labels
    crossed: list[tuple[wire.HeadPlan, wire.HeadAnswer]]

    @property
    def weights_N(self) -> Rows:
        """N / (K N_c): 150 images of 3 classes here."""
        counts_C = np.bincount(self.labels_N)
        return (len(self.labels_N) / (np.count_nonzero(counts_C) * np.maximum(counts_C, 1)))[self.labels_N]

    def answer(self, site: str, state_dir: Path) -> Callable[[bytes], bytes]:
        number = NAMES.index(site)

        def side(rows_NF: Rows, labels_N: Labels, site_N: Labels) -> Features:
            mine = site_N == number
            groups = tuple(f"g{place // 2}" for place in range(mine.sum()))
            logits = np.eye(len(CLASSES))[labels_N[mine]]
            return Features(rows_NF[mine].astype(np.float32), logits, labels_N[mine], groups)

        test_site_N = np.arange(len(self.test_labels_N)) % len(NAMES)
        tested = side(self.test_NF, self.test_labels_N, test_site_N)
        training = side(self.train_NF, self.labels_N, self.site_N)
        table = FeatureTable(digest(WEIGHTS), {"train": training, "validation": tested, "test": tested})
        place = Place(state_dir, state_dir / "study", 1, None)

        def answer(request: bytes) -> bytes:
            plan = codec.from_bytes(request)
            assert isinstance(plan, wire.HeadPlan)
            reply = head_steps.carry_out(plan, table, place)
            self.crossed.append((plan, reply))
            return codec.to_bytes(reply)

        return answer

    def counts(self, number: int, *, test: bool = False) -> tuple[int, ...]:
        labels_N = self.test_labels_N if test else self.labels_N
        site_N = np.arange(len(labels_N)) % len(NAMES) if test else self.site_N
        return tuple(np.bincount(labels_N[site_N == number], minlength=len(CLASSES)).tolist())


WEIGHTS = {"w": np.zeros(2, np.float32)}


def drawn(num_images: int = 150, num_features: int = 12, seed: int = 0, gap: float = 1.0) -> Pool:
    """Three of the four classes, apart by `gap`; each site has its own mixture, and one lacks a class.

    The last feature is constant, as that of a dead unit is.
    """
    draws = np.random.default_rng(seed)
    labels_N = draws.choice(3, num_images, p=[0.6, 0.3, 0.1])
    site_N = np.where(labels_N == 2, draws.integers(0, 2, num_images), draws.integers(0, 3, num_images))
    means_CF = gap * draws.normal(size=(3, num_features))
    rows_NF = means_CF[labels_N] + draws.normal(size=(num_images, num_features)) * np.linspace(
        0.5, 3, num_features
    )
    rows_NF[:, -1] = 0.25
    rows_NF = rows_NF.astype(np.float32).astype(np.float64)
    return Pool(rows_NF, labels_N, site_N, rows_NF[:30], labels_N[:30], [])


def federated(
    make_study: MakeStudy, pool: Pool, tmp_path: Path, *listed: dict[str, Any], **changes: Any
) -> tuple[fit.Fitted, dict[str, FittedHead]]:
    study = make_study(classes=CLASSES, sites={"train": NAMES, **changes}, heads={"federated": listed})
    enrolments = {
        name: wire.Enrolment(
            plan_id="e", site=name, layout={}, weights_digest="", frozen_digest="", preprocessing={},
            train_counts=pool.counts(number), validation_counts=pool.counts(number, test=True),
            test_counts=pool.counts(number, test=True), device="cpu",
            images=None, weights={},
        )
        for number, name in enumerate(NAMES)
    }  # fmt: skip
    state = RoundState(1, WEIGHTS, {}, {})
    sites = InProcessSites({name: pool.answer(name, tmp_path / name) for name in NAMES})
    fitted = fit.fit(study, sites, Cohort(enrolments, WEIGHTS), state)
    return fitted, {head.form.title: head for head in fitted.heads}


def weighed(pool: Pool, class_weights: str) -> Rows:
    return pool.weights_N if class_weights == "balanced" else np.ones(len(pool.labels_N))


@pytest.fixture
def _at_once(monkeypatch):
    """Heads are fitted in this process: to start one takes longer than these fits."""
    monkeypatch.setattr(worker, "_work", lambda folder, _: worker.main(folder))


# --- exact heads -----------------------------------------------------------------------------


@pytest.mark.parametrize("priors", ["counted", "equal"])
def test_a_federated_discriminant_is_scikit_learns_on_the_pooled_features(make_study, tmp_path, priors):
    pool = drawn()
    _, found = federated(
        make_study, pool, tmp_path, {"kind": "lda", "scale": False, "shrinkage": 0.1, "priors": priors}
    )
    wanted = LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=0.1, priors=None if priors == "counted" else [1 / 3] * 3
    ).fit(pool.train_NF, pool.labels_N)
    parts = found["federated.lda"].parameters
    np.testing.assert_allclose(parts["weights"][:, :3].T, wanted.coef_, atol=1e-6)
    np.testing.assert_allclose(parts["bias"][:3], wanted.intercept_, atol=1e-6)
    seen_NC = found["federated.lda"].probabilities(pool.train_NF)
    np.testing.assert_allclose(seen_NC[:, :3], wanted.predict_proba(pool.train_NF), atol=1e-6)
    assert np.all(seen_NC[:, 3] == 0)  # nobody has images of class d


@pytest.mark.parametrize("class_weights", ["none", "balanced"])
def test_federated_ridge_is_scikit_learns_on_the_pooled_features(make_study, tmp_path, class_weights):
    pool = drawn()
    _, found = federated(make_study, pool, tmp_path, {"kind": "ridge", "class_weights": class_weights})
    scaled = StandardScaler().fit(pool.train_NF)
    wanted = RidgeClassifier(alpha=1.0).fit(
        scaled.transform(pool.train_NF), pool.labels_N, sample_weight=weighed(pool, class_weights)
    )
    parts = found["federated.ridge"].parameters
    np.testing.assert_allclose(parts["weights"][:, :3].T, wanted.coef_, atol=1e-6)
    np.testing.assert_allclose(parts["bias"][:3], wanted.intercept_, atol=1e-6)


@pytest.mark.parametrize("priors", ["counted", "equal"])
def test_federated_naive_bayes_is_scikit_learns_on_the_pooled_features(make_study, tmp_path, priors):
    pool = drawn()
    _, found = federated(
        make_study, pool, tmp_path, {"kind": "naive_bayes", "priors": priors, "scale": False}
    )
    wanted = GaussianNB(priors=None if priors == "counted" else [1 / 3] * 3).fit(pool.train_NF, pool.labels_N)
    parts = found["federated.naive_bayes"].parameters
    np.testing.assert_allclose(parts["means"][:3], wanted.theta_, atol=1e-6)
    np.testing.assert_allclose(parts["variances"][:3, :-1], wanted.var_[:, :-1], atol=1e-6)
    np.testing.assert_allclose(
        found["federated.naive_bayes"].probabilities(pool.train_NF)[:, :3],
        wanted.predict_proba(pool.train_NF),
        atol=1e-6,
    )


@pytest.mark.filterwarnings("ignore:self.within_class_std_dev_")  # the constant feature
def test_a_federated_nearest_mean_is_scikit_learns_on_the_pooled_features(make_study, tmp_path):
    pool = drawn(gap=0.5)
    _, found = federated(make_study, pool, tmp_path, {"kind": "nearest_mean"})
    rows = StandardScaler().fit_transform(pool.train_NF)
    wanted = NearestCentroid().fit(rows, pool.labels_N)
    head = found["federated.nearest_mean"]
    np.testing.assert_allclose(head.parameters["weights"][:, :3].T, wanted.centroids_, atol=1e-6)
    assert np.array_equal(head.probabilities(pool.train_NF).argmax(1), wanted.predict(rows))


def test_principal_components_are_those_of_the_pooled_features(make_study, tmp_path):
    pool = drawn()
    _, found = federated(make_study, pool, tmp_path, {"kind": "nearest_mean", "pca": 4})
    rows = StandardScaler().fit_transform(pool.train_NF)
    _, _, directions = np.linalg.svd(rows - rows.mean(0), full_matrices=False)
    mapped_N4 = found["federated.nearest_mean"].view.of(pool.train_NF)
    # The same up to the signs of the components, which mean nothing.
    np.testing.assert_allclose(np.abs(mapped_N4), np.abs(rows @ directions[:4].T), atol=1e-6)


def test_two_heads_that_need_the_same_sums_ask_for_them_once(make_study, tmp_path):
    pool = drawn()
    federated(
        make_study, pool, tmp_path,
        {"kind": "ridge", "name": "weak", "alpha": 0.1}, {"kind": "ridge", "name": "strong", "alpha": 10.0},
    )  # fmt: skip
    steps = [plan.step for plan, _ in pool.crossed if plan.site == "east"]
    assert [step.kind for step in steps] == ["statistics", "statistics", "score"]
    assert [view.name for view in steps[1].views] == ["weak"]


# --- heads that are searched for -----------------------------------------------------------------


def squared_hinge(
    pool: Pool, rows: Rows, weights_PC: Rows, c: float, weights_N: Rows, num_classes: int = 3
) -> float:
    """LinearSVC's objective, its intercept penalised as liblinear does."""
    signs_NC = np.where(pool.labels_N[:, None] == np.arange(num_classes), 1.0, -1.0)
    short_NC = np.maximum(0, 1 - signs_NC * (rows @ weights_PC[:-1] + weights_PC[-1]))
    return float(0.5 * (weights_PC**2).sum() + c * (weights_N[:, None] * short_NC**2).sum())


def stacked(weights_DC: Rows, bias_C: Rows) -> Rows:
    return np.vstack([weights_DC, bias_C])


@pytest.mark.parametrize(("c", "class_weights"), [(0.01, "balanced"), (1.0, "none"), (1.0, "balanced")])
def test_a_federated_linear_svm_reaches_the_pooled_ones_objective(make_study, tmp_path, c, class_weights):
    pool = drawn()
    _, found = federated(
        make_study, pool, tmp_path, {"kind": "linear_svm", "c": c, "class_weights": class_weights}
    )
    rows, weights_N = StandardScaler().fit_transform(pool.train_NF), weighed(pool, class_weights)
    wanted = LinearSVC(C=c, tol=1e-8, max_iter=100_000).fit(rows, pool.labels_N, sample_weight=weights_N)
    parts = found["federated.linear_svm"].parameters
    ours = squared_hinge(pool, rows, stacked(parts["weights"][:, :3], parts["bias"][:3]), c, weights_N)
    theirs = squared_hinge(pool, rows, stacked(wanted.coef_.T, wanted.intercept_), c, weights_N)
    assert ours <= 1.01 * theirs
    assert len({plan.plan_id for plan, _ in pool.crossed if plan.site == "east"}) <= 20


def test_federated_logistic_regression_reaches_the_pooled_ones_objective(make_study, tmp_path):
    pool, c = drawn(), 0.1
    _, found = federated(make_study, pool, tmp_path, {"kind": "logistic", "c": c})
    rows = StandardScaler().fit_transform(pool.train_NF)
    wanted = LogisticRegression(C=c, tol=1e-10, max_iter=5000).fit(
        rows, pool.labels_N, sample_weight=pool.weights_N
    )

    def objective(weights_DC: Rows, bias_C: Rows) -> float:
        right_N = softmax(rows @ weights_DC + bias_C)[np.arange(len(rows)), pool.labels_N]
        return float(0.5 * (weights_DC**2).sum() - c * (pool.weights_N * np.log(right_N)).sum())

    parts = found["federated.logistic"].parameters
    ours = objective(parts["weights"][:, :3], parts["bias"][:3])
    assert ours <= 1.01 * objective(wanted.coef_.T, wanted.intercept_)


def test_the_random_map_is_scikit_learns(make_study):
    rows = np.random.default_rng(0).normal(size=(5, 7))
    fourier = Fourier(seed=3, gamma=0.2, num_components=11)
    sampler = RBFSampler(gamma=0.2, n_components=11, random_state=3)
    view = View(np.zeros(7), np.ones(7), None, fourier)
    np.testing.assert_allclose(view.of(rows), sampler.fit_transform(rows), atol=1e-12)
    assert identity(7).of(rows) == pytest.approx(rows)


def test_a_random_fourier_machine_is_near_the_pooled_kernel_machine(make_study, tmp_path):
    """Two rings, which no line parts: a linear machine is right about as often as a coin."""
    draws = np.random.default_rng(1)
    labels_N = np.arange(300) % 2
    angles_N = draws.uniform(0, 2 * np.pi, 300)
    rows_NF = np.stack([np.cos(angles_N), np.sin(angles_N)], 1) * (1.0 + 1.5 * labels_N)[:, None]
    rows_NF = (rows_NF + draws.normal(scale=0.2, size=rows_NF.shape)).astype(np.float32).astype(np.float64)
    pool = Pool(rows_NF[:200], labels_N[:200], np.arange(200) % 3, rows_NF[200:], labels_N[200:], [])
    _, found = federated(
        make_study, pool, tmp_path,
        {"kind": "rff_svm", "num_components": 200}, {"kind": "linear_svm"},
    )  # fmt: skip
    scaled = StandardScaler().fit(rows_NF[:200])
    wanted = SVC().fit(scaled.transform(rows_NF[:200]), labels_N[:200])
    theirs = wanted.score(scaled.transform(rows_NF[200:]), labels_N[200:])
    ours = np.mean(found["federated.rff_svm"].probabilities(rows_NF[200:]).argmax(1) == labels_N[200:])
    line = np.mean(found["federated.linear_svm"].probabilities(rows_NF[200:]).argmax(1) == labels_N[200:])
    assert theirs > 0.95
    assert line < 0.8
    assert ours >= theirs - 0.02
    # gamma is SVC's: 1 over two features times their variance, 1
    assert found["federated.rff_svm"].form.fourier.gamma == pytest.approx(0.5)


# --- what crosses the wire -----------------------------------------------------------------------

EVERY = (
    {"kind": "nearest_mean"}, {"kind": "naive_bayes"}, {"kind": "lda"}, {"kind": "ridge", "pca": 5},
    {"kind": "linear_svm"}, {"kind": "logistic"}, {"kind": "rff_svm", "num_components": 16},
    {"kind": "vote", "of": "nearest_mean"},
)  # fmt: skip


@pytest.mark.usefixtures("_at_once")
def test_nothing_that_a_site_sends_for_a_head_has_a_row_per_image(make_study, tmp_path):
    """The same arrays in the same shapes from 30 images a site as from 60, whatever the head."""
    shapes = []
    for num_images in (90, 180):
        pool = drawn(num_images)
        federated(make_study, pool, tmp_path / str(num_images), *EVERY)
        shapes.append(
            {name: array.shape for _, reply in pool.crossed for name, array in wire.arrays_of(reply).items()}
        )
    assert shapes[0] == shapes[1]
    kinds = {name.split("/")[0] for name in shapes[0]}
    assert kinds == {"statistics", "losses", "gradients", "coefficients"}
    # F = 12 features, D = 12, 5 or 16, C = 4 classes, and halves of squares: 12*13/2, 16*17/2
    assert {size for shape in shapes[0].values() for size in shape} <= {
        1,
        4,
        5,
        6,
        12,
        13,
        15,
        16,
        17,
        78,
        136,
    }


@pytest.mark.usefixtures("_at_once")
def test_each_head_sends_what_the_page_says(make_study, tmp_path):
    sent = {}
    for head in EVERY:
        pool = drawn()
        federated(make_study, pool, tmp_path / head["kind"], head)
        names = {
            name.replace(f"/{head['kind']}", "").replace("statistics/raw", "statistics")
            for _, reply in pool.crossed
            for name in wire.arrays_of(reply)
        }
        sent[head["kind"]] = names
    raw = {"statistics/sums", "statistics/squares"}
    moments = {*raw, "statistics/moments"}
    searched = {*moments, "losses", "gradients"}
    assert sent == {
        "nearest_mean": raw, "naive_bayes": raw, "lda": moments,
        "ridge": {*moments, "statistics/pca.True/sums", "statistics/pca.True/moments"},
        "linear_svm": searched, "logistic": searched, "rff_svm": searched,
        "vote": {*raw, "coefficients/weights", "coefficients/bias"},
    }  # fmt: skip


# --- on real images ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def real(tmp_path_factory) -> Pool:
    """Features of every second of 1,110 lesions at 64 pixels; the sources are the sites."""
    folder = tmp_path_factory.mktemp("real")
    shutil.unpack_archive(SHARED / "data" / "mini_skin_128.tar.xz", folder, filter="data")
    (table,) = folder.rglob("labels.csv")
    config = CsvData(labels=table, columns=Columns(label="label", group="group", acquisition="domain"))
    classes = ("akiec", "bcc", "bkl", "df", "mel", "nv", "vasc")
    manifest = Manifest(read.read(config, classes).rows[::2], classes)
    model = ClassifierConfig(
        encoder="mobilenetv2_100",
        image_size=64,
        weights=FileWeights(
            name="mobilenetv2_100.timm.safetensors",
            sha256="a3ecb9791104a396ba30131ec1394534364be0c499ab598712ac5187e115084c",
        ),
    )
    built = build.build(model, len(classes), 0, SHARED / "weights")
    store = ImageStore.build(manifest, built.preprocessing, CacheConfig(), folder, 1)
    rows_NF, _ = extract(
        built.model.to(memory_format=torch.channels_last), store.images(None),
        layer=None, device=torch.device("cpu"), precision="float32",
    )  # fmt: skip
    labels_N = store.images(None).labels_N.numpy()
    order = np.random.default_rng(0).permutation(len(labels_N))
    train, test = order[:380], order[380:]
    return Pool(rows_NF[train], labels_N[train], train % len(NAMES), rows_NF[test], labels_N[test], [])


@pytest.mark.skipif(not SHARED.is_dir(), reason="the real images are not here")
def test_on_real_features_machines_are_as_good_as_pooled_ones(make_study, tmp_path, real, monkeypatch):
    monkeypatch.setitem(globals(), "CLASSES", tuple("abcdefg"))
    _, found = federated(
        make_study, real, tmp_path,
        {"kind": "linear_svm", "c": 0.01}, {"kind": "rff_svm", "pca": 64},
    )  # fmt: skip
    rows, mapped = (found[f"federated.{kind}"].view for kind in ("linear_svm", "rff_svm"))
    wanted = LinearSVC(C=0.01, tol=1e-4).fit(
        rows.of(real.train_NF), real.labels_N, sample_weight=real.weights_N
    )
    parts = found["federated.linear_svm"].parameters
    ours, theirs = (
        squared_hinge(real, rows.of(real.train_NF), weights, 0.01, real.weights_N, 7)
        for weights in (
            stacked(parts["weights"], parts["bias"]),
            stacked(wanted.coef_.T, wanted.intercept_),
        )
    )
    assert ours <= 1.01 * theirs

    reduced = View(mapped.shift_F, mapped.scale_F, mapped.components_FK)
    kernel = SVC(class_weight="balanced").fit(reduced.of(real.train_NF), real.labels_N)
    pooled = balanced_accuracy_score(real.test_labels_N, kernel.predict(reduced.of(real.test_NF)))
    guessed = found["federated.rff_svm"].probabilities(real.test_NF).argmax(1)
    assert balanced_accuracy_score(real.test_labels_N, guessed) >= pooled - 0.02
