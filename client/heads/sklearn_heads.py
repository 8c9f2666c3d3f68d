"""Classical heads with scikit-learn: the pipeline for each setting, and its probabilities.

Nothing here knows of networks, sites or messages, and nothing imports torch: heads are fitted in a process
of their own (`client/heads/worker.py`). They are kept with skops, which loads no code; what a file may be
made of is listed here, not taken from the file.

N images, D features, C classes of the study, K classes that a head has seen.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias, assert_never

import numpy as np
import numpy.typing as npt
import sklearn
from pydantic import TypeAdapter, ValidationError
from sklearn.base import clone
from sklearn.decomposition import PCA
from sklearn.discriminant_analysis import LinearDiscriminantAnalysis
from sklearn.ensemble import HistGradientBoostingClassifier, RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import euclidean_distances
from sklearn.model_selection import GridSearchCV, ParameterGrid, StratifiedGroupKFold
from sklearn.naive_bayes import GaussianNB
from sklearn.neighbors import KNeighborsClassifier, NearestCentroid
from sklearn.pipeline import Pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC

from client.heads import as_arrays
from common.config.heads import (
    LocalBoosting,
    LocalForest,
    LocalHead,
    LocalKnn,
    LocalLda,
    LocalLogistic,
    LocalNaiveBayes,
    LocalNearestMean,
    LocalSvmLinear,
    LocalSvmRbf,
    Vote,
)
from common.errors import SiteDataError
from common.files import write_atomically
from common.heads import Floats, softmax
from common.settings import Frozen

Labels: TypeAlias = npt.NDArray[np.int64]
Rows: TypeAlias = npt.NDArray[np.floating]

_TRUSTED = (
    "sklearn.tree._tree.Tree",
    "sklearn.ensemble._hist_gradient_boosting.predictor.TreePredictor",
)
"""Besides what skops trusts of itself. A forged tree may crash the process that applies it, but runs no
code; heads with trees are only ever a site's own, from its own `state_dir`."""


# --- fitting ---------------------------------------------------------------------------------


def fit(
    config: LocalHead,
    features_ND: Rows,
    labels_N: Labels,
    groups_N: Sequence[int],
    *,
    seed: int,
    threads: int,
    validation: tuple[Rows, Labels] | None = None,
) -> Pipeline:
    """The fitted pipeline; where the setting lists values, the best by balanced accuracy on `validation`.

    Without validation images: the best over grouped folds of the training images.
    """
    # In float32 a row may fall on the other side of a tree's threshold than where the head's arrays are applied.
    features_ND = np.asarray(features_ND, np.float64)
    head, grid = _head(config, labels_N, seed, threads)
    steps: list[tuple[str, Any]] = [("scale", StandardScaler())] if config.scale else []
    if config.pca is not None:
        steps.append(("pca", PCA(min(config.pca, *features_ND.shape), random_state=seed)))
    pipeline = Pipeline([*steps, ("head", head)])
    if all(len(values) == 1 for values in grid.values()):
        pipeline.set_params(**{name: values[0] for name, values in grid.items()})
        return pipeline.fit(features_ND, labels_N)
    if validation is not None and len(validation[1]):
        fitted = (clone(pipeline).set_params(**one).fit(features_ND, labels_N) for one in ParameterGrid(grid))
        return max(fitted, key=lambda candidate: _balanced_accuracy(candidate, *validation))
    folds = StratifiedGroupKFold(config.folds, shuffle=True, random_state=seed)
    search = GridSearchCV(pipeline, grid, scoring="balanced_accuracy", cv=folds, n_jobs=1)
    best: Pipeline = search.fit(features_ND, labels_N, groups=groups_N).best_estimator_
    return best


def _balanced_accuracy(pipeline: Pipeline, features_ND: Rows, labels_N: Labels) -> float:
    """Mean over the classes that have images of their share that is right."""
    right_N = pipeline.predict(features_ND) == labels_N
    return float(np.mean([right_N[labels_N == label].mean() for label in np.unique(labels_N)]))


def _head(
    config: LocalHead, labels_N: Labels, seed: int, threads: int
) -> tuple[Any, dict[str, Sequence[Any]]]:
    """The classifier, and the values of its settings to choose from."""
    num_classes = len(np.unique(labels_N))
    match config:
        case LocalSvmRbf(c=c, gamma=gamma):
            gammas = ("scale",) if gamma == "scale" else gamma
            return SVC(class_weight=_weights(config)), {"head__C": c, "head__gamma": gammas}
        case LocalSvmLinear(c=c):
            head = LinearSVC(class_weight=_weights(config), random_state=seed, max_iter=5000)
            return head, {"head__C": c}
        case LocalKnn(neighbours=neighbours, weights=weights):
            most = [min(count, len(labels_N)) for count in neighbours]
            return KNeighborsClassifier(weights=weights, algorithm="brute"), {"head__n_neighbors": most}
        case LocalLogistic(c=c):
            return LogisticRegression(class_weight=_weights(config), max_iter=2000), {"head__C": c}
        case LocalForest(trees=trees):
            forest = RandomForestClassifier(class_weight=_weights(config), random_state=seed, n_jobs=threads)
            return forest, {"head__n_estimators": trees}
        case LocalBoosting(iterations=iterations, learning_rate=rates):
            boosting = HistGradientBoostingClassifier(
                class_weight=_weights(config), random_state=seed, early_stopping=False
            )
            return boosting, {"head__max_iter": iterations, "head__learning_rate": rates}
        case LocalLda(shrinkage=shrinkage, priors=priors):
            return _lda(shrinkage, priors, num_classes), {}
        case LocalNaiveBayes(priors=priors):
            return GaussianNB(priors=_priors(priors, num_classes)), {}
        case LocalNearestMean():
            return NearestCentroid(), {}
        case _:
            assert_never(config)


