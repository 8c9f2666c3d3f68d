"""Settings of the server's side of a round: algorithm, aggregation rule, admission."""

from typing import Annotated, Literal, TypeAlias, assert_never

from pydantic import Field

from common.config.types import Decay, Positive
from common.settings import Frozen


class FedAvg(Frozen):
    """The mean of the sites' deltas, weighted by examples (McMahan et al. 2017, arXiv:1602.05629)."""

    kind: Literal["fedavg"] = "fedavg"


class FedProx(Frozen):
    """FedAvg with a penalty at the sites on the distance to the received weights (Li et al. 2020, arXiv:1812.06127)."""

    kind: Literal["fedprox"] = "fedprox"
    mu: Annotated[float, Field(ge=0)] = 0.01
    """Weight of the penalty on the distance to the received weights; 0 is FedAvg."""
    squared: bool = True
    """True: `mu/2 * ||w - w_t||**2`, the paper's term. False: `mu/2 * ||w - w_t||`."""


class Scaffold(Frozen):
    """SCAFFOLD, option II (Karimireddy et al. 2020, arXiv:1910.06378): control variates take out of a site's steps what
    makes them differ from those of all sites.

    Each site keeps its own, the server's travels with the weights, and answers stay as they are. Sites that hold
    other classes then no longer pull the mean away from the optimum of all. It needs plain SGD: a control variate
    stands for the mean gradient of a round.
    """

    kind: Literal["scaffold"] = "scaffold"
    server_lr: Positive = 1.0
    """Learning rate of the server's step along the mean delta."""


class FedNova(Frozen):
    """FedAvg for sites that do not work equally much (Wang et al. 2020, arXiv:2007.07481): each delta is divided by the
    length of its site's way, and the mean is multiplied by the mean length.

    A site with many images takes more steps. In FedAvg it counts twice, by its images and by the length of its delta.
    """

    kind: Literal["fednova"] = "fednova"


class FedAvgM(Frozen):
    """FedAvg with server momentum (Hsu et al. 2019, arXiv:1909.06335)."""

    kind: Literal["fedavgm"] = "fedavgm"
    server_lr: Positive = 1.0
    """Learning rate of the server's step."""
    momentum: Decay = 0.9
    """Share of the server's previous step that is kept."""
    damped: bool = False
    """True: the step is a mean of the deltas so far, `(1 - momentum) * delta + momentum * before`, corrected for its
    start at 0. False: deltas add up, so a steady one is followed `1 / (1 - momentum)` times as far."""


class FedAdam(Frozen):
    """Adam on the server (Reddi et al. 2021, arXiv:2003.00295, algorithm 2)."""

    kind: Literal["fedadam"] = "fedadam"
    server_lr: Positive = 0.1
    """Learning rate of the server's step."""
    beta1: Decay = 0.9
    """Decay of the running mean of the deltas."""
    beta2: Decay = 0.99
    """Decay of the running mean of their squares."""
    tau: Positive = 1e-3
    """Added to the denominator: a larger value means less adaptive steps."""
    max_step: Positive | None = 1.0
    """Longest step, as a multiple of the norm of the round's mean delta; a longer one is shrunk. None: no limit, as
    published, where the first steps can be several times as long as the deltas."""


class FedYogi(Frozen):
    """Yogi on the server (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedyogi"] = "fedyogi"
    server_lr: Positive = 0.01
    """Learning rate of the server's step."""
    beta1: Decay = 0.9
    """Decay of the running mean of the deltas."""
    beta2: Decay = 0.99
    """Decay of the running mean of their squares."""
    tau: Positive = 1e-3
    """Added to the denominator: a larger value means less adaptive steps."""
    max_step: Positive | None = 1.0
    """Longest step, as a multiple of the norm of the round's mean delta; a longer one is shrunk. None: no limit, as
    published, where the first steps can be several times as long as the deltas."""


class FedAdagrad(Frozen):
    """Adagrad on the server (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    server_lr: Positive = 0.1
    """Learning rate of the server's step."""
    beta1: Decay = 0.0
    """Decay of the running mean of the deltas."""
    tau: Positive = 1e-3
    """Added to the denominator: a larger value means less adaptive steps."""
    max_step: Positive | None = 1.0
    """Longest step, as a multiple of the norm of the round's mean delta; a longer one is shrunk. None: no limit, as
    published, where the first steps can be several times as long as the deltas."""


Algorithm: TypeAlias = Annotated[
    FedAvg | FedProx | Scaffold | FedNova | FedAvgM | FedAdam | FedYogi | FedAdagrad,
    Field(discriminator="kind"),
]


class ExponentialAverage(Frozen):
    """The exponential mean of the weights of all rounds."""

    kind: Literal["exponential"] = "exponential"
    decay: Decay = 0.7
    """Share of the mean before that is kept in each round."""


class LastRounds(Frozen):
    """The plain mean of the weights of the last rounds (SWA, Izmailov et al. 2018, arXiv:1803.05407)."""

    kind: Literal["last_rounds"] = "last_rounds"
    rounds: Annotated[int, Field(ge=2)] = 5
    """Rounds whose weights are in the mean. A study that ends early before them keeps its last weights."""


Averaging: TypeAlias = Annotated[ExponentialAverage | LastRounds, Field(discriminator="kind")]


LEAST_TO_LIMIT = 3
"""Training sites of a study from which on each one's share of the weight is limited by default."""


