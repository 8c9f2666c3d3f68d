"""The calibration of a run, applied to a classifier's probabilities: a temperature, and sets with a stated coverage.

The counts were made with the weights of the run, the network's own softmax and one view of each image. Other weights,
heads and views keep their probabilities as they are, and have no sets.
"""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from common.calibration import Calibration, conformal
from common.config.heads import SOFTMAX
from common.errors import ConfigError
from common.heads import Floats
from common.metrics.calibration import tempered


@dataclass(frozen=True)
class Calibrated:
    """What is done with a classifier's own probabilities before they are shown."""

    temperature: float = 1.0
    largest: float | None = None
    """Largest -log p of a class in a set, at temperature 1; None: no sets are wanted."""
    coverage: float | None = None
    """Chance that a set holds the true class; None as `largest`."""
    about: tuple[str, ...] = ()
    """What the probabilities and sets are, for a person."""

    def shown(self, own_NC: Floats) -> Floats:
        """(N, C): the probabilities with the temperature; rows sum to 1."""
        return own_NC if self.temperature == 1 else tempered(own_NC, self.temperature)

    def sets(self, own_NC: Floats) -> npt.NDArray[np.bool_] | None:
        """(N, C): which classes are in the set of each image; None if no sets are wanted."""
        return None if self.largest is None else conformal.sets(own_NC, self.largest)


PLAIN = Calibrated()
"""Probabilities as the classifier gives them, without sets."""


@dataclass(frozen=True)
class Use:
    """How a classifier is used, as far as its calibration depends on it."""

    weights_sha256: str
    head: str
    is_plain: bool = True
    """False: adapted to a source, or the mean over several views."""


def calibrated(
    calibration: Calibration | None,
    use: Use,
    *,
    temperature: bool = True,
    coverage: float | None = None,
    site: str | None = None,
) -> Calibrated:
    """How probabilities are shown, with a temperature if there is one and `temperature` is true.

    `coverage` asks for sets, by the validation images of all training sites, or of `site` alone. Raises ConfigError if
    there are no counts for that, or too few.
    """
    obstacle = _obstacle(calibration, use)
    if coverage is None and site is not None:
        raise ConfigError("--site is for sets of classes; give --coverage as well, such as 0.9")
    if calibration is None or obstacle is not None:
        if coverage is not None:
            raise ConfigError(f"--coverage: {obstacle}, so there is no set with a stated coverage")
        return PLAIN if calibration is None else Calibrated(about=(f"not calibrated: {obstacle}",))
    about: list[str] = []
    fitted = calibration.fitted
    if temperature:
        about.append(calibration.describe())
    chosen, largest = fitted.temperature if temperature and fitted is not None else 1.0, None
    if coverage is not None:
        sites = calibration.sites
        if site is not None and site not in sites:
            raise ConfigError(
                f"--site: found {site!r}, expected a site whose validation images were counted: "
                f"{', '.join(sites) or 'none'}"
            )
        counted = sites if site is None else {site: sites[site]}
        largest = conformal.threshold(counted, coverage)
        about.append(conformal.describe(counted, coverage))
    return Calibrated(chosen, largest, coverage, tuple(about))


def _obstacle(calibration: Calibration | None, use: Use) -> str | None:
    if calibration is None:
        return "the run has no calibration.json (the study did not set `calibration`)"
    if calibration.weights_sha256 != use.weights_sha256:
        return (
            f"the run's calibration is of the weights {calibration.weights_sha256[:12]} after round "
            f"{calibration.after_round}, found {use.weights_sha256[:12]}"
        )
    if use.head != SOFTMAX:
        return f"the run's calibration is of the network's own softmax, found the head {use.head}"
    if not use.is_plain:
        return "the run's calibration is of one view of each image, without adaptation to a source"
    return None
