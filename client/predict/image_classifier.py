"""Image classifier: a finished study's network with one of its heads, which gives class probabilities.

A study's folder is the operator's run (federated heads) or the site's own under `state_dir` (its local heads).
A head is only good with the weights that it was fitted on, so a head of other weights is refused.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeAlias

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from torch import nn

from client.classification.calibrated import Calibrated, Use, calibrated
from client.classification.classify import Judged, squares
from client.data.decoding import decode
from client.heads import features, sklearn_heads
from client.images import Preprocessing
from client.model import build, parameters
from client.predict.views import require_views, views_of
from client.training.adapted_statistics import adapt_statistics
from client.training.hardware.precision import weights_dtype
from common.calibration import FILE, Calibration
from common.config import StudyConfig
from common.config.heads import SOFTMAX
from common.errors import ConfigError, SiteDataError
from common.files import read_json
from common.heads import FittedHead, Floats, HeadForm, outliers, read_head, softmax
from common.heads.outliers import OutlierDetector, OutlierRecord
from common.settings import load_settings
from common.weights import digest, load_file

STUDY, WEIGHTS, CHOSEN = "study.yaml", "weights.safetensors", "best.safetensors"


@dataclass(frozen=True)
class LocalHead:
    """A site's own head."""

    pipeline: Pipeline
    num_classes: int

    def probabilities(self, features_NF: sklearn_heads.Rows) -> Floats:
        return sklearn_heads.probabilities(self.pipeline, features_NF, self.num_classes)


Head: TypeAlias = FittedHead | LocalHead | None
"""None: the network's own softmax."""


@dataclass(frozen=True)
class ImageClassifier:
    """A network with its weights, and the head on its features."""

    classes: tuple[str, ...]
    model: nn.Module
    preprocessing: Preprocessing
    layer: str | None
    head: Head
    study: StudyConfig
    device: torch.device
    num_views: int = 1
    """Views of an image that its probabilities are the mean over."""
    head_title: str = SOFTMAX
    weights_sha256: str = ""
    """Digest of the run's shared weights."""
    calibration: Calibration | None = None
    """That of the run, whatever weights and head it is of."""
    detector: OutlierDetector | None = None
    """What outlier scores are computed with; None: there are none."""
    outliers: OutlierRecord | None = None
    """Record of the outlier score; None as `detector`."""
    about_outliers: str = ""
    """What the score is, or why there is none; empty for a study that does not ask for one."""

    def calibrated(
        self,
        *,
        is_adapted: bool = False,
        temperature: bool = True,
        coverage: float | None = None,
        site: str | None = None,
    ) -> Calibrated:
        """How its probabilities are shown. Raises what `calibrated` raises."""
        use = Use(self.weights_sha256, self.head_title, is_plain=self.num_views == 1 and not is_adapted)
        return calibrated(self.calibration, use, temperature=temperature, coverage=coverage, site=site)

    def adapt(self, squares: Sequence[decode.Pixels]) -> int:
        """Measure the statistics of batch normalisation on these images; returns the number of layers that have some.

        The features are other ones then: see `without_outliers`. Raises what `adapt_statistics` raises.
        """
        if not squares:
            raise SiteDataError("found no image to adapt to, expected a folder of images of the same source")
        images = Squares(squares, self.preprocessing)
        return adapt_statistics(self.model, images, self.device, self.study.local.precision)

    def without_outliers(self, why: str) -> "ImageClassifier":
        """The same without outlier scores."""
        about = self.about_outliers and f"no outlier_score: {why}"
        return replace(self, detector=None, outliers=None, about_outliers=about)

    def probabilities(self, squares: Sequence[decode.Pixels]) -> Floats:
        """(N, C) of decoded squares. Raises ConsiliumError if the weights give no numbers."""
        return self.judge(squares).probabilities_NC

    def judge(self, squares: Sequence[decode.Pixels]) -> Judged:
        """Probabilities as the mean over the views, and outlier scores of the images as they are.

        Raises ConsiliumError if the weights give no numbers.
        """
        shown = [views_of(square, self.num_views) for square in squares]
        by_view = [self._of_view([views[number] for views in shown]) for number in range(self.num_views)]
        rows = [rows_NC for rows_NC, _ in by_view]
        scores_N = None if self.detector is None else self.detector.scores(by_view[0][1])
        return Judged(np.mean(rows, axis=0) if len(rows) > 1 else rows[0], scores_N)

    def _of_view(self, squares: Sequence[decode.Pixels]) -> tuple[Floats, sklearn_heads.Rows]:
        """Probabilities (N, C) and features (N, F) of one view of each image."""
        images = Squares(squares, self.preprocessing)
        features_NF, logits_NC = features.extract(
            self.model, images, layer=self.layer, device=self.device, precision=self.study.local.precision
        )
        rows_NC = softmax(logits_NC) if self.head is None else self.head.probabilities(features_NF)
        return rows_NC, features_NF


