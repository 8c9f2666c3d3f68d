"""Records of a run: flat, typed and frozen rows, that a DataFrame can be made of.

A figure that the counts cannot give is NaN. Shares are in [0, 1].
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any, Literal, TypeAlias, TypeVar

from consilium_fl.extras import missing

if TYPE_CHECKING:
    import pandas as pd

Side: TypeAlias = Literal["validation", "test"]
"""Sides of the sites' splits that models are scored on."""

Scope: TypeAlias = Literal["site", "pooled", "training sites"]
"""What a score is over: the test images of one site, of every site that scored, or of those that train."""


@dataclass(frozen=True)
class Record:
    """Base of every record."""

    def as_row(self) -> dict[str, Any]:
        """The record as column names and values."""
        return {field.name: getattr(self, field.name) for field in fields(self)}


Row = TypeVar("Row", bound=Record, covariant=True)


class Records(tuple[Row, ...]):
    """Records in their order: a tuple that can become a DataFrame."""

    __slots__ = ()

    def to_dataframe(self) -> "pd.DataFrame":
        """One line per record, one column per field. Raises ModuleNotFoundError without pandas."""
        try:
            import pandas as pd
        except ModuleNotFoundError as error:
            raise missing("to_dataframe", error) from error
        return pd.DataFrame([record.as_row() for record in self])


@dataclass(frozen=True)
class RoundRecord(Record):
    """One site in one round."""

    round: int
    closing: bool
    """The last round only scores the weights of the round before."""
    site: str
    outcome: Literal["ok", "refused", "failed", "missing", "set_aside"]
    """`refused`: the update did not pass admission. `failed`: the site reported that it could not.
    `missing`: no answer. `set_aside`: refused too often, so it got no plan."""
    reason: str
    """Empty for `ok`."""
    num_examples: int
    """Images that were trained on."""
    num_steps: int
    train_loss: float
    epsilon: float
    """What the study has cost this site's patients so far; NaN in a study without privacy."""
    delta_norm: float
    """Euclidean norm of the update."""
    train_s: float
    evaluate_s: float
    answered_after_s: float
    """Seconds from sending the plan to receiving the answer."""
    mib_down: float
    """Tensors sent to the site, MiB."""
    mib_up: float
    masked: bool
    """The update came under masks: the site's images and steps are not known, and 0 here."""
    round_s: float
    """Seconds of the whole round."""
    attempts: int
    """How often the round was asked for."""


@dataclass(frozen=True)
class ScoreRecord(Record):
    """Figures of one model on one set of images; `common.metrics` defines them."""

    after_round: int
    """Round after which the scored weights stood; 0 is before any training."""
    side: Side
    """`validation` in the rounds, `test` at the end."""
    scope: Scope
    site: str
    """Empty if the scope is not one site."""
    num_images: int
    loss: float
    accuracy: float
    accuracy_low: float
    """Lower end of the 95 % interval (Wilson)."""
    accuracy_high: float
    balanced_accuracy: float
    precision_macro: float
    recall_macro: float
    f1_macro: float
    precision_weighted: float
    recall_weighted: float
    f1_weighted: float
    auroc_macro: float
    ece: float
    avg_acc_bacc_pre_rec_f1: float
    avg_acc_bacc_pre_rec_f1_auroc: float


@dataclass(frozen=True)
class ClassScore(Record):
    """Figures of one class, of one model on one set of images."""

    after_round: int
    side: Side
    scope: Scope
    site: str
    """Empty if the scope is not one site."""
    class_name: str
    num_images: int
    """Test images of this class."""
    recall: float
    precision: float
    f1: float
    auroc: float
    """One class against the rest."""


@dataclass(frozen=True)
class HeadScore(Record):
    """Figures of one head on the test images of one site, or of all that train."""

    after_round: int
    site: str
    """A site, or `pooled, training sites`."""
    head: str
    num_images: int
    accuracy: float
    balanced_accuracy: float
    auroc: float
    gain: float
    """Balanced accuracy minus that of the network's softmax on the same images."""
    gain_low: float
    """Lower end of the gain's 95 % interval."""
    gain_high: float
    mcnemar_p: float
    problem: str
    """Why there are no figures; empty if there are."""
    precision_weighted: float = math.nan
    recall_weighted: float = math.nan
    f1_weighted: float = math.nan
    avg_acc_bacc_pre_rec_f1: float = math.nan
    """The paper's AVG, likely reading."""
    avg_acc_bacc_pre_rec_f1_auroc: float = math.nan


@dataclass(frozen=True)
class Prediction(Record):
    """Class probabilities of one image."""

    file: str
    """Empty for an image that was given as an object."""
    frame: int
    """From 1; of a file with one image, 1."""
    predicted: str
    """The most likely class."""
    probabilities: Mapping[str, float]
    """By class; they sum to 1."""
    in_set: tuple[str, ...] | None = None
    """Classes of a set with the coverage that was asked for; None without one."""
    outlier_score: float | None = None
    """Distance to the training images' features, 1 being theirs; None for a run without an outlier score."""
    unlike_training: bool | None = None
    """Whether the score is beyond its limit; None without a limit."""

    def as_row(self) -> dict[str, Any]:
        row = {"file": self.file, "frame": self.frame, "predicted": self.predicted, **self.probabilities}
        if self.in_set is not None:
            row["in set"] = " ".join(self.in_set)
        if self.outlier_score is not None:
            row |= {"outlier_score": self.outlier_score, "unlike_training": self.unlike_training}
        return row
