"""Settings of classical heads on deep features (`heads:` in a study).

A head is fitted on the features of a finished network. `local` heads are each site's own, and nothing of them leaves
but their scores, unless the study wants one to travel and its owner lets it. `federated` heads are one for all sites,
made of sums over a site's images or of gradients summed over them. No feature row of an image leaves with those, which
is why there is no federated nearest neighbour, and a kernel only as a random map that all sites share.
"""

from collections import Counter
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import BeforeValidator, Field, StringConstraints, model_validator

from common.config.types import LibraryName
from common.settings import Frozen

HeadName = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
Positive = Annotated[float, Field(gt=0)]
Whole = Annotated[int, Field(ge=1)]


def _as_list(value: object) -> object:
    return (value,) if isinstance(value, int | float) else value


_Numbers = Annotated[tuple[Positive, ...], Field(min_length=1, max_length=8)]
_Wholes = Annotated[tuple[Whole, ...], Field(min_length=1, max_length=8)]
OneOrMore = Annotated[_Numbers, BeforeValidator(_as_list, json_schema_input_type=Positive | _Numbers)]
"""Values to choose from by the site's validation images, or without any by grouped cross-validation on its training
images; a single one is used as is."""
OneOrMoreWhole = Annotated[_Wholes, BeforeValidator(_as_list, json_schema_input_type=Whole | _Wholes)]
_Shares = Annotated[tuple[Annotated[float, Field(ge=0, le=1)], ...], Field(min_length=1, max_length=8)]
OneOrMoreShares = Annotated[
    _Shares,
    BeforeValidator(_as_list, json_schema_input_type=Annotated[float, Field(ge=0, le=1)] | _Shares),
]
"""Values to choose from by the sites' validation images; a single one is used as is."""
ClassWeights: TypeAlias = Literal["none", "balanced"]

HeadProblem: TypeAlias = Literal[
    "one_class", "too_slow", "not_finite", "failed", "may_not_leave", "too_large", "other_features"
]
"""Why a site has no result for a head. `may_not_leave` and `too_large` are said of a head that was to travel,
`other_features` by a site whose features have another width than those that the head was fitted on."""

LocalKind: TypeAlias = Literal[
    "svm_rbf", "svm_linear", "knn", "logistic", "random_forest", "gradient_boosting", "lda", "naive_bayes",
    "nearest_mean",
]  # fmt: skip
"""Kinds of heads that a site fits for itself."""

SOFTMAX = "softmax"
"""Title of the network's own output, beside the heads."""


class Head(Frozen):
    """Settings of every head."""

    name: HeadName | None = None
    """Name in reports, files and messages; None: the kind."""
    scale: bool = True
    """Bring each feature to mean 0 and standard deviation 1 over the training images first."""
    pca: Whole | None = None
    """Principal components of the (scaled) features that are kept. None: all features."""

    @property
    def title(self) -> str:
        """The name, or else the kind."""
        kind: str = self.kind  # type: ignore[attr-defined]
        return self.name or kind


# --- local -----------------------------------------------------------------------------------


class Local(Head):
    """A head that each site fits for itself."""

    folds: Annotated[int, Field(ge=2, le=10)] = 3
    """Folds of the cross-validation that chooses among several values at a site without validation images, grouped like
    the split."""
    time_limit_s: Positive = 300
    """Longest fit, in seconds. A longer one is stopped, and the report names it."""
    travels: bool = False
    """True: each training site's head goes to the server as arrays, and every site scores it, as `local.NAME@SITE` in
    the report. Its owner's `policy.heads_may_leave` decides whether it may leave. Support vectors, neighbours and trees
    hold features of single images. False: only its scores leave."""


class LocalSvmRbf(Local):
    """Support vectors with a Gaussian kernel (scikit-learn's SVC)."""

    kind: Literal["svm_rbf"] = "svm_rbf"
    c: OneOrMore = (1.0,)
    """Penalty of errors: a larger value fits the training images more closely."""
    gamma: OneOrMore | Literal["scale"] = "scale"
    """Width of the kernel `exp(-gamma ||x - y||^2)`. `scale`: 1 over the number of features times their
    variance."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: each class counts the same, whatever its number of images."""


