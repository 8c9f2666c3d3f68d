"""Commands on models: write one whole or for another program, embed a study's prompts, weights to start from."""

from pathlib import Path
from typing import Annotated, Literal

import typer

from client.cli.options import MODELS, AdaptTo
from common import log
from common.console.command_line import command
from common.errors import ConfigError


def add_commands(app: typer.Typer) -> None:
    """Add the commands of this file to `consilium-site`."""
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
    command(
        app,
        "check-encoders",
        MODELS,
        examples=[
            "consilium-site check-encoders convnext_t swin_t:192",
            "consilium-site check-encoders ViT-B-32:224 --library open_clip",
        ],
    )(_check_encoders)


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
    adapt_to: AdaptTo = None,
) -> int:
    """Write a finished run as one file for other programs: preprocessing, network, head and names of the classes.

    The file reads squares of uint8 and gives probabilities. It is kept only if they are torch's to 1e-4, on generated
    squares and on the images of --check.
    """
    import torch

    from client import predict
    from client.predict.export import export

    classifier = predict.load(run_dir, head, weights, torch.device("cpu"), adapt_to=_paths(adapt_to))
    squares = predict.squares(classifier, check or [])
    if check and not squares:
        raise ConfigError("--check: found no image that can be read, expected at least one")
    log.event(export(classifier, out, wanted, squares=squares, weights_dir=weights).describe())
    if classifier.outliers is not None and wanted != "onnx":
        log.event(f"the {wanted} file has no outlier score; --format onnx has it")
    return 0


def _paths(folder: Path | None) -> tuple[Path, ...]:
    return () if folder is None else (folder,)


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
    adapt_to: AdaptTo = None,
) -> int:
    """Write a finished run's whole model, with LoRA's products merged into its layers.

    The file has the encoder's own layers and names, for use outside of Consilium. Its classifier is the head that the
    study ends with.
    """
    from client.predict.merge import merge_run

    num_tensors, title = merge_run(run_dir, out, weights, head, _paths(adapt_to))
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


def _check_encoders(
    encoders: Annotated[
        list[str],
        typer.Argument(
            metavar="ENCODER[:PIXELS]...", help="Encoders, each with an image size if it is not its own."
        ),
    ],
    library: Annotated[
        Literal["timm", "open_clip"], typer.Option("--library", help="Whose encoders they are.")
    ] = "timm",
) -> int:
    """Check that encoders exist and can take images of a size.

    Builds each on shapes alone, without weights, and lists all that cannot be built. `compare` and `paper` do so before
    their first run.
    """
    from client.model import possible

    possible.require(encoders, library)
    log.event(f"{library} builds {', '.join(encoders)}")
    return 0
