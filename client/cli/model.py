"""Commands on models: predict with one, write one whole, embed a study's prompts."""

import io
import sys
from pathlib import Path
from typing import Annotated

import typer

from client.cli.options import MODELS
from common import log
from common.console.command_line import command
from common.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-site`."""
    command(
        app,
        "predict",
        MODELS,
        examples=[
            "consilium-site predict --study runs/demo images/ --out classes.csv",
            "consilium-site predict --study runs/demo --head federated.lda scan.dcm",
        ],
    )(_predict)
    command(app, "merge", MODELS, examples=["consilium-site merge runs/demo --out whole.safetensors"])(_merge)
    command(
        app,
        "embed-prompts",
        MODELS,
        examples=["consilium-site embed-prompts study.yaml --weights weights --out study-whole.yaml"],
    )(_embed_prompts)


def _predict(
    images: Annotated[
        list[Path], typer.Argument(metavar="IMAGE...", help="Files, folders or DICOM.", show_default=False)
    ],
    study: Annotated[
        Path,
        typer.Option(
            "--study",
            metavar="DIR",
            help="A run's folder, or this site's own folder of a study under state_dir.",
        ),
    ],
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
) -> int:
    """Predict class probabilities for images with a finished study.

    Writes CSV: file, frame, the likeliest class, a probability per class. Files that are not images are listed and
    skipped; the exit code is 1 then. Hidden files and those of the operating system are listed, too. For research;
    not a medical device.
    """
    from common.files import write_atomically
    from consilium_fl.prediction import load_predictor

    predictor = load_predictor(
        study,
        head,
        weights_dir=weights,
        device=device,
        adapt_to=() if adapt_to is None else (adapt_to,),
        views=views,
    )
    if out is None:
        if sys.stdout is None:
            raise ConfigError("standard output is closed; name a file with --out FILE.csv")
        if isinstance(sys.stdout, io.TextIOWrapper):
            # A file name of any encoding comes out as the bytes that it has.
            sys.stdout.reconfigure(errors="surrogateescape")
        problems = predictor.write_csv(images, sys.stdout)
    else:
        text = io.StringIO()
        problems = predictor.write_csv(images, text)
        write_atomically(out, text.getvalue().encode(errors="surrogateescape"))
    for problem in problems:
        print(f"left out: {problem.path} {problem.reason}", file=sys.stderr)
    return 1 if any(not problem.is_usual for problem in problems) else 0


def _merge(
    run_dir: Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")],
    out: Annotated[Path, typer.Option("--out", metavar="FILE.safetensors", help="Where to write the model.")],
    weights: Annotated[
        Path | None,
        typer.Option("--weights", metavar="DIR", help="Folder with the file that the study started from."),
    ] = None,
) -> int:
    """Write a finished run's whole model, with LoRA's products merged into its layers.

    The file has the encoder's own layers and names, for use outside of Consilium.
    """
    from client.model.merge import merge_run

    log.event(f"wrote {merge_run(run_dir, out, weights)} tensors to {out}")
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
