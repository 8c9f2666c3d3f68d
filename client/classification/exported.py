"""A model that `consilium-site export` wrote: its label, and an ONNX file that gives class probabilities.

The graph reads decoded squares and holds the cut, the normalisation, the network and the head. So a program that runs
it needs the label for two things only: how large a square is, and what the classes are called. onnxruntime runs it
without torch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import ValidationError

from client.classification.calibrated import Calibrated, Use, calibrated
from client.classification.classify import Judged
from client.data.decoding import decode
from common.calibration import Calibration
from common.errors import ConfigError, SiteDataError
from common.heads import Floats
from common.heads.outliers import OutlierRecord
from common.settings import Frozen

KEY = "consilium"
"""Name of the label in the metadata of a file."""
INPUT, OUTPUT, SCORES = "squares", "probabilities", "outlier_scores"


class Squares(Frozen):
    """How an image becomes the model's input, uint8 (N, S, S, 3) in RGB, S being `stored_size`."""

    stored_size: int
    """Pixels a side: the image's middle square, resized."""
    interpolation: Literal["nearest", "bilinear", "bicubic"]
    image_size: int
    """Pixels a side of the middle that the network sees. The model cuts it."""
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    """By colour, for values in [0, 1]. The model subtracts and divides."""


class Label(Frozen):
    """What an exported file says of itself."""

    study: str
    fingerprint: str
    """Of the study."""
    classes: tuple[str, ...]
    """In the order of the probabilities."""
    encoder: str
    head: str
    """Title of the head that gives the probabilities."""
    preprocessing: Squares
    weights_sha256: str
    """Digest of the run's shared weights."""
    encoder_license: str = ""
    """Licence of the weights that training began with, as timm states it; empty: not known."""
    calibration: Calibration | None = None
    """Temperature and counts for sets of classes, of these weights and this head. The graph does not apply them."""
    out_of_distribution: OutlierRecord | None = None
    """Limit of the outlier score, which is the graph's second output. None: the graph has none."""
    program: str
    intended_use: str = "research only; not a medical device"


@dataclass(frozen=True)
class OnnxClassifier:
    """An ONNX file that gives class probabilities."""

    label: Label
    session: Any
    """onnxruntime's session."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.label.classes

    @property
    def preprocessing(self) -> Squares:
        return self.label.preprocessing

    def calibrated(
        self, *, temperature: bool = True, coverage: float | None = None, site: str | None = None
    ) -> Calibrated:
        """How its probabilities are shown. Raises what `calibrated` raises."""
        use = Use(self.label.weights_sha256, self.label.head)
        return calibrated(self.label.calibration, use, temperature=temperature, coverage=coverage, site=site)

    @property
    def outliers(self) -> OutlierRecord | None:
        return self.label.out_of_distribution

    def judge(self, squares: Sequence[decode.Pixels]) -> Judged:
        """What the file says of decoded squares."""
        names = [OUTPUT] if self.outliers is None else [OUTPUT, SCORES]
        found = self.session.run(names, {INPUT: np.stack(squares)})
        rows_NC, *scores = (np.asarray(array, np.float64) for array in found)
        return Judged(rows_NC, *scores)

    def probabilities(self, squares: Sequence[decode.Pixels]) -> Floats:
        """(N, C) of decoded squares."""
        return self.judge(squares).probabilities_NC


def load_onnx(path: Path) -> OnnxClassifier:
    """The classifier in an exported file. Raises ConfigError without onnxruntime, SiteDataError for another file."""
    try:
        import onnxruntime
    except ModuleNotFoundError as error:
        raise ConfigError(
            "an ONNX file needs onnxruntime; install it with `pip install onnxruntime`"
        ) from error
    if not path.is_file():
        raise SiteDataError(f"{path} is not there; expected a file that `consilium-site export` wrote")
    try:
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        label = Label.model_validate_json(session.get_modelmeta().custom_metadata_map[KEY])
    except (KeyError, ValidationError) as error:
        raise SiteDataError(
            f"{path} has no label of Consilium's; expected a file that `consilium-site export` wrote"
        ) from error
    except Exception as error:  # onnxruntime has a class for each of its codes, and no base that it documents
        raise SiteDataError(f"{path} is not an ONNX model that can be run: {type(error).__name__}") from error
    return OnnxClassifier(label, session)
