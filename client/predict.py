"""Class probabilities for images, by a finished study's network or by one of its heads.

A study's folder is the operator's run (federated heads) or the site's own under `state_dir` (its local heads).
A head is only good with the weights it was made of, so others are refused. What is no image is named,
and the rest goes on.
"""

import csv
import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TextIO, TypeAlias

import numpy as np
import torch
from PIL.Image import Image as Picture
from sklearn.pipeline import Pipeline
from torch import nn

from client.data.decoding import decode, dicom
from client.data.references import BadImage, DicomFrame, ImageReference, PictureFile
from client.heads import features, sklearn_heads
from client.images import Preprocessing
from client.model import build, parameters
from client.training.precision import weights_dtype
from common.config import StudyConfig
from common.config.heads import SOFTMAX
from common.errors import ConfigError, SiteDataError
from common.heads import FittedHead, Floats, HeadForm, read_head, softmax
from common.settings import load_settings
from common.weights import digest, load_file

_BATCH = 64
_DICOM_MARK = b"DICM"
_HIDDEN = "."


@dataclass(frozen=True)
class LocalOne:
    """A site's own head."""

    pipeline: Pipeline
    num_classes: int

    def probabilities(self, features_NF: sklearn_heads.Rows) -> Floats:
        return sklearn_heads.probabilities(self.pipeline, features_NF, self.num_classes)


Applied: TypeAlias = FittedHead | LocalOne | None
"""None: the network's own softmax."""


@dataclass(frozen=True)
class Predictor:
    """A network with its weights, and what reads its features."""

    classes: tuple[str, ...]
    model: nn.Module
    preprocessing: Preprocessing
    layer: str | None
    head: Applied
    study: StudyConfig
    device: torch.device

    def probabilities(self, squares: Sequence[decode.Pixels]) -> Floats:
        """(N, C) of decoded squares. Raises ConsiliumError if the weights give no numbers."""
        found = Squares(squares, self.preprocessing)
        features_NF, logits_NC = features.extract(
            self.model, found, layer=self.layer, device=self.device, precision=self.study.local.precision
        )
        return softmax(logits_NC) if self.head is None else self.head.probabilities(features_NF)


class Squares:
    """Decoded images as `client.images.Images` describes them; of no known class."""

    def __init__(self, squares: Sequence[decode.Pixels], preprocessing: Preprocessing) -> None:
        self._squares_NRRC = torch.from_numpy(np.stack(squares))
        self._preprocessing = preprocessing

    @property
    def labels_N(self) -> torch.Tensor:
        return torch.zeros(len(self._squares_NRRC), dtype=torch.int64)

    def batch(self, indices_B: torch.Tensor, generator: torch.Generator | None) -> torch.Tensor:  # noqa: ARG002
        size = self._preprocessing.image_size
        start = (self._squares_NRRC.shape[1] - size) // 2
        seen = self._squares_NRRC[indices_B, start : start + size, start : start + size]
        mean, std = (
            torch.tensor(v).view(3, 1, 1) for v in (self._preprocessing.mean, self._preprocessing.std)
        )
        return seen.permute(0, 3, 1, 2).to(torch.float32).div(255).sub(mean).div(std)


# --- loading ---------------------------------------------------------------------------------


def load(folder: Path, title: str, weights_dir: Path | None, device: torch.device) -> Predictor:
    """The network of a study's folder with the head called `title`, or with its softmax.

    Raises ConfigError if there is no such head, SiteDataError if files are missing or do not belong together.
    """
    study = load_settings(folder / "study.yaml", StudyConfig, "study")
    path = folder / "weights.safetensors"
    arrays, about = load_file(path)
    built = build.of_study(study, weights_dir)
    chosen = parameters.partition(built.model, study.model)
    shared = {name: array for name, array in arrays.items() if name in chosen.shared}
    local = {name: array for name, array in arrays.items() if name in chosen.local}
    found = digest(shared)
    if about.get("sha256") != found:
        raise SiteDataError(
            f"{path} is damaged or not of this study: its hash is {found[:12]}; fetch it again"
        )
    if chosen.local and not local:
        raise SiteDataError(
            f"{path} lacks the layers that stay at each site (model.batch_norm is local); name the study's folder "
            "in the site's own state_dir"
        )
    parameters.load_shared(built.model, chosen, shared)
    parameters.load_local(built.model, chosen, local)
    head = None if title == SOFTMAX else _head(folder / "heads", title, study, found)
    model = built.model.to(device, weights_dtype(study.local.precision)).eval()
    if study.local.channels_last:
        model = model.to(memory_format=torch.channels_last)
    layer = None if study.heads is None else study.heads.layer
    return Predictor(study.classes, model, built.preprocessing, layer, head, study, device)


