"""Heads that travel: one site's own head as arrays, which other sites score.

A study asks for it (`travels` of a local head), the owner's policy decides (`policy.heads_may_leave`). How the arrays
are read follows from the study's settings of the head, so a message names the head and its owner and no more.

Linear heads and Gaussians are made of sums over a class's images. Support vectors and neighbours are features of
single images, and so are the thresholds of trees.
"""

from collections.abc import Sequence
from typing import Annotated, Protocol, assert_never

import numpy as np
import numpy.typing as npt
from pydantic import Field

from common.config.heads import (
    HeadName,
    HeadsConfig,
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
)
from common.config.types import Name
from common.errors import WireError
from common.heads import scorers
from common.heads.fitted import HeadForm, read_head
from common.heads.view import Floats, View, read_view
from common.settings import Frozen
from common.weights import Arrays, num_bytes

FITTED = "fitted"
"""Start of the names of a head's arrays in its owner's answer: `fitted/KIND/NAME/...`."""

LARGEST_HEAD = 256 * 2**20
"""Largest head that travels, in bytes."""
LARGEST_TOGETHER = 2 * 2**30
"""Largest heads of all sites together, in bytes: every site receives all of them."""


class Travelling(Frozen):
    """One site's own head that travels; its arrays are `head/TITLE/...`."""

    name: HeadName
    """Title of the head under `heads.local` of the study."""
    owner: Annotated[Name, Field(max_length=100)]
    """Site whose head it is."""

    @property
    def title(self) -> str:
        """Title in results and reports."""
        return f"local.{self.name}@{self.owner}"


class HeadTooLarge(WireError):
    """A head has more bytes than one that travels may have."""


class Scorer(Protocol):
    """What a head does with features."""

    @property
    def view(self) -> View:
        """Map of the features that the head looks at."""

    def probabilities(self, features_NF: npt.NDArray[np.floating]) -> Floats:
        """(N, C); rows sum to 1. Raises WireError for features of another width."""


def asked(heads: HeadsConfig | None) -> tuple[LocalHead, ...]:
    """Heads that the study wants to travel."""
    return tuple(head for head in (heads.local if heads else ()) if head.travels)


def holds_features(head: LocalHead) -> bool:
    """Whether the head is made of single images' features, rather than of sums over a class."""
    return isinstance(head, LocalSvmRbf | LocalKnn | LocalForest | LocalBoosting)


def read(head: LocalHead, arrays: Arrays, num_classes: int) -> Scorer:
    """A head from arrays that were received. Raises WireError if they are not such a head, or too large."""
    if (size := num_bytes(arrays)) > LARGEST_HEAD:
        raise HeadTooLarge(f"the head has {size:,} bytes, expected at most {LARGEST_HEAD:,}")
    names = names_of(head)
    if unknown := arrays.keys() - names - {"shift", "scale", "components"}:
        raise WireError(f"the head has {len(unknown)} array(s) that a {head.kind} does not have")
    match head:
        case LocalSvmLinear() | LocalLogistic() | LocalLda() | LocalNearestMean():
            return read_head(HeadForm(title=f"local.{head.title}", form="linear"), arrays, num_classes)
        case LocalNaiveBayes():
            fitted = read_head(HeadForm(title=f"local.{head.title}", form="gaussian"), arrays, num_classes)
            if not np.all(fitted.parameters["variances"] > 0):
                raise WireError("variances are not all positive")
            return fitted
        case LocalSvmRbf() | LocalKnn() | LocalForest() | LocalBoosting():
            view = read_view({name: a for name, a in arrays.items() if name not in names}, None)
            match head:
                case LocalSvmRbf():
                    return scorers.read_kernel(view, arrays, num_classes)
                case LocalKnn(weights=weights):
                    by_distance = weights == "distance"
                    return scorers.read_neighbours(view, arrays, num_classes, by_distance=by_distance)
                case LocalForest():
                    return scorers.read_trees(view, arrays, num_classes, is_forest=True)
                case LocalBoosting():
                    return scorers.read_trees(view, arrays, num_classes, is_forest=False)
        case _:
            assert_never(head)


def names_of(head: LocalHead) -> frozenset[str]:
    """Names of the head's arrays, without those of its view."""
    match head:
        case LocalSvmLinear() | LocalLogistic() | LocalLda() | LocalNearestMean():
            return frozenset({"weights", "bias"})
        case LocalNaiveBayes():
            return frozenset({"means", "variances", "priors"})
        case LocalSvmRbf():
            return frozenset({"support", "dual", "intercepts", "num_support", "classes", "gamma"})
        case LocalKnn():
            return frozenset({"rows", "labels", "num_neighbours"})
        case LocalForest() | LocalBoosting():
            return frozenset({"roots", "left", "right", "feature", "threshold", "values", "start"})
        case _:
            assert_never(head)


def left_in(names: Sequence[str]) -> dict[str, str]:
    """By head of which an answer has arrays: its kind, from the arrays' names."""
    parts = [name.split("/") for name in names if name.startswith(f"{FITTED}/")]
    return {part[2]: part[1] for part in parts if len(part) > 3}
