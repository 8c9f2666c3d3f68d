"""Settings of a study that starts from given weights, and of one that only scores them."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

from pydantic import StringConstraints

from common.config.aggregation import AdmissionConfig, FedAvg, Mean
from common.config.personalisation import NoPersonal
from common.config.training import LocalConfig
from common.config.types import Line
from common.settings import Frozen

if TYPE_CHECKING:
    from common.config.study import StudyConfig

_FOR_SCORES = {"batch_size", "micro_batch_size", "precision", "channels_last", "determinism", "compile"}
"""Settings of `local` that a study without training may have: how a site computes."""


class GivenWeights(Frozen):
    """Weights that the server holds and sends as the first ones."""

    name: Line
    """What they are, for people: the run and the round that they are from."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the tensors. A site refuses other ones in round 1."""


def wrong_scoring(study: "StudyConfig") -> str | None:
    """A sentence on what does not fit `rounds: 0`, or None; a study with rounds always fits."""
    if study.rounds:
        return None
    if found := list(_for_training(study)):
        return (
            f"rounds=0 scores weights and trains nothing, but the study sets {', '.join(found)}; leave that out, or "
            "set rounds to 1 or more"
        )
    return None


def _for_training(study: "StudyConfig") -> Iterator[str]:
    """Settings that only training looks at."""
    plain = LocalConfig()
    for name in LocalConfig.model_fields:
        if name not in _FOR_SCORES and getattr(study.local, name) != getattr(plain, name):
            yield f"local.{name}"
    if study.algorithm != FedAvg():
        yield "algorithm"
    if study.aggregation != Mean():
        yield "aggregation"
    if study.admission != AdmissionConfig():
        yield "admission"
    if study.personalisation != NoPersonal():
        yield "personalisation"
    for name in ("averaging", "selection", "transport", "secure_aggregation"):
        if getattr(study, name) is not None:
            yield name
    if study.sites.per_round is not None:
        yield "sites.per_round"
    if study.sites.evaluate_every != 1:
        yield "sites.evaluate_every"