class Clipped(Frozen):
    """Settings of every aggregation rule."""

    norm_clip: Positive | None = None
    """Before the rule, a delta with a larger Euclidean norm, over its parameters, is shrunk to this one
    (Sun et al. 2019, arXiv:1911.07963). It limits the influence of one site and detects no bad site."""


class Weighted(Clipped):
    """Settings of the rules that weight a site by its examples. Their number is the site's own word."""

    weigh_sites_by: Literal["images", "classes", "equal"] = "images"
    """Weight of a site: `images`, its training images; `classes`, its share of each class's images, so that rare
    classes count as much as common ones; `equal`, the same for every site."""
    max_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of the weight that one site can have; the rest is shared by the others in proportion to their
    examples. None: a half for the mean and a third for the geometric median in a study of three training sites or
    more, and no limit in a smaller one, where half would ignore the examples. 1: no limit."""


class Mean(Weighted):
    """The mean weighted by examples."""

    kind: Literal["mean"] = "mean"


class TrimmedMean(Clipped):
    """Per-coordinate mean without the extremes (Yin et al. 2018, arXiv:1803.01498, definition 2).

    Counts of examples are ignored, because the server cannot check them.
    """

    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of sites dropped at each end, rounded down to whole sites."""

    def num_dropped(self, num_sites: int) -> int:
        """Sites dropped at each end of `num_sites`; at least one is always left."""
        # The small addend undoes binary rounding: 0.29 * 100 is 28.999999999999996.
        return min(int(self.trim * num_sites + 1e-9), (num_sites - 1) // 2)


class Median(Clipped):
    """Per-coordinate median (Yin et al. 2018, definition 1). Counts of examples are ignored."""

    kind: Literal["median"] = "median"


class Krum(Clipped):
    """The one delta that is closest to its nearest others (Blanchard et al. 2017, arXiv:1703.02757).

    Counts of examples are ignored.
    """

    kind: Literal["krum"] = "krum"
    num_byzantine: Annotated[int, Field(ge=1)] = 1
    """Bad sites that a round has to withstand. It needs 2 * num_byzantine + 3 sites."""


class MultiKrum(Clipped):
    """The mean of the deltas that Krum scores best. Counts of examples are ignored."""

    kind: Literal["multi_krum"] = "multi_krum"
    num_byzantine: Annotated[int, Field(ge=1)] = 1
    """Bad sites that a round has to withstand. It needs 2 * num_byzantine + 3 sites."""
    num_selected: Annotated[int, Field(ge=1)]
    """Deltas that are averaged; 1 is Krum."""


class GeometricMedian(Weighted):
    """The point with the least weighted sum of distances to the deltas (Pillutla et al. 2022,
    arXiv:1912.13445). Weighted by examples, as in the paper: a site with half of the weight decides alone.
    """

    kind: Literal["geometric_median"] = "geometric_median"
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Most steps of the smoothed Weiszfeld algorithm; it stops earlier when nothing moves."""
    smoothing: Positive = 1e-6
    """Distances below this one count as this one."""


Aggregation: TypeAlias = Annotated[
    Mean | TrimmedMean | Median | Krum | MultiKrum | GeometricMedian, Field(discriminator="kind")
]


class AdmissionConfig(Frozen):
    """How large an update may be, and how often a site may send one that is refused."""

    max_norm: Positive | None = None
    """Largest Euclidean norm of a delta, over its parameters. Running means and variances do not count: they are
    measured, not learnt, and their size follows from the images."""
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = 100.0
    """Largest norm of a delta, as a multiple of the median norm of the round's other deltas. Running means and
    variances are compared in the same way, on their own. Of fewer than three deltas none is refused, because the
    wrong one cannot be known. With a number here the server holds the deltas of a round side by side; None: it
    does not, if `aggregation.max_share` is 1, too."""
    set_aside_after: Annotated[int, Field(ge=1)] | None = None
    """A site refused this many times in a row gets no more plans. None: it always gets another."""


def share_limit(rule: Aggregation, num_sites: int) -> float:
    """Largest share of the weight that one of a study's `num_sites` training sites can have."""
    if not isinstance(rule, Mean | GeometricMedian):
        return 1.0
    if rule.max_share is not None:
        return rule.max_share
    if num_sites < LEAST_TO_LIMIT:
        return 1.0
    # A point with half of the weight is the geometric median, wherever it lies.
    return 1 / 3 if isinstance(rule, GeometricMedian) else 0.5


def wrong_rule(rule: Aggregation, quorum: int) -> str | None:
    """Why a rule cannot do its work on the updates of the smallest round, or None."""
    match rule:
        case Mean():
            return None
        case TrimmedMean(trim=trim):
            dropped = rule.num_dropped(quorum)
            least = f"; it takes at least 1/{quorum}" if quorum > 2 else ""
            return None if dropped else f"trim={trim:g} drops 0 of {quorum} site(s) at each end{least}"
        case Median() | GeometricMedian():
            return f"kind={rule.kind} needs 3 sites to outvote one, found {quorum}" if quorum < 3 else None
        case Krum(num_byzantine=bad) | MultiKrum(num_byzantine=bad):
            if quorum < 2 * bad + 3:
                return f"num_byzantine={bad} needs 2 * {bad} + 3 = {2 * bad + 3} sites, found {quorum}"
            if isinstance(rule, MultiKrum) and rule.num_selected > quorum - bad:
                return (
                    f"num_selected={rule.num_selected} of {quorum} takes in one of {bad} bad site(s) for "
                    f"certain; at most {quorum} - {bad} = {quorum - bad} can be good"
                )
            return None
        case _:
            assert_never(rule)
