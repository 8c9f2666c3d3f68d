"""The outlier score: how far an image's features are from those of the training images.

Every class has its mean, and all share one covariance (Lee et al. 2018, arXiv:1807.03888). The score of an image is the
Mahalanobis distance to the nearest class mean, in units of how far training images are from the mean of their own class
(root mean square): 1 is as far as they are. The covariance is shrunk, C' = (1 - a) C + a tr(C) / D I.

N images, F features, D features of the view, C classes with training images, B bins of the score.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import numpy as np
import numpy.typing as npt
from pydantic import Field, StringConstraints, ValidationError

from common.calibration.conformal import NoThresholdError, ScoreCounts, smallest_edge
from common.config.types import Name
from common.errors import SiteDataError, WireError
from common.heads.view import Floats, View, need, read_view
from common.settings import Frozen
from common.weights import Array, Arrays, load_file, save_file

FILE = "out_of_distribution.safetensors"
"""In the run's folder: the arrays, and the record as a label."""
_RECORD = "out_of_distribution"

SMALLEST, LARGEST = 0.5, 8.0
"""Ends of the bins that scores are counted in; those beyond count in the first and in the last bin."""

ALL = "all-sites"
"""In place of a site's name: counts under masks, which are of all sites together."""

_BLOCK = 4096


@dataclass(frozen=True)
class OutlierDetector:
    """What the score of an image is computed with."""

    view: View
    """Shifts and scales only, so D = F."""
    whitening_DD: Floats
    """From features on the view to units in which training images have a mean squared distance of 1."""
    centres_CD: Floats
    """Class means in these units."""

    def scores(self, features_NF: npt.NDArray[np.floating]) -> Floats:
        """(N,) 0 or more; not bounded. Raises WireError for features of another width."""
        parts = [
            self._of(features_NF[start : start + _BLOCK]) for start in range(0, len(features_NF), _BLOCK)
        ]
        return np.concatenate(parts) if parts else np.zeros(0)

    def _of(self, features_NF: npt.NDArray[np.floating]) -> Floats:
        whitened_ND = self.view.of(features_NF) @ self.whitening_DD
        squares = [((whitened_ND - centre_D) ** 2).sum(axis=1) for centre_D in self.centres_CD]
        scores_N: Floats = np.sqrt(np.min(squares, axis=0))
        return scores_N

    def arrays(self) -> dict[str, Array]:
        """The arrays by name; float32 is enough for the larger ones."""
        return {
            **self.view.arrays(),
            "whitening": self.whitening_DD.astype(np.float32),
            "centres": self.centres_CD.astype(np.float32),
        }


def read_detector(arrays: Arrays, num_classes: int) -> OutlierDetector:
    """Undo `OutlierDetector.arrays`. Raises WireError if one is missing or has another shape."""
    if arrays.keys() != {"shift", "scale", "whitening", "centres"}:
        raise WireError(
            f"found arrays {', '.join(sorted(arrays)) or 'none'}, expected those of an outlier score"
        )
    view = read_view({name: arrays[name] for name in ("shift", "scale")}, None)
    whitening_DD, centres_CD = (need(arrays, name, 2) for name in ("whitening", "centres"))
    if whitening_DD.shape != (view.width, view.width):
        raise WireError(f"whitening is {list(whitening_DD.shape)}, expected {[view.width, view.width]}")
    if centres_CD.shape[1] != view.width or not 1 <= len(centres_CD) <= num_classes:
        raise WireError(
            f"centres are {list(centres_CD.shape)}, expected 1 to {num_classes} of width {view.width}"
        )
    return OutlierDetector(view, whitening_DD, centres_CD)


# --- counts of scores --------------------------------------------------------------------------


def counted(scores_N: Floats, num_bins: int) -> ScoreCounts:
    """Images by the bin of their score. The bins are equally wide in its logarithm."""
    numbers_N = np.nan_to_num(scores_N, nan=np.inf)  # an overflow is as far as can be
    places_N = np.log(np.maximum(numbers_N, SMALLEST) / SMALLEST) / math.log(LARGEST / SMALLEST) * num_bins
    bins_N = np.minimum(places_N, num_bins - 1).astype(np.int64)
    return ScoreCounts(images_B=tuple(np.bincount(bins_N, minlength=num_bins).tolist()))