class Squares:
    """Decoded images without labels, as `client.images.Images` describes images."""

    def __init__(self, squares: Sequence[decode.Pixels], preprocessing: Preprocessing) -> None:
        self._squares_NRRC = torch.from_numpy(np.stack(squares))
        self._preprocessing = preprocessing

    @property
    def labels_N(self) -> torch.Tensor:
        return torch.zeros(len(self._squares_NRRC), dtype=torch.int64)

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:  # noqa: ARG002
        size = self._preprocessing.image_size
        start = (self._squares_NRRC.shape[1] - size) // 2
        middles_BSSC = self._squares_NRRC[indices_B, start : start + size, start : start + size]
        mean, std = (
            torch.tensor(values).view(3, 1, 1)
            for values in (self._preprocessing.mean, self._preprocessing.std)
        )
        return middles_BSSC.permute(0, 3, 1, 2).to(torch.float32).div(255).sub(mean).div(std)


def weights_of(folder: Path) -> Path:
    """The file of a study's weights: those that its selection chose and that were tested, else the last round's."""
    chosen = folder / CHOSEN
    return chosen if chosen.exists() else folder / WEIGHTS


def _require_model(folder: Path) -> None:
    """Raises ConfigError if no finished study lies there, with what lies there instead."""
    lacking = [path.name for path in (folder / STUDY, weights_of(folder)) if not path.exists()]
    if not lacking:
        return
    if not folder.is_dir():
        why = "it is not a folder"
    elif lacking == [WEIGHTS]:
        why = f"it has no {WEIGHTS}, which a study writes when it finishes"
    else:
        why = f"it has no {' and no '.join(lacking)}"
    raise ConfigError(
        f"{folder} holds no finished study: {why}. Give the run's folder as the operator hands it over, or this site's "
        "own folder of a study that fitted heads here"
    )


def load(
    folder: Path,
    title: str | None,
    weights_dir: Path | None,
    device: torch.device,
    num_views: int = 1,
    *,
    adapt_to: Sequence[Path] = (),
) -> ImageClassifier:
    """The network of a study's folder with the head called `title`, or with its softmax; None: as the study says.

    `num_views` are the views of an image that it is judged by. `adapt_to` are images of the source that is predicted:
    the statistics of batch normalisation are measured on them. Raises ConfigError if there is no such head or no such
    number of views, SiteDataError if files are missing or do not belong together, StorageError if a calibration is
    damaged.
    """
    _require_model(folder)
    require_views(num_views)
    study = load_settings(folder / STUDY, StudyConfig, "study")
    path = weights_of(folder)
    arrays, about = load_file(path)
    built = build.of_study(study, weights_dir)
    chosen = parameters.partition(built.model, study.model)
    shared = {name: array for name, array in arrays.items() if name in chosen.shared}
    local = {name: array for name, array in arrays.items() if name in chosen.local}
    weights_digest = digest(shared)
    if about.get("sha256") != weights_digest:
        raise SiteDataError(
            f"{path} is damaged or not of this study: its hash is {weights_digest[:12]}; fetch it again"
        )
    parameters.load_shared(built.model, chosen, shared)
    if local or not chosen.local:
        parameters.load_local(built.model, chosen, local)
    elif not (adapt_to and study.model.batch_norm == "local_statistics"):
        raise SiteDataError(_lacks_local(path, study))
    title = title or study.final_head_title
    head = None if title == SOFTMAX else _head(folder / "heads", title, study, weights_digest)
    model = built.model.to(device, weights_dtype(study.local.precision)).eval()
    if study.local.channels_last:
        model = model.to(memory_format=torch.channels_last)
    layer = None if study.heads is None else study.heads.layer
    detector, record, about_outliers = _outliers(folder, study, weights_digest)
    classifier = ImageClassifier(
        study.classes,
        model,
        built.preprocessing,
        layer,
        head,
        study,
        device,
        num_views,
        title,
        weights_digest,
        read_json(folder / FILE, Calibration),
        detector,
        record,
        about_outliers,
    )
    if not adapt_to:
        return classifier
    classifier.adapt(squares(classifier, adapt_to))
    return classifier.without_outliers("the network's features were adapted to another source")