class LocalSvmLinear(Local):
    """A linear support vector machine per class (LinearSVC)."""

    kind: Literal["svm_linear"] = "svm_linear"
    c: OneOrMore = (0.01,)
    """Penalty of errors: a larger value fits the training images more closely."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: each class counts the same, whatever its number of images."""


class LocalKnn(Local):
    """The nearest neighbours' vote."""

    kind: Literal["knn"] = "knn"
    neighbours: OneOrMoreWhole = (5,)
    """Neighbours that vote."""
    weights: Literal["uniform", "distance"] = "distance"
    """Weight of a vote: the same for all, or 1 over the distance."""


class LocalLogistic(Local):
    """Multinomial logistic regression."""

    kind: Literal["logistic"] = "logistic"
    c: OneOrMore = (0.01,)
    """Inverse of the L2 penalty: a larger value fits the training images more closely."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: each class counts the same, whatever its number of images."""


class LocalForest(Local):
    """A random forest."""

    kind: Literal["random_forest"] = "random_forest"
    trees: OneOrMoreWhole = (300,)
    """Trees of the forest."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: each class counts the same, whatever its number of images."""


class LocalBoosting(Local):
    """Gradient boosting on histograms (HistGradientBoostingClassifier)."""

    kind: Literal["gradient_boosting"] = "gradient_boosting"
    iterations: OneOrMoreWhole = (100,)
    """Boosting steps; each adds a tree per class."""
    learning_rate: OneOrMore = (0.1,)
    """Factor for what each tree adds."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: each class counts the same, whatever its number of images."""


class LocalLda(Local):
    """Linear discriminant analysis."""

    kind: Literal["lda"] = "lda"
    shrinkage: Annotated[float, Field(ge=0, le=1)] = 0.1
    """Share of the covariance that is replaced by its mean variance."""
    priors: Literal["counted", "equal"] = "equal"
    """Class probabilities before an image is seen: as counted in the training images, or equal."""


class LocalNaiveBayes(Local):
    """A Gaussian per class and feature."""

    kind: Literal["naive_bayes"] = "naive_bayes"
    priors: Literal["counted", "equal"] = "equal"
    """Class probabilities before an image is seen: as counted in the training images, or equal."""


class LocalNearestMean(Local):
    """The class whose mean is nearest."""

    kind: Literal["nearest_mean"] = "nearest_mean"


LocalHead: TypeAlias = Annotated[
    LocalSvmRbf
    | LocalSvmLinear
    | LocalKnn
    | LocalLogistic
    | LocalForest
    | LocalBoosting
    | LocalLda
    | LocalNaiveBayes
    | LocalNearestMean,
    Field(discriminator="kind"),
]


# --- federated -------------------------------------------------------------------------------


class NearestMean(Head):
    """The class whose mean is nearest; exact, from sums per class."""

    kind: Literal["nearest_mean"] = "nearest_mean"


class NaiveBayes(Head):
    """A Gaussian per class and feature; exact, from sums and sums of squares per class."""

    kind: Literal["naive_bayes"] = "naive_bayes"
    priors: Literal["counted", "equal"] = "equal"
    """Class probabilities before an image is seen: as counted in the training images, or equal."""
    smoothing: Positive = 1e-9
    """Share of the largest variance that is added to all, as in scikit-learn."""


class Lda(Head):
    """Linear discriminant analysis; exact, from sums and second moments."""

    kind: Literal["lda"] = "lda"
    shrinkage: OneOrMoreShares = (0.1,)
    """Share of the covariance that is replaced by its mean variance. Of several values the one is taken with which the
    validation images of all training sites together are classified best (balanced accuracy)."""
    priors: Literal["counted", "equal"] = "equal"
    """Class probabilities before an image is seen: as counted in the training images, or equal. `equal`
    also weighs every class the same in the common covariance, as scikit-learn does."""


class Ridge(Head):
    """Least squares on -1 and 1 per class with a penalty (RidgeClassifier); exact, from second moments."""

    kind: Literal["ridge"] = "ridge"
    alpha: Positive = 1.0
    """Weight of the penalty on the coefficients."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: each class counts the same, whatever its number of images."""