def upper_edges(num_bins: int) -> tuple[float, ...]:
    """Largest score of each bin but for the last, which has none."""
    return tuple(SMALLEST * (LARGEST / SMALLEST) ** ((place + 1) / num_bins) for place in range(num_bins))


# --- the record --------------------------------------------------------------------------------


class OutlierRecord(Frozen):
    """What a run knows of its outlier score besides the arrays. It goes to hospitals and into exported files."""

    weights_sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-z]{0,64}$")]
    """Digest of the shared weights whose features it is of."""
    after_round: Annotated[int, Field(ge=0)]
    """The round after which they stood."""
    shrinkage: Annotated[float, Field(gt=0, le=1)]
    """Share of the covariance that was replaced by its mean variance."""
    num_train: Annotated[float, Field(ge=0)]
    """Training images behind the sums; no whole number where a site counts for less than its images."""
    flagged: Annotated[float, Field(gt=0, le=0.5)]
    """Largest share of images like the validation images that is flagged."""
    limit: Annotated[float, Field(gt=0)] | None
    """An image with a larger score is flagged as unlike the training images. None: no flags."""
    why_none: str = ""
    """Why there is no limit; empty if there is one."""
    sites: dict[Name, ScoreCounts]
    """By training site, or under masks by `ALL`: its validation images by score."""
    without: tuple[Name, ...] = ()
    """Training sites that sent no counts: by their policy, without validation images, or because they were silent."""
    together: tuple[Name, ...] = Field(default=(), exclude_if=lambda sites: not sites)
    """Under masks: sites of the sum. One whose policy keeps its counts back added zeros."""

    @property
    def num_images(self) -> int:
        """Validation images of all sites."""
        return sum(one.num_images for one in self.sites.values())

    def is_unlike(self, score: float) -> bool | None:
        """Whether an image with this score is unlike the training images; None without a limit."""
        return None if self.limit is None else score > self.limit

    def describe(self) -> str:
        """What the score and its limit are, for a person."""
        what = "outlier_score: distance to the nearest class of the training images; 1 is as far as they are"
        if self.limit is None:
            return f"{what}; no image is flagged: {self.why_none}"
        return (
            f"{what}; above {self.limit:.3g} an image is flagged as unlike the training images, as at most "
            f"{100 * self.flagged:g} % of images like the {self.num_images} validation images of "
            f"{', '.join(self.together or self.sites)} are. An image that is not flagged may still be of another kind"
        )


def limit_of(sites: Mapping[str, ScoreCounts], flagged: float, least_images: int) -> tuple[float | None, str]:
    """The smallest edge of a bin beyond which at most the share `flagged` lies of images exchangeable with the counted
    ones (split conformal, as for sets of classes), or None and why."""
    num_images = sum(one.num_images for one in sites.values())
    if num_images < least_images:
        return None, f"{num_images} validation image(s) were counted, expected {least_images} or more"
    try:
        edges = [(upper_edges(len(one.images_B)), one.images_B) for one in sites.values()]
        return smallest_edge(edges, 1 - flagged), ""
    except NoThresholdError as error:
        if error.is_open:
            return None, (
                f"more than {100 * flagged:g} % of the validation images have a score beyond {LARGEST:g}, so it does "
                "not tell outliers from them"
            )
        return None, f"{num_images} validation image(s) are too few for {100 * flagged:g} %"


# --- on disk -----------------------------------------------------------------------------------


def save(folder: Path, detector: OutlierDetector, record: OutlierRecord) -> None:
    """Write the file. Raises StorageError."""
    save_file(folder / FILE, detector.arrays(), {_RECORD: record.model_dump_json()})


def load(folder: Path, num_classes: int) -> tuple[OutlierDetector, OutlierRecord] | None:
    """Detector and record of a run, None if it has none. Raises StorageError, SiteDataError for another file."""
    path = folder / FILE
    if not path.is_file():
        return None
    arrays, label = load_file(path)
    try:
        return read_detector(arrays, num_classes), OutlierRecord.model_validate_json(label[_RECORD])
    except (KeyError, ValidationError, WireError) as error:
        raise SiteDataError(
            f"{path} is no outlier score of this version ({type(error).__name__}); take it from the run again"
        ) from error