def _lacks_local(path: Path, study: StudyConfig) -> str:
    kind = study.model.batch_norm
    way_out = ", or images of the source that is predicted (--adapt-to)" if kind == "local_statistics" else ""
    return (
        f"{path} lacks the layers that stay at each site (model.batch_norm is {kind}); name the study's folder in the "
        f"site's own state_dir{way_out}"
    )


def _outliers(
    folder: Path, study: StudyConfig, weights_digest: str
) -> tuple[OutlierDetector | None, OutlierRecord | None, str]:
    """Outlier score of a run and what it is; of other weights or without the file, why there is none."""
    if study.out_of_distribution is None:
        return None, None, ""
    found = outliers.load(folder, len(study.classes))
    if found is None:
        return (
            None,
            None,
            f"no outlier_score: {folder} has no {outliers.FILE}, which the server of the study writes",
        )
    detector, record = found
    if record.weights_sha256 != weights_digest:
        return (
            None,
            None,
            (
                f"no outlier_score: {outliers.FILE} is of the weights {record.weights_sha256[:12]}, found "
                f"{weights_digest[:12]}"
            ),
        )
    return detector, record, record.describe()


def _head(folder: Path, title: str, study: StudyConfig, weights_digest: str) -> FittedHead | LocalHead:
    path = folder / f"{title}.safetensors"
    if path.is_file():
        arrays, label = load_file(path)
        try:
            form = HeadForm.model_validate_json(label["head"])
            classes, made_of = tuple(json.loads(label["classes"])), label["weights_sha256"]
        except (KeyError, ValueError) as error:
            raise SiteDataError(f"{path} has no label of a head ({type(error).__name__})") from error
        _check(title, classes, made_of, study, weights_digest)
        return read_head(form, arrays, len(classes))
    if (folder / f"{title}.skops").is_file():
        pipeline, about = sklearn_heads.load(folder / title)
        _check(title, about.classes, about.weights_digest, study, weights_digest)
        return LocalHead(pipeline, len(about.classes))
    known = sorted(
        {p.name.removesuffix(p.suffix) for p in folder.glob("*") if p.suffix in (".safetensors", ".skops")}
    )
    raise ConfigError(
        f"--head: {folder} holds no head {title!r}; it holds {', '.join(known) or 'none'}, and {SOFTMAX} is the "
        "network's own"
    )


def _check(
    title: str, classes: tuple[str, ...], made_of: str, study: StudyConfig, weights_digest: str
) -> None:
    if classes != study.classes:
        raise SiteDataError(
            f"head {title} is for {', '.join(classes)}, the study for {', '.join(study.classes)}"
        )
    if made_of != weights_digest:
        raise SiteDataError(
            f"head {title} was made of the weights {made_of[:12]}, found {weights_digest[:12]}; a head is only good "
            "with its own weights. Take both from one folder."
        )
