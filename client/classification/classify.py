"""Classes of images in files, folders and memory, one by one or as lines of CSV.

Files that are not images are listed and skipped. Images are decoded one after another and classified in batches, so
memory does not grow with their number.
"""

import csv
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import compress
from pathlib import Path
from typing import Literal, Protocol, TextIO

from PIL.Image import Image as Picture

from client.classification.calibrated import PLAIN, Calibrated
from client.classification.image_files import Unreadable, references
from client.data.decoding import decode
from client.data.references import BadImage, DicomFrame
from common.heads import Floats
from common.heads.outliers import OutlierRecord

_BATCH = 64
SCORE, UNLIKE = "outlier_score", "unlike_training"
"""Columns of a model with an outlier score."""


class Preparation(Protocol):
    """How an image becomes the square that a classifier reads."""

    @property
    def stored_size(self) -> int:
        """Pixels a side."""

    @property
    def interpolation(self) -> Literal["nearest", "bilinear", "bicubic"]:
        """Interpolation to that size."""


class Classifier(Protocol):
    """Whatever gives class probabilities for decoded squares."""

    @property
    def classes(self) -> tuple[str, ...]:
        """In the order of the probabilities."""

    @property
    def preprocessing(self) -> Preparation:
        """How images are prepared for it."""

    @property
    def outliers(self) -> OutlierRecord | None:
        """Record of its outlier score; None if it gives none."""

    def judge(self, squares: Sequence[decode.Pixels]) -> "Judged":
        """What it says of decoded squares."""


@dataclass(frozen=True)
class Judged:
    """What a classifier says of N images."""

    probabilities_NC: Floats
    """Rows sum to 1."""
    outlier_scores_N: Floats | None = None
    """None: the classifier gives none."""


@dataclass(frozen=True)
class Classified:
    """Predicted class and probabilities of one image."""

    path: Path | None
    """None for a picture that was given in memory."""
    frame: int
    """From 1."""
    predicted: str
    probabilities_C: Floats
    in_set: tuple[str, ...] | None = None
    """Classes of a set with a stated coverage; None if no sets are wanted."""
    outlier_score: float | None = None
    """Distance to the training images' features, 1 being theirs; None: the classifier gives none."""
    unlike_training: bool | None = None
    """Whether the score is beyond its limit; None without a limit."""


def classify(
    classifier: Classifier, images: Iterable[Path | Picture], calibrated: Calibrated = PLAIN
) -> Iterator[Classified | Unreadable]:
    """Classes of images in files, folders and memory, in order, with the calibration if there is one.

    Images are classified in batches, so an unreadable file comes before the other images of its batch.
    """
    waiting: list[tuple[Path | None, int, decode.Pixels]] = []
    for square in decoded(classifier.preprocessing, images):
        if isinstance(square, Unreadable):
            yield square
            continue
        waiting.append(square)
        if len(waiting) == _BATCH:
            yield from _classes(classifier, waiting, calibrated)
            waiting.clear()
    if waiting:
        yield from _classes(classifier, waiting, calibrated)


def squares(classifier: Classifier, images: Iterable[Path]) -> list[decode.Pixels]:
    """Decoded squares of all images that can be read."""
    found = decoded(classifier.preprocessing, images)
    return [square[2] for square in found if not isinstance(square, Unreadable)]


def decoded(
    preprocessing: Preparation, images: Iterable[Path | Picture]
) -> Iterator[tuple[Path | None, int, decode.Pixels] | Unreadable]:
    """Path, frame from 1 and decoded square of each image, in order; `Unreadable` for what is none."""
    size, interpolation = preprocessing.stored_size, preprocessing.interpolation
    for number, image in enumerate(images, start=1):
        if isinstance(image, Picture):
            try:
                yield None, 1, decode.square_of(image, size, interpolation)
            except BadImage as bad:
                yield Unreadable(Path(f"image {number}"), str(bad))
            continue
        for reference in references([image]):
            if isinstance(reference, Unreadable):
                yield reference
                continue
            path, source = reference
            frame = source.frame + 1 if isinstance(source, DicomFrame) else 1
            try:
                yield path, frame, decode.decode(source, size, interpolation)
            except BadImage as bad:
                yield Unreadable(path, str(bad))


def _classes(
    classifier: Classifier,
    batch: Sequence[tuple[Path | None, int, decode.Pixels]],
    calibrated: Calibrated,
) -> Iterator[Classified]:
    judged, record = classifier.judge([square for _, _, square in batch]), classifier.outliers
    own_NC, scores_N = judged.probabilities_NC, judged.outlier_scores_N
    shown_NC, inside_NC = calibrated.shown(own_NC), calibrated.sets(own_NC)
    for place, (path, frame, _) in enumerate(batch):
        # By the classifier's own probabilities: a temperature keeps their order, its rounding may not.
        predicted = classifier.classes[int(own_NC[place].argmax())]
        in_set = None if inside_NC is None else tuple(compress(classifier.classes, inside_NC[place]))
        score = None if scores_N is None else float(scores_N[place])
        unlike = None if score is None or record is None else record.is_unlike(score)
        yield Classified(path, frame, predicted, shown_NC[place], in_set, score, unlike)


_FLAG = {True: "yes", False: "no", None: ""}


def write(
    classifier: Classifier, paths: Iterable[Path], out: TextIO, calibrated: Calibrated = PLAIN
) -> list[Unreadable]:
    """Write a line of CSV per image: file, frame, the likeliest class, a probability per class, the set if wanted, and
    the outlier score with `yes` or `no` beyond its limit if the classifier gives one.

    Returns the files that could not be used.
    """
    rows = csv.writer(out, lineterminator="\n")
    # No class has a space in its name.
    more = [] if calibrated.coverage is None else [f"set {calibrated.coverage:g}"]
    named = [] if classifier.outliers is None else [SCORE, UNLIKE]
    rows.writerow(["file", "frame", "predicted", *classifier.classes, *more, *named])
    unreadable: list[Unreadable] = []
    for outcome in classify(classifier, paths, calibrated):
        if isinstance(outcome, Unreadable):
            unreadable.append(outcome)
        else:
            shares = (f"{value:.6f}" for value in outcome.probabilities_C)
            in_set = [] if outcome.in_set is None else [" ".join(outcome.in_set)]
            scored = [f"{outcome.outlier_score:.4f}", _FLAG[outcome.unlike_training]] if named else []
            rows.writerow([outcome.path, outcome.frame, outcome.predicted, *shares, *in_set, *scored])
    return unreadable
