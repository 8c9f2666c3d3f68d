"""What a federated head needs of the sites: the server asks for it, and a site answers no more than that."""

from typing import Literal, assert_never

from common.config.heads import (
    FederatedHead,
    HeadsConfig,
    Lda,
    LinearSvm,
    Logistic,
    NaiveBayes,
    NearestMean,
    RffSvm,
    Ridge,
    Vote,
)


def moments_of(head: FederatedHead) -> tuple[Literal["none", "float32", "float64"], bool] | None:
    """Precision of the second moments that a head needs, and whether images are weighted by class.

    None for a vote, which needs no sums.
    """
    match head:
        case NearestMean() | NaiveBayes():
            return "none", False
        case Lda(priors=priors):
            return "float64", priors == "equal"
        case Ridge(class_weights=weights):
            return "float64", weights == "balanced"
        case LinearSvm() | Logistic() | RffSvm():
            return "float32", head.class_weights == "balanced"
        case Vote():
            return None
        case _:
            assert_never(head)


def noisy_blocks(heads: HeadsConfig) -> tuple[str, ...]:
    """Arrays that a site sends once in a study with privacy: on the features as they are, for all heads together.

    `counts` (C) of patients, `sums` (C, F) and, unless means alone are needed, `moments` (F (F + 1) / 2).
    """
    means_alone = all(isinstance(head, NearestMean) and head.pca is None for head in heads.federated)
    return ("counts", "sums") if means_alone else ("counts", "sums", "moments")