def _weights(config: Any) -> str | None:
    return None if config.class_weights == "none" else "balanced"


def _priors(priors: str, num_classes: int) -> Floats | None:
    return np.full(num_classes, 1 / num_classes) if priors == "equal" else None


def _lda(shrinkage: float, priors: str, num_classes: int) -> LinearDiscriminantAnalysis:
    return LinearDiscriminantAnalysis(
        solver="lsqr", shrinkage=shrinkage or None, priors=_priors(priors, num_classes)
    )


# --- a vote's linear heads -------------------------------------------------------------------


def coefficients(
    config: Vote, mapped_ND: Rows, labels_N: Labels, num_classes: int, seed: int
) -> dict[str, Floats]:
    """Weights (D, C) and bias (C) of one site's linear head; classes it has not seen get no vote."""
    seen_K = np.unique(labels_N)
    head: Any
    match config.of:
        case "logistic":
            head = LogisticRegression(C=config.c, class_weight="balanced", max_iter=2000)
        case "svm_linear":
            head = LinearSVC(C=config.c, class_weight="balanced", random_state=seed, max_iter=5000)
        case "lda":
            head = _lda(0.1, "equal", len(seen_K))
        case "nearest_mean":
            means_KD = np.stack([mapped_ND[labels_N == label].mean(0) for label in seen_K])
            return as_arrays.spread(means_KD.T, -0.5 * (means_KD**2).sum(1), seen_K, num_classes)
    return as_arrays.linear(head.fit(mapped_ND, labels_N), seen_K, num_classes)


# --- applying --------------------------------------------------------------------------------


def probabilities(pipeline: Pipeline, features_ND: Rows, num_classes: int) -> Floats:
    """(N, C); rows sum to 1. Of heads without probabilities, the softmax of their scores."""
    if not len(features_ND):
        return np.zeros((0, num_classes))
    head = pipeline.steps[-1][1]
    features_ND = np.asarray(features_ND, np.float64)
    if isinstance(head, NearestCentroid):
        mapped_ND = pipeline[:-1].transform(features_ND) if len(pipeline) > 1 else features_ND
        probabilities_NK = softmax(-0.5 * euclidean_distances(mapped_ND, head.centroids_, squared=True))
    elif hasattr(pipeline, "predict_proba"):
        probabilities_NK = pipeline.predict_proba(features_ND)
    else:
        scores = pipeline.decision_function(features_ND)
        probabilities_NK = softmax(np.stack([-scores, scores], axis=1) if scores.ndim == 1 else scores)
    result_NC = np.zeros((len(features_ND), num_classes))
    result_NC[:, head.classes_.astype(int)] = probabilities_NK
    return result_NC


# --- keeping ---------------------------------------------------------------------------------


class HeadLabel(Frozen):
    """Label of a kept head: its study and weights, and the meaning of its numbers."""

    title: str
    study: str
    study_fingerprint: str
    classes: tuple[str, ...]
    layer: str | None
    weights_digest: str
    """Of the network's shared tensors; with others, the features are others."""
    num_features: int
    sklearn: str | None = None
    """Version that fitted it; None for heads that are arrays."""


def save(path: Path, pipeline: Pipeline, label: HeadLabel) -> None:
    """Write PATH.skops and PATH.json. Raises StorageError."""
    from skops import io as skops  # loads torch, which fitting a head can do without

    write_atomically(path.with_name(f"{path.name}.skops"), skops.dumps(pipeline))
    labelled = label.model_copy(update={"sklearn": sklearn.__version__})
    write_atomically(path.with_name(f"{path.name}.json"), labelled.model_dump_json(indent=1).encode())


def load(path: Path) -> tuple[Pipeline, HeadLabel]:
    """Undo `save`. Raises SiteDataError for what is not a head, is of another scikit-learn, or holds other types."""
    from skops import io as skops

    try:
        label = TypeAdapter(HeadLabel).validate_json(path.with_name(f"{path.name}.json").read_bytes())
        data = path.with_name(f"{path.name}.skops").read_bytes()
        untrusted = sorted(set(skops.get_untrusted_types(data=data)) - set(_TRUSTED))
    except (OSError, ValueError, ValidationError) as error:
        raise SiteDataError(
            f"{path.name} is not a whole head ({type(error).__name__}); fit it again"
        ) from error
    if untrusted:
        raise SiteDataError(
            f"{path.name} holds {', '.join(untrusted[:5])}, expected only the types of Consilium's heads; not loaded"
        )
    if label.sklearn != sklearn.__version__:
        raise SiteDataError(
            f"{path.name} was fitted by scikit-learn {label.sklearn}, found {sklearn.__version__}; fit it again, "
            "or install that version"
        )
    pipeline: Pipeline = skops.loads(data, trusted=[*_TRUSTED])
    return pipeline, label


def as_json(config: LocalHead | Vote) -> Mapping[str, Any]:
    """A setting for the worker."""
    return config.model_dump(mode="json")