def _head(folder: Path, title: str, study: StudyConfig, weights_digest: str) -> FittedHead | LocalOne:
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
        return LocalOne(pipeline, len(about.classes))
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


# --- images ----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Problem:
    """Something that is no image; `reason` ends the sentence that begins with the path."""

    path: Path
    reason: str


def references(paths: Sequence[Path]) -> Iterator[tuple[Path, ImageReference] | Problem]:
    """Every image in files and folders (all that is below, without hidden files), each frame of a DICOM."""
    for given in paths:
        if given.is_dir():
            inside = sorted(p for p in given.rglob("*") if p.is_file() and not p.name.startswith(_HIDDEN))
            if not inside:
                yield Problem(given, "holds no files")
            for path in inside:
                yield from _of_file(path)
        else:
            yield from _of_file(given)


def _of_file(path: Path) -> Iterator[tuple[Path, ImageReference] | Problem]:
    try:
        with path.open("rb") as file:
            is_dicom = file.read(132)[128:] == _DICOM_MARK
    except OSError as error:
        yield Problem(path, f"cannot be read ({error.strerror})")
        return
    if not is_dicom:
        yield path, PictureFile(path)
        return
    try:
        num_frames = dicom.num_frames(dicom.read_header(path))
    except BadImage as bad:
        yield Problem(path, str(bad))
        return
    for frame in range(num_frames):
        yield path, DicomFrame(path, frame)


@dataclass(frozen=True)
class Classified:
    """What the network, or a head, makes of one image."""

    path: Path | None
    """None for a picture that was given in memory."""
    frame: int
    """From 1."""
    predicted: str
    probabilities_C: Floats


def classify(predictor: Predictor, images: Iterable[Path | Picture]) -> Iterator[Classified | Problem]:
    """Classes of images in files, folders and memory, in order; a problem comes before the batch it fell out of."""
    waiting: list[tuple[Path | None, int, decode.Pixels]] = []
    for square in _squares(predictor.preprocessing, images):
        if isinstance(square, Problem):
            yield square
            continue
        waiting.append(square)
        if len(waiting) == _BATCH:
            yield from _classes(predictor, waiting)
            waiting.clear()
    if waiting:
        yield from _classes(predictor, waiting)


def _squares(
    preprocessing: Preprocessing, images: Iterable[Path | Picture]
) -> Iterator[tuple[Path | None, int, decode.Pixels] | Problem]:
    size, interpolation = preprocessing.stored_size, preprocessing.interpolation
    for number, image in enumerate(images, start=1):
        if isinstance(image, Picture):
            try:
                yield None, 1, decode.square_of(image, size, interpolation)
            except BadImage as bad:
                yield Problem(Path(f"image {number}"), str(bad))
            continue
        for reference in references([image]):
            if isinstance(reference, Problem):
                yield reference
                continue
            path, where = reference
            frame = where.frame + 1 if isinstance(where, DicomFrame) else 1
            try:
                yield path, frame, decode.decode(where, size, interpolation)
            except BadImage as bad:
                yield Problem(path, str(bad))


def _classes(
    predictor: Predictor, batch: Sequence[tuple[Path | None, int, decode.Pixels]]
) -> Iterator[Classified]:
    probabilities_NC = predictor.probabilities([square for _, _, square in batch])
    for (path, frame, _), row_C in zip(batch, probabilities_NC, strict=True):
        yield Classified(path, frame, predictor.classes[int(row_C.argmax())], row_C)


def write(predictor: Predictor, paths: Iterable[Path], out: TextIO) -> list[Problem]:
    """Write a line of CSV per image: file, frame, the likeliest class, a probability per class.

    Returns what could not be used.
    """
    rows = csv.writer(out, lineterminator="\n")
    rows.writerow(["file", "frame", "predicted", *predictor.classes])
    problems: list[Problem] = []
    for outcome in classify(predictor, paths):
        if isinstance(outcome, Problem):
            problems.append(outcome)
        else:
            shares = (f"{value:.6f}" for value in outcome.probabilities_C)
            rows.writerow([outcome.path, outcome.frame, outcome.predicted, *shares])
    return problems
