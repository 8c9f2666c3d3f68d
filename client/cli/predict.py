"""The command that predicts with a model: classes, sets and outlier scores as CSV, and heat maps."""

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from client.cli.options import MODELS, AdaptTo
from common import log
from common.console.command_line import command
from common.errors import ConfigError

if TYPE_CHECKING:
    from client.classification import Unreadable


def add_commands(app: typer.Typer) -> None:
    """Add the command of this file to `consilium-site`."""
    command(
        app,
        "predict",
        MODELS,
        examples=[
            "consilium-site predict --study runs/demo images/ --out classes.csv",
            "consilium-site predict --study runs/demo --head federated.lda scan.dcm",
            "consilium-site predict --onnx skin.onnx images/",
            "consilium-site predict --study runs/demo --coverage 0.9 images/ --out classes.csv",
            "consilium-site predict --study runs/demo --explain heat/ images/ --out classes.csv",
        ],
    )(_predict)


def _predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Files, folders or DICOM.", show_default=False)
    ],
    study: Annotated[
        Path | None,
        typer.Option(
            "--study",
            metavar="DIR",
            help="A run's folder, or this site's own folder of a study under state_dir.",
        ),
    ] = None,
    onnx: Annotated[
        Path | None,
        typer.Option(
            "--onnx",
            metavar="FILE",
            help="In place of --study: a file that `export --format onnx` wrote. It needs no torch.",
        ),
    ] = None,
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="NAME",
            help="A head under DIR/heads, for example federated.lda or local.svm_rbf. `softmax` is the network's "
            "own. Without it: the study's `final_head`.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option(
            "--weights", metavar="DIR", help="Folder with the weights file that the study started from."
        ),
    ] = None,
    out: Annotated[
        Path | None, typer.Option("--out", metavar="FILE.csv", help="Write here instead of to the terminal.")
    ] = None,
    device: Annotated[str, typer.Option("--device", metavar="DEVICE", help="auto, cpu or cuda.")] = "auto",
    adapt_to: AdaptTo = None,
    views: Annotated[
        int,
        typer.Option(
            "--views",
            metavar="N",
            help="2, 4 or 8: the mean over an image and its mirror image, both upside down, all turned by a quarter.",
        ),
    ] = 1,
    explain: Annotated[
        Path | None,
        typer.Option(
            "--explain",
            metavar="DIR",
            help="Also write heat maps to this folder: a PNG per line of the CSV, and index.html to look through.",
        ),
    ] = None,
    coverage: Annotated[
        float | None,
        typer.Option(
            "--coverage",
            metavar="SHARE",
            help="Also write a set of classes per image, which holds the true one with this chance, such as 0.9, for "
            "images like the study's validation images. For a study with `calibration`.",
        ),
    ] = None,
    site: Annotated[
        str | None,
        typer.Option(
            "--site", metavar="NAME", help="--coverage by the validation images of this training site alone."
        ),
    ] = None,
    temperature: Annotated[
        bool,
        typer.Option(
            "--temperature/--no-temperature",
            help="Probabilities with the temperature of a study with `calibration`, or as the network gives them.",
        ),
    ] = True,
) -> int:
    """Predict class probabilities for images with a finished study.

    Writes CSV: file, frame, the likeliest class, a probability per class, and with --coverage a set of classes. A study
    with `out_of_distribution` adds an outlier score, and whether the image is unlike the training images. Files that
    are not images are listed and skipped; the exit code is 1 then. Hidden files and those of the operating system are
    listed, too. For research; not a medical device.
    """
    from common.files import write_atomically

    write_csv, about = _writer(
        study, onnx, head, weights, device, adapt_to, views,
        temperature=temperature, coverage=coverage, site=site,
    )  # fmt: skip
    for sentence in about:
        log.event(sentence)
    if explain is not None:
        _write_heat_maps(
            images, study, head, weights, device, explain, plain=adapt_to is None and views == 1,
            temperature=temperature, coverage=coverage, site=site,
        )  # fmt: skip
    if out is None:
        if sys.stdout is None:
            raise ConfigError("standard output is closed; name a file with --out FILE.csv")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file name of any encoding comes out as the bytes that it has.
            sys.stdout.reconfigure(errors="surrogateescape")
        problems = write_csv(images, sys.stdout)
    else:
        text = io.StringIO()
        problems = write_csv(images, text)
        write_atomically(out, text.getvalue().encode(errors="surrogateescape"))
    for problem in problems:
        print(f"left out: {problem.path} {problem.reason}", file=sys.stderr)
    return 1 if any(not problem.is_usual for problem in problems) else 0


def _writer(
    study: Path | None,
    onnx: Path | None,
    head: str | None,
    weights: Path | None,
    device: str,
    adapt_to: Path | None,
    views: int,
    *,
    temperature: bool,
    coverage: float | None,
    site: str | None,
) -> "tuple[Callable[[Iterable[Path], TextIO], list[Unreadable]], Sequence[str]]":
    """What writes a line of CSV for each image, and sentences on what the numbers are.

    Raises ConfigError if options contradict each other.
    """
    if (study is None) == (onnx is None):
        raise ConfigError("predict: found both or neither of --study and --onnx, expected one of them")
    if onnx is not None:
        options = {"--head": head, "--weights": weights, "--adapt-to": adapt_to}
        given = [name for name, value in options.items() if value is not None] + ["--views"] * (views != 1)
        if given:
            raise ConfigError(
                f"predict --onnx: {given[0]} has no meaning here; the file has all that it predicts with"
            )
        from client import classification
        from client.classification.exported import load_onnx

        classifier = load_onnx(onnx)
        calibrated = classifier.calibrated(temperature=temperature, coverage=coverage, site=site)
        record = classifier.outliers
        about = calibrated.about if record is None else (*calibrated.about, record.describe())
        return partial(classification.write, classifier, calibrated=calibrated), about
    from consilium_fl.prediction import load_predictor

    assert study is not None
    adapt = () if adapt_to is None else (adapt_to,)
    predictor = load_predictor(
        study, head, weights_dir=weights, device=device, adapt_to=adapt, views=views,
        temperature=temperature, coverage=coverage, site=site,
    )  # fmt: skip
    return predictor.write_csv, predictor.about


def _write_heat_maps(
    images: list[Path],
    study: Path | None,
    head: str | None,
    weights: Path | None,
    device: str,
    folder: Path,
    *,
    plain: bool,
    temperature: bool,
    coverage: float | None,
    site: str | None,
) -> None:
    """Write heat maps of the images. Raises ConfigError if they would not be of what is predicted."""
    if study is None or not plain:
        raise ConfigError(
            "predict --explain: found --onnx, --adapt-to or --views, expected --study without them"
        )
    from client import predict
    from client.predict.sheet import SHEET, write_heat_maps
    from client.training.hardware.device import choose_device

    classifier = predict.load(study, head, weights, choose_device(device))
    calibrated = classifier.calibrated(temperature=temperature, coverage=coverage, site=site)
    number = write_heat_maps(classifier, images, folder, calibrated)
    log.event(f"wrote heat maps of {number} images to {folder}; look at {folder / SHEET}")
