"""Export of a finished run as one file that other programs run: ONNX, TorchScript or safetensors.

A file takes its name only after it gave the same probabilities as torch, to 1e-4, on generated squares and on the
images that the caller named. So no file of that name has another model in it.
"""

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias, assert_never

import numpy as np
import torch
from torch import Tensor, nn

from client.classification.exported import (
    INPUT,
    KEY,
    OUTPUT,
    SCORES,
    Label,
    OnnxClassifier,
    Squares,
    load_onnx,
)
from client.data.decoding import decode
from client.model import build, tuning
from client.predict import fold
from client.predict.image_classifier import ImageClassifier
from client.predict.portable import Portable, PortableWithScores, portable
from common.config.heads import SOFTMAX
from common.errors import ConfigError, ConsiliumError, StorageError
from common.heads import FittedHead, Floats
from common.heads.view import under
from common.release import version
from common.weights import Array, load_file, save_file

Format: TypeAlias = Literal["onnx", "torchscript", "safetensors"]
Run: TypeAlias = Callable[[Sequence[decode.Pixels]], Floats]
"""Probabilities (N, C) of decoded squares, by what was written."""

LARGEST_DIFFERENCE = 1e-4
LARGEST_SHARE = 1e-3
"""Largest difference of an outlier score, as a share of it."""
_NUM_DRAWN = 5
_HEAD = "head_on_features"
"""Before the names of a federated head's arrays in a safetensors file."""


@dataclass(frozen=True)
class Exported:
    """What was written, and how well it was checked."""

    path: Path
    label: Label
    num_checked: int
    """Images on which it was compared with torch; `_NUM_DRAWN` of them are generated."""
    difference: float
    """Largest difference of a probability."""

    def describe(self) -> str:
        """For the terminal."""
        return (
            f"wrote {self.path}: {self.label.encoder} with {self.label.head} for {len(self.label.classes)} classes; "
            f"its probabilities differ from torch's by at most {self.difference:.1e} on {self.num_checked} images"
        )


def export(
    classifier: ImageClassifier,
    out: Path,
    wanted: Format,
    *,
    squares: Sequence[decode.Pixels] = (),
    weights_dir: Path | None = None,
) -> Exported:
    """Write `out`, and compare it with torch on generated squares and on `squares`.

    Raises ConfigError if a library is missing or the head cannot be exported, ConsiliumError if the file computes
    something else, StorageError. `out` is then as it was before.
    """
    whole, label = portable(classifier), label_of(classifier)
    size = classifier.preprocessing.stored_size
    draws = np.random.default_rng(0)
    shown = [*draws.integers(0, 256, (_NUM_DRAWN, size, size, 3), np.uint8), *squares]
    expected_NC = _run(whole, shown)
    _folder_of(out)
    with TemporaryDirectory(dir=out.parent, prefix=".export-") as folder:
        path = Path(folder) / out.name
        match wanted:
            case "onnx":
                label = label.model_copy(update={"out_of_distribution": classifier.outliers})
                run = _to_onnx(whole, classifier, label, path, shown)
            case "torchscript":
                run = _to_torchscript(whole, label, path)
            case "safetensors":
                run = _to_safetensors(classifier, whole, label, path, weights_dir)
            case _:
                assert_never(wanted)
        difference = float(np.abs(_in_batches(run, shown) - expected_NC).max())
        if not difference <= LARGEST_DIFFERENCE:
            raise ConsiliumError(
                f"the {wanted} file gives probabilities that differ from torch's by {difference:.2g}, expected at most "
                f"{LARGEST_DIFFERENCE:g}; it was not kept. Try another format, and report this with the encoder's name."
            )
        path.replace(out)
    return Exported(out, label, len(shown), difference)


def label_of(classifier: ImageClassifier) -> Label:
    """What the file says of itself."""
    study, images = classifier.study, classifier.preprocessing
    network = getattr(classifier.model, "image", classifier.model)
    made = classifier.calibration
    is_calibrated = (
        made is not None
        and made.weights_sha256 == classifier.weights_sha256
        and classifier.head_title == SOFTMAX
    )
    license_ = (getattr(network, "pretrained_cfg", None) or {}).get("license") or ""
    return Label(
        study=study.name,
        fingerprint=study.fingerprint,
        classes=classifier.classes,
        encoder=study.model.encoder,
        head=classifier.head_title,
        preprocessing=Squares(
            stored_size=images.stored_size,
            interpolation=images.interpolation,
            image_size=images.image_size,
            mean=images.mean,
            std=images.std,
        ),
        weights_sha256=classifier.weights_sha256,
        calibration=classifier.calibration if is_calibrated else None,
        encoder_license=str(license_) if study.model.weights.kind != "seed" else "",
        program=f"consilium-fl {version()}",
    )


