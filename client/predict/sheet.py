"""Heat maps in a folder: one PNG per image, and a contact sheet to look through.

Everything stays at the site. A picture's number is its line in the CSV of `predict`, so its name says nothing of a
patient.
"""

import base64
import hashlib
import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import compress, islice
from pathlib import Path

import numpy as np
import numpy.typing as npt
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from PIL import Image

from client.classification import Unreadable, decoded
from client.classification.calibrated import PLAIN, Calibrated
from client.data.decoding import decode
from client.predict.explain import Explainer, Heat, explainer
from client.predict.image_classifier import ImageClassifier
from common.files import make_private, write_atomically
from common.text import one_line

SHEET = "index.html"
_BATCH, _MOST_SHOWN, _THUMB = 16, 600, 160
"""Images at once; pictures in the sheet; pixels a side of one there."""
_OPAQUE = 0.6
"""How much of the image the hottest place hides."""
_STYLE = """
:root { color-scheme: light dark; }
body { font: 15px/1.5 system-ui, sans-serif; margin: 0; } main { max-width: 1180px; margin: 0 auto; padding: 20px; }
.sheet { display: flex; flex-wrap: wrap; gap: 16px; list-style: none; padding: 0; }
figure { margin: 0; width: 324px; } img { width: 160px; height: 160px; margin-right: 2px; }
figcaption { font-size: 13px; overflow-wrap: anywhere; }
"""

_TEMPLATES = Environment(
    loader=PackageLoader("client.predict"), autoescape=True, undefined=StrictUndefined, trim_blocks=True
)


@dataclass(frozen=True)
class _Picture:
    number: int
    name: str
    frame: int
    predicted: str
    share: str
    """Probability in percent, calibrated as in the CSV."""
    classes: tuple[str, ...] | None
    """The set of classes; None: no sets were asked for."""
    image: str
    heat: str
    """Data URLs."""
    is_empty: bool
    outlier_score: str
    """Empty: the classifier gives none."""
    is_unlike: bool
    """Unlike the training images."""


def write_heat_maps(
    classifier: ImageClassifier, images: Iterable[Path], folder: Path, calibrated: Calibrated = PLAIN
) -> int:
    """Write a picture per image and the sheet into `folder`, for its owner alone; returns the number of pictures.

    `calibrated` is how probabilities are shown, and whether sets of classes stand beside them.

    Files that cannot be read are skipped; `predict` names them. Raises ConfigError if the classifier has no place
    to read heat maps from, StorageError.
    """
    explained = explainer(classifier)
    make_private(folder)
    shown: list[_Picture] = []
    number = 0
    for picture, content in _pictures(explained, images, calibrated):
        number += 1
        write_atomically(folder / f"{number:05d}.png", content, private=True)
        if number <= _MOST_SHOWN:
            shown.append(picture)
    write_atomically(
        folder / SHEET, _sheet(classifier, shown, number - len(shown), calibrated).encode(), private=True
    )
    return number


def _pictures(
    explained: Explainer, images: Iterable[Path], calibrated: Calibrated
) -> Iterator[tuple[_Picture, bytes]]:
    classifier = explained.classifier
    found = (one for one in decoded(classifier.preprocessing, images) if not isinstance(one, Unreadable))
    number = 0
    while batch := list(islice(found, _BATCH)):
        squares = [square for _, _, square in batch]
        judged = classifier.judge(squares)
        own_NC, scores_N = judged.probabilities_NC, judged.outlier_scores_N
        probabilities_NC, inside_NC = calibrated.shown(own_NC), calibrated.sets(own_NC)
        predicted_N = probabilities_NC.argmax(axis=1).tolist()
        heats = explained.heat(squares, predicted_N)
        for row, ((path, frame, square), place, heat) in enumerate(
            zip(batch, predicted_N, heats, strict=True)
        ):
            number += 1
            score, record = None if scores_N is None else float(scores_N[row]), classifier.outliers
            seen = _middle(square, classifier.preprocessing.image_size)
            warm = overlay(seen, heat)
            picture = _Picture(
                number,
                one_line("" if path is None else path.name),
                frame,
                classifier.classes[place],
                f"{100 * probabilities_NC[row, place]:.1f}",
                None if inside_NC is None else tuple(compress(classifier.classes, inside_NC[row])),
                _url(seen),
                _url(warm),
                is_empty=not heat.any(),
                outlier_score="" if score is None else f"{score:.2f}",
                is_unlike=score is not None and record is not None and record.is_unlike(score) is True,
            )
            yield picture, _png(np.concatenate([seen, warm], axis=1))


def overlay(square: decode.Pixels, heat: Heat) -> npt.NDArray[np.uint8]:
    """The image with yellow to red over it, the more the hotter; where heat is 0 it is as it was."""
    colour = np.stack([np.full_like(heat, 255.0), 215 * (1 - heat), np.zeros_like(heat)], axis=-1)
    share = (_OPAQUE * heat)[..., None]
    mixed: npt.NDArray[np.uint8] = (square * (1 - share) + colour * share).round().astype(np.uint8)
    return mixed


def _middle(square: decode.Pixels, size: int) -> decode.Pixels:
    start = (square.shape[0] - size) // 2
    return square[start : start + size, start : start + size]


def _png(pixels: npt.NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def _url(pixels: npt.NDArray[np.uint8]) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).resize((_THUMB, _THUMB)).save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _sheet(
    classifier: ImageClassifier, pictures: list[_Picture], num_more: int, calibrated: Calibrated
) -> str:
    return _TEMPLATES.get_template("sheet.html.jinja").render(
        study=classifier.study.name,
        encoder=classifier.study.model.encoder,
        head=classifier.head_title,
        pictures=pictures,
        num_more=num_more,
        about=(*calibrated.about, *filter(None, [classifier.about_outliers])),
        style=Markup(_STYLE),
        style_sha256=base64.b64encode(hashlib.sha256(_STYLE.encode()).digest()).decode(),
    )