class Iterated(Head):
    """A head that takes several messages: sites send losses and gradients, summed over their images."""

    c: Positive = 0.01
    """Weight of the images' losses beside the penalty 1/2 ||w||², as in scikit-learn."""
    class_weights: ClassWeights = "balanced"
    """`balanced`: an image weighs N / (K N_c), by the counts of all sites."""
    tolerance: Positive = 1e-3
    """Stop when a Newton step is expected to lower the loss by no more than this share of it."""
    most_messages: Annotated[int, Field(ge=1, le=500)] = 40
    """Most messages to a site for this head; the optimisation stops there."""


class LinearSvm(Iterated):
    """One linear machine per class against the rest, squared hinge loss: LinearSVC's objective."""

    kind: Literal["linear_svm"] = "linear_svm"


class Logistic(Iterated):
    """Multinomial logistic regression: LogisticRegression's objective."""

    kind: Literal["logistic"] = "logistic"


class RffSvm(Iterated):
    """A Gaussian-kernel machine by random Fourier features (Rahimi and Recht 2007): scikit-learn's
    RBFSampler, drawn from the study's seed, and a linear machine on its map."""

    kind: Literal["rff_svm"] = "rff_svm"
    num_components: Annotated[int, Field(ge=1, le=8192)] = 2000
    """Features of the map. The sites send its second moments once: 4 bytes x half its square."""
    gamma: Positive | Literal["scale"] = "scale"
    """`scale`: 1 over the number of features times their variance, as in SVC."""
    c: Positive = 0.3
    """Weight of the images' losses beside the penalty 1/2 ||w||², as in scikit-learn."""


class Vote(Head):
    """The mean of the probabilities of the sites' own linear heads, weighted by training images.

    Only heads whose coefficients are no image's features can be shared: support vectors, neighbours
    and the thresholds of trees cannot.
    """

    kind: Literal["vote"] = "vote"
    of: Literal["logistic", "svm_linear", "lda", "nearest_mean"] = "logistic"
    """Kind of the sites' own heads."""
    c: Positive = 0.01
    """Inverse of the L2 penalty of `logistic` and `svm_linear`; other kinds ignore it."""
    time_limit_s: Positive = 300
    """Longest fit at a site, in seconds. A longer one is stopped, and the report names it."""


def candidates(head: Head) -> tuple[str, ...]:
    """Titles under which the forms of a head are scored before one is chosen; empty if there is nothing to choose."""
    if not isinstance(head, Lda) or len(head.shrinkage) == 1:
        return ()
    return tuple(f"federated.{head.title}.{place}" for place in range(len(head.shrinkage)))


FederatedHead: TypeAlias = Annotated[
    NearestMean | NaiveBayes | Lda | Ridge | LinearSvm | Logistic | RffSvm | Vote,
    Field(discriminator="kind"),
]


# --- the setting -----------------------------------------------------------------------------


class HeadsConfig(Frozen):
    """Classical heads on the features of the study's network."""

    local: tuple[LocalHead, ...] = ()
    """Heads that each site fits for itself. Only their scores leave, unless they are to travel (`travels`)."""
    federated: tuple[FederatedHead, ...] = ()
    """Heads that are one for all sites, made of sums and gradients."""
    layer: LibraryName | None = None
    """A module of the network by its name, whose output is pooled; None: what the classifier sees."""
    every: Whole | None = None
    """Fit heads also after every this many rounds. None: only with the final weights."""

    @model_validator(mode="after")
    def _names_differ(self) -> Self:
        if not self.local and not self.federated:
            raise ValueError("names no head; list some under local or federated, or leave heads out")
        counts = Counter(
            [f"local.{h.title}" for h in self.local] + [f"federated.{h.title}" for h in self.federated]
        )
        if twice := [name for name, count in counts.items() if count > 1]:
            raise ValueError(f"{', '.join(twice)} is listed twice; give each a `name` of its own")
        return self

    @property
    def titles(self) -> tuple[str, ...]:
        """Every head as reports call it, local ones first: `local.svm_rbf`, `federated.lda`."""
        return (
            *(f"local.{head.title}" for head in self.local),
            *(f"federated.{head.title}" for head in self.federated),
        )