def _to_onnx(
    whole: Portable, classifier: ImageClassifier, label: Label, path: Path, shown: Sequence[decode.Pixels]
) -> Run:
    """The graph's outlier scores, if it has some, are compared with the classifier's on the squares `shown`."""
    try:
        import onnx
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"--format onnx needs {error.name}, which is not installed; install consilium-fl with the extra `onnx`"
        ) from error
    batch = torch.export.Dim("n", min=1, max=4096)
    detector = classifier.detector
    module = whole if detector is None else PortableWithScores(whole, detector).eval()
    try:
        with _quietly():
            program = torch.onnx.export(
                module,
                (_example(label),),
                dynamo=True,
                input_names=[INPUT],
                output_names=[OUTPUT] if detector is None else [OUTPUT, SCORES],
                dynamic_shapes=({0: batch},),
                verbose=False,
            )
    except (
        Exception
    ) as error:  # torch's exporter has a class for each of its steps, and pages of text in each
        raise _not_onnx(label, type(error).__name__) from error
    if program is None:
        raise _not_onnx(label, "no program")
    proto = program.model_proto
    onnx.helper.set_model_props(proto, {KEY: label.model_dump_json()})
    onnx.save(proto, path)
    written = load_onnx(path)
    if detector is not None:
        _compare_scores(written, module, shown)
    return written.probabilities


def _compare_scores(written: OnnxClassifier, module: nn.Module, shown: Sequence[decode.Pixels]) -> None:
    """Raise ConsiliumError unless the graph's outlier scores are torch's."""
    scores_N = _in_batches(lambda some: np.asarray(written.judge(some).outlier_scores_N), shown)
    with torch.no_grad():
        expected_N = _in_batches(lambda some: module(torch.from_numpy(np.stack(some)))[1].numpy(), shown)
    difference = float(np.abs(scores_N / np.maximum(expected_N, 1e-6) - 1).max())
    if not difference <= LARGEST_SHARE:
        raise ConsiliumError(
            f"the onnx file gives outlier scores that differ from torch's by {difference:.2g} of them, expected at "
            f"most {LARGEST_SHARE:g}; it was not kept. Report this with the encoder's name."
        )


def _not_onnx(label: Label, why: str) -> ConsiliumError:
    return ConsiliumError(
        f"torch cannot write {label.encoder} as ONNX ({why}), so there is no file; use --format torchscript"
    )


def _to_torchscript(whole: Portable, label: Label, path: Path) -> Run:
    with _quietly():
        traced = torch.jit.trace(whole, (_example(label),))  # type: ignore[no-untyped-call]
        traced.save(str(path), _extra_files={f"{KEY}.json": label.model_dump_json()})
        again = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
    return lambda squares: _run(again, squares)


def _to_safetensors(
    classifier: ImageClassifier, whole: Portable, label: Label, path: Path, weights_dir: Path | None
) -> Run:
    """The encoder's own layers and names; read back into a second network.

    A head is the classifier of these layers. If it cannot be, its arrays stand beside them.
    """
    network, head, layer = deepcopy(whole.model), classifier.head, classifier.layer
    metadata, beside = {KEY: label.model_dump_json()}, dict[str, Array]()
    fresh = tuning.merged(build.of_study(classifier.study, weights_dir).model).to(whole.mean.dtype)
    if isinstance(head, FittedHead) and not fold.obstacle(network, head, layer):
        fold.put_into(network, head, layer)
        fold.put_into(fresh, head, layer)
    elif isinstance(head, FittedHead):
        beside = under(_HEAD, head.arrays())
        metadata["head"] = head.form.model_dump_json()
    save_file(path, {n: tensor.numpy() for n, tensor in network.state_dict().items()} | beside, metadata)
    arrays, _ = load_file(path)
    own = {
        name: torch.from_numpy(array) for name, array in arrays.items() if not name.startswith(f"{_HEAD}/")
    }
    fresh.load_state_dict(own)
    again = Portable(fresh.eval(), classifier.preprocessing, whole.head if beside else None, layer).eval()
    return lambda squares: _run(again, squares)


def _example(label: Label) -> Tensor:
    size = label.preprocessing.stored_size
    return torch.zeros((2, size, size, 3), dtype=torch.uint8)


def _run(module: Any, squares: Sequence[decode.Pixels]) -> Floats:
    def run(some: Sequence[decode.Pixels]) -> Floats:
        with torch.no_grad():
            rows: Floats = module(torch.from_numpy(np.stack(some))).numpy()
        return rows

    return _in_batches(run, squares)


def _in_batches(run: Run, squares: Sequence[decode.Pixels], size: int = 16) -> Floats:
    return np.concatenate([run(squares[at : at + size]) for at in range(0, len(squares), size)])


def _folder_of(out: Path) -> None:
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"{out.parent} cannot be made a folder: {error.strerror}") from error


@contextmanager
def _quietly() -> Iterator[None]:
    """Without what torch's exporters say of themselves, which is nothing that a reader could do anything about."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
