"""Commands on models: predict with one, write one whole, embed a study's prompts."""

import io
import sys
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, TextIO

import typer

from client.cli.options import MODELS
from common import log
from common.console.command_line import command
from common.errors import ConfigError

if TYPE_CHECKING:
    from client.classification import Unreadable


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-site`."""
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
    command(
        app,
        "export",
        MODELS,
        examples=[
            "consilium-site export runs/demo --format onnx --out skin.onnx",
            "consilium-site export runs/demo --format torchscript --out skin.pt --check images/",
        ],
    )(_export)
    command(app, "merge", MODELS, examples=["consilium-site merge runs/demo --out whole.safetensors"])(_merge)
    command(
        app,
        "embed-prompts",
        MODELS,
        examples=["consilium-site embed-prompts study.yaml --weights weights --out study-whole.yaml"],
    )(_embed_prompts)
    command(
        app,
        "fetch-weights",
        MODELS,
        examples=[
            "consilium-site fetch-weights convnext_t --out weights",
            "consilium-site fetch-weights ViT-B-32 --library open_clip --tag laion2b_s34b_b79k --out weights",
            "consilium-site fetch-weights OWNER/NAME --library hugging_face --out weights",
        ],
    )(_fetch_weights)
    command(
        app,
        "import-weights",
        MODELS,
        examples=[
            "consilium-site import-weights swin_t.pth --encoder swin_t --out weights/swin_t.safetensors"
        ],
    )(_import_weights)


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
    adapt_to: Annotated[
        Path | None,
        typer.Option(
            "--adapt-to",
            metavar="DIR",
            help="Images of the source that is predicted, without labels: batch normalisation takes its statistics "
            "from them. For a source that training has not seen.",
        ),
    ] = None,
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


def _export(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    wanted: Annotated[
        Literal["onnx", "torchscript", "safetensors"],
        typer.Option("--format", help="safetensors: weights alone, under the encoder's own names."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="FILE", help="Where to write the model.")],
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="NAME",
            help="A federated head, or softmax. Without it: the study's `final_head`.",
        ),
    ] = None,
    check: Annotated[
        list[Path] | None,
        typer.Option(
            "--check",
            metavar="IMAGE",
            help="Images, or folders, on which the file is compared with torch, too.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="DIR", help="Folder with the file that the study started from."),
    ] = None,
) -> int:
    """Write a finished run as one file for other programs: preprocessing, network, head and names of the classes.

    The file reads squares of uint8 and gives probabilities. It is kept only if they are torch's to 1e-4, on generated
    squares and on the images of --check.
    """
    import torch

    from client import predict
    from client.predict.export import export

    classifier = predict.load(run_dir, head, weights, torch.device("cpu"))
    squares = predict.squares(classifier, check or [])
    if check and not squares:
        raise ConfigError("--check: found no image that can be read, expected at least one")
    log.event(export(classifier, out, wanted, squares=squares, weights_dir=weights).describe())
    if classifier.outliers is not None and wanted != "onnx":
        log.event(f"the {wanted} file has no outlier score; --format onnx has it")
    return 0


def _merge(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="Where to write the model.")],
    head: Annotated[
        str | None,
        typer.Option(
            "--head",
            metavar="NAME",
            help="A federated head that is linear, or softmax. Without it: the study's `final_head`.",
        ),
    ] = None,
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="DIR", help="Folder with the file that the study started from."),
    ] = None,
) -> int:
    """Write a finished run's whole model, with LoRA's products merged into its layers.

    The file has the encoder's own layers and names, for use outside of Consilium. Its classifier is the head that the
    study ends with.
    """
    from client.predict.merge import merge_run

    num_tensors, title = merge_run(run_dir, out, weights, head)
    log.event(f"wrote {num_tensors} tensors to {out}; the classifier is {title}")
    return 0


def _embed_prompts(
    study: Annotated[
        Path, typer.Argument(metavar="STUDY.yaml", help="A study, or a grid, with `model.kind: clip`.")
    ],
    out: Annotated[Path, typer.Option("--out", metavar="NEW.yaml", help="Where to write the new study.")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="DIR", help="Folder with the text tower that the study names."),
    ] = None,
) -> int:
    """Embed a study's prompts with its text tower, and write the vectors into the study.

    For studies with `model.kind: clip`. The new file has one vector per class, so no site needs the text tower.
    """
    from client.model.embed_prompts import embed_file

    for embedded in embed_file(study, out, weights):
        print(embedded.describe())
    log.event(f"wrote {out}")
    return 0


def _fetch_weights(
    encoder: Annotated[
        str,
        typer.Argument(metavar="ENCODER", help="An encoder of the paper or of timm, or as --library says."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Folder to write to.")],
    library: Annotated[
        Literal["timm", "open_clip", "hugging_face"],
        typer.Option(
            "--library", help="open_clip: a whole CLIP. hugging_face: a text tower, OWNER/NAME on the hub."
        ),
    ] = "timm",
    tag: Annotated[
        str | None,
        typer.Option("--tag", metavar="TAG", help="Which published weights; open_clip needs it."),
    ] = None,
) -> int:
    """Fetch weights from Hugging Face's hub, for a folder that hospitals get.

    Needs the internet; no other command does. Writes the file as the hub has it, compared with the hub's hash, and
    NAME.origin.json with licence, origin and commit beside it. Prints what a study writes to start from it.
    """
    from client.model.fetch import fetch

    print(fetch(encoder, out, library=library, tag=tag).describe())
    return 0


def _import_weights(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="Weights of torchvision, timm or open_clip.")],
    encoder: Annotated[
        str,
        typer.Option("--encoder", metavar="ENCODER", help="The encoder that they are of."),
    ],
    out: Annotated[Path, typer.Option("--out", metavar="NEW.safetensors", help="Where to write them.")],
) -> int:
    """Convert a weights file of another library into safetensors that a study can start from.

    Files of pickles are read without running what is in them. torchvision's tensors get timm's names, if timm's network
    then gives what torchvision's gives. Prints what a study writes to start from it.
    """
    from client.model.imported import convert

    print(convert(file, encoder, out).describe())
    return 0
