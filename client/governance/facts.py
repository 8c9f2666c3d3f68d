"""Facts that the rules of a site's policy are about, and what a rule says when it refuses."""

from dataclasses import dataclass
from datetime import datetime
from typing import Literal

from common.weights import Layout


@dataclass(frozen=True)
class BuiltStudy:
    """Facts that are known once the study's model is built and the images are read."""

    train_counts: tuple[int, ...]
    """Training images per class, without those that the policy leaves out."""
    layout: Layout
    """Tensors that travel."""
    weights_digest: str = ""
    """Of the first weights, as this site builds them."""
    weight_change: float = 0.0
    """Change of the received weights against those of the last round that this site answered, as a share of their
    norm. After a restart, against the first weights, by rounds that were answered."""
    fewest_patients: int | None = None
    """In an optimizer step of the round, None without one."""
    largest_share: float = 0.0
    """Of one patient in the round."""
    largest_share_of_statistics: float = 0.0
    """Of one patient in the running statistics of batch normalisation."""
    left_out: int = 0
    """Patients of whom no image is trained on in the round."""


@dataclass(frozen=True)
class Facts:
    """Facts that a rule uses besides plan and policy."""

    now: datetime
    """With a time zone, in which `hours` and a day are meant."""
    decision: Literal["yes", "no", "undecided"]
    """What a person at this site decided about the study."""
    rounds_today: int
    """Rounds of training that this site has answered today."""
    num_bytes: int
    """Size of the plan as received."""
    arrays_digest: str = ""
    """Of the plan's arrays."""
    evaluations_today: int = 0
    """Sets of weights that this site has scored today."""
    device_minutes_today: float = 0.0
    """Minutes that this site has computed today."""
    runs: int = 1
    """Runs of this study under its approval, with the one that the plan begins."""
    num_answered: int = 0
    """Rounds of this run of the study that this site has answered."""
    are_known: bool = True
    """False for heads on weights that no round or test of this site was of."""
    epsilon: float | None = None
    """Of all studies together once the plan's study, or its round, is done; None if it costs no privacy."""
    built: BuiltStudy | None = None


@dataclass(frozen=True)
class RuleViolation:
    """One rule that refuses a plan."""

    rule: str
    """Name of the setting."""
    message: str
    """For the server: what the study asks for."""
    limit: str
    """For this site's log: what the policy says."""
