"""Class probabilities for images, by what a study trained: its network, or one of its heads."""

from collections.abc import Iterable, Iterator
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, TextIO, TypeAlias

import numpy as np
import numpy.typing as npt
from PIL.Image import Image

from client import predict
from client.classification import PLAIN, Calibrated
from client.predict import Unreadable
from client.training.hardware.device import choose_device
from common.errors import SiteDataError
from consilium_fl.records import Prediction, Records

if TYPE_CHECKING:
    from consilium_fl.runs import Run

__all__ = ["Prediction", "Predictor", "Unreadable", "load_predictor"]

Picture: TypeAlias = str | PathLike[str] | Image
"""An image file, a folder (with all that is below), or a Pillow image."""

_MOST_NAMED = 5


class Predictor:
    """A trained network with its preprocessing, and perhaps a head on its features; see `load_predictor`."""

    def __init__(self, inner: predict.ImageClassifier, calibrated: Calibrated = PLAIN) -> None:
        self._inner, self._calibrated = inner, calibrated

    @property
    def about(self) -> tuple[str, ...]:
        """Temperature, coverage and outlier score of what it gives, as sentences; empty for a run without them."""
        outliers = self._inner.about_outliers
        return (*self._calibrated.about, outliers) if outliers else self._calibrated.about

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the classes, in the order of the probabilities."""
        return self._inner.classes

    def predict(self, images: Picture | Iterable[Picture], *, skip: bool = False) -> Records[Prediction]:
        """One record per image, in order; each frame of a DICOM is an image.

        Raises SiteDataError if a file is not an image that can be used; with `skip`, such files are left out.

            >>> predictor.predict("lesion.jpg")[0].predicted                    # doctest: +SKIP
            'mel'
            >>> predictor.predict("folder", skip=True).to_dataframe()           # doctest: +SKIP
        """
        outcomes = list(self.stream(images))
        unreadable = [outcome for outcome in outcomes if isinstance(outcome, Unreadable)]
        if unreadable and not skip:
            named = "; ".join(f"{problem.path} {problem.reason}" for problem in unreadable[:_MOST_NAMED])
            more = len(unreadable) - _MOST_NAMED
            raise SiteDataError(
                f"{named}{f'; and {more} more' if more > 0 else ''}. Remove these files, or skip them with skip=True"
            )
        return Records(outcome for outcome in outcomes if isinstance(outcome, Prediction))

    def probabilities(self, images: Picture | Iterable[Picture]) -> npt.NDArray[np.float64]:
        """(N, C) probabilities of N images and C classes; rows sum to 1. Raises SiteDataError as `predict`."""
        rows = [[*prediction.probabilities.values()] for prediction in self.predict(images)]
        return np.asarray(rows, np.float64).reshape(-1, len(self.classes))

    def stream(self, images: Picture | Iterable[Picture]) -> Iterator[Prediction | Unreadable]:
        """Predictions one by one, and what could not be read, for more images than fit into memory."""
        given = [images] if isinstance(images, str | PathLike | Image) else images
        pictures = (picture if isinstance(picture, Image) else Path(picture) for picture in given)
        for outcome in predict.classify(self._inner, pictures, self._calibrated):
            if isinstance(outcome, Unreadable):
                yield outcome
            else:
                yield Prediction(
                    file="" if outcome.path is None else str(outcome.path),
                    frame=outcome.frame,
                    predicted=outcome.predicted,
                    probabilities=dict(zip(self.classes, outcome.probabilities_C.tolist(), strict=True)),
                    in_set=outcome.in_set,
                    outlier_score=outcome.outlier_score,
                    unlike_training=outcome.unlike_training,
                )

    def write_csv(self, images: Iterable[Path], out: TextIO) -> list[Unreadable]:
        """Write one line of CSV per image to `out`; returns the files that could not be used."""
        return predict.write(self._inner, images, out, self._calibrated)


def load_predictor(
    run: "Run | str | PathLike[str]",
    head: str | None = None,
    *,
    weights_dir: str | PathLike[str] | None = None,
    device: str = "auto",
    adapt_to: Iterable[str | PathLike[str]] = (),
    views: int = 1,
    temperature: bool = True,
    coverage: float | None = None,
    site: str | None = None,
) -> Predictor:
    """The network of a finished run, with the head called `head`. None: with the one that the study ends with, which is
    its own softmax unless `final_head` names another.

    `run` is a run, the operator's folder of it, or a site's own folder under `state_dir`, which holds the site's
    local heads. `weights_dir` is where the study's start weights lie, if they come from a file. `device` is
    `auto`, `cpu`, `cuda` or `cuda:1`.

    `adapt_to` are images of the source that is to be predicted, without labels: the statistics of batch normalisation
    are measured on them (Li et al. 2016). With `views` 2, 4 or 8, an image's probabilities are the mean over it and
    its mirror image, both upside down, and all of them turned by a quarter.

    The probabilities of a run of a study with `calibration` have its temperature, unless `temperature` is False. With
    `coverage`, each prediction has a set of classes that holds the true one with that chance, for images like the
    validation images of all training sites, or of `site` alone. The predictions of a run of a study with
    `out_of_distribution` have an outlier score, but for a network that is adapted.

    Raises ConfigError if there is no such head, device or coverage, SiteDataError if files are missing or do not belong
    together.

        >>> predictor = load_predictor("runs/demo", head="federated.lda")       # doctest: +SKIP
        >>> predictor.probabilities("images").shape                             # doctest: +SKIP
        (30, 7)
    """
    folder = Path(run) if isinstance(run, str | PathLike) else run.folder
    weights = None if weights_dir is None else Path(weights_dir)
    images = [Path(path) for path in adapt_to]
    classifier = predict.load(folder, head, weights, choose_device(device), views, adapt_to=images)
    return Predictor(
        classifier,
        classifier.calibrated(is_adapted=bool(images), temperature=temperature, coverage=coverage, site=site),
    )
