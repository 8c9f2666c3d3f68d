"""Settings of the model: encoder, first weights, what is tuned, classifier or CLIP."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias

from pydantic import AfterValidator, BeforeValidator, Field, StringConstraints, model_validator

from common.config import prompts
from common.config.types import Decay, LibraryName, Line, Name, Positive
from common.settings import Frozen


class SeedWeights(Frozen):
    """Start from random weights, the same at every site."""

    kind: Literal["seed"] = "seed"


class FileWeights(Frozen):
    """Start from a safetensors file with timm's key names that every site holds."""

    kind: Literal["file"] = "file"
    name: Name
    """File name inside each site's `weights_dir`."""
    sha256: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Checksum of the file; a site with another file refuses."""


class HubWeights(Frozen):
    """Start from timm's or open_clip's hub weights; each site needs the internet or a filled cache."""

    kind: Literal["hub"] = "hub"
    tag: LibraryName | None = None
    """Which published weights. open_clip needs it (`laion2b_s34b_b79k`); timm takes it within the encoder's name."""


StartWeights: TypeAlias = Annotated[SeedWeights | FileWeights | HubWeights, Field(discriminator="kind")]


class LastBlocks(Frozen):
    """Train the head and the last `last_blocks` groups of layers, as timm groups them."""

    last_blocks: Annotated[int, Field(ge=1)]
    """Groups of layers that are trained, counted from the head."""


class LinearProbe(Frozen):
    """Train the head only, on the features of a frozen encoder."""

    kind: Literal["linear_probe"] = "linear_probe"


class BitFit(Frozen):
    """Train the head and every bias (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    kind: Literal["bitfit"] = "bitfit"


class Lora(Frozen):
    """Train the head and a low-rank product beside chosen layers (Hu et al. 2022, arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=512)] = 8
    """Inner dimension of the product: more can be learned, and more is sent."""
    alpha: Positive = 16
    """Scale of the product: it is added alpha / rank times."""
    dropout: Decay = 0.0
    """Share of the product's inputs that are set to 0 at random in training."""
    layers: Literal["attention", "linear", "all"] = "linear"
    """`attention`: the linear layers of attention. `linear`: every linear layer below the head. `all`:
    convolutions as well, but for grouped ones."""


class Bottleneck(Frozen):
    """Train the head and a small network before it, mixed with what it reads (CLIP-Adapter, Gao et al. 2021,
    arXiv:2110.04544, eq. 4): ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f.
    """

    kind: Literal["adapter"] = "adapter"
    reduction: Annotated[int, Field(ge=1)] = 4
    """How many times narrower the middle of the network is than the features."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.2
    """Share of the small network in the mix; the rest is the unchanged features."""


Tuning: TypeAlias = Annotated[LinearProbe | BitFit | Lora | Bottleneck, Field(discriminator="kind")]


class ImageSide(Frozen):
    """Settings of every kind of model: an image encoder, and which of its weights are trained."""

    encoder: LibraryName
    """A name of the paper (`convnext_t`, `swin_v2_b`, ...) or any timm name."""
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = None
    """Width and height of the model's input. None: the size the encoder was made for."""
    weights: StartWeights = SeedWeights()
    """Weights that training starts from."""
    head_start: Literal["small", "zeros", "library"] = "small"
    """Weights that a new classifier starts from: `small` normal ones of standard deviation 0.01, all `zeros`, or those
    of the `library`. timm starts some families with weights 14 times as large, and the first gradients then damage a
    pretrained encoder. A classifier that a file of weights brings along stays as it is."""
    trainable: Literal["all", "head"] | LastBlocks = "all"
    """Which weights are trained and sent: all, the head only, or the head and the last groups of layers."""
    batch_norm: Literal["aggregate", "local", "local_statistics", "frozen"] = "aggregate"
    """`local` keeps normalisation layers at each site (FedBN, Li et al. 2021, arXiv:2102.07623). `local_statistics`
    keeps their running means and variances there; scale and shift are one for all sites (SiloBN, Andreux et al. 2020,
    arXiv:2008.07424). A site that did not train then measures its own (`predict --adapt-to`). `frozen` computes
    with the running means and variances of the first weights, and never changes or sends them; scale and shift are
    trained. It suits pretrained weights. Networks with batch normalisation can so be trained whole under `privacy`."""
    tuning: Tuning | None = None
    """Train and send a small part of the encoder, in place of `trainable`. Running means and variances of batch
    normalisation then stay as received."""

    @model_validator(mode="after")
    def _one_says_what_is_trained(self) -> Self:
        if self.tuning is not None and self.trainable != "all":
            raise ValueError(
                f"tuning.kind={self.tuning.kind} and trainable both say what is trained; remove trainable"
            )
        return self


class ClassifierConfig(ImageSide):
    """One image classifier: a timm encoder with a linear head."""

    kind: Literal["classifier"] = "classifier"


def _has_a_place(template: str) -> str:
    if prompts.PLACE not in template:
        raise ValueError(
            f"found {template!r} without {prompts.PLACE}, so every class would read the same; "
            "write it where the class's name belongs"
        )
    return template


Template = Annotated[Line, AfterValidator(_has_a_place)]


class TextSide(Frozen):
    """Settings of every text tower."""

    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = ("a picture of a {class}",)
    """Prompts, with `{class}` where the class's name belongs. The vectors of several prompts are normalised and
    averaged, as in CLIP."""
    trainable: bool = False
    """False: classes are embedded once, with `consilium-site embed-prompts`, and no site needs the tower.
    True: every site builds the tower, trains it and sends it like any other weights."""


class OpenClipText(TextSide):
    """The text tower of a CLIP that open_clip knows; with `weights.kind: seed` it is a random one."""

    kind: Literal["open_clip"] = "open_clip"
    architecture: LibraryName
    """A name of open_clip's: `RN50`, `ViT-B-32`, `ViT-B-16`, ..."""
    weights: StartWeights
    """A file holds the whole CLIP, as open_clip saves it."""


class HuggingFaceText(TextSide):
    """A Hugging Face text model, read through open_clip."""

    kind: Literal["hugging_face"] = "hugging_face"
    weights: Annotated[FileWeights | HubWeights, Field(discriminator="kind")]
    """`file`: `name` is a folder in `weights_dir` with config.json, the tokenizer's files and model.safetensors,
    whose checksum `sha256` is. `hub`: `tag` is the model's name there."""
    pooling: Literal["mean", "max", "cls"] = "mean"
    """How the tokens' vectors become one vector per prompt: their mean, their maximum, or the first
    token's."""
    context_length: Annotated[int, Field(ge=8, le=512)] = 77
    """Tokens that are read of a prompt; the rest is cut off."""

    @model_validator(mode="after")
    def _hub_has_a_name(self) -> Self:
        if isinstance(self.weights, HubWeights) and self.weights.tag is None:
            raise ValueError("weights.kind=hub needs weights.tag, the name of the model on the hub")
        return self


class RandomText(Frozen):
    """No text tower: a random direction per class, from the study's seed. A baseline for comparison."""

    kind: Literal["random"] = "random"
    width: Annotated[int, Field(ge=2, le=4096)] = 512
    """Length of a class's vector."""


Text: TypeAlias = Annotated[OpenClipText | HuggingFaceText | RandomText, Field(discriminator="kind")]


class ClassVectors(Frozen):
    """A text tower's vectors of the study's classes; written by `consilium-site embed-prompts`."""

    asked: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the tower and the prompts."""
    float32: str
    """Base64 of classes x width numbers. Every class's vector has length 1."""


class ClipConfig(ImageSide):
    """CLIP with another image encoder: images and classes meet in the text tower's space (Radford et al. 2021,
    arXiv:2103.00020), and an image is of the class whose vector it is closest to.
    """

    kind: Literal["clip"] = "clip"
    library: Literal["timm", "open_clip"] = "timm"
    """`timm`: `encoder` with a learned linear projection to the text's width. `open_clip`: CLIP's own image
    tower of that name (`RN50`, `ViT-B-32`, ...) with its own projection and preprocessing."""
    text: Text
    """The text tower whose space images and classes share."""
    vectors: ClassVectors | None = None
    """The classes' vectors, from a text tower that is not trained. `consilium-site embed-prompts` writes them."""
    loss: Literal["class", "contrastive", "supervised_contrastive"] = "class"
    """`class`: cross-entropy over the cosines with every class. `contrastive`: each image with its own text
    among those of the batch, as in the paper's code; images of one class are each other's negatives.
    `supervised_contrastive`: those are positives (SINCERE, Feeney and Hughes 2023, arXiv:2309.14277)."""
    temperature: Annotated[float, Field(ge=0.01, le=1)] = 0.07
    """Start value of the learned temperature, which never falls below 0.01."""

    @model_validator(mode="after")
    def _vectors_are_of_a_frozen_tower(self) -> Self:
        if self.vectors is not None and (isinstance(self.text, RandomText) or self.text.trainable):
            raise ValueError("vectors are for a text tower that is not trained; remove vectors")
        return self

    @model_validator(mode="after")
    def _hub_weights_have_a_tag(self) -> Self:
        needs = [
            name
            for name, weights in (
                ("weights", self.weights if self.library == "open_clip" else None),
                ("text.weights", self.text.weights if isinstance(self.text, OpenClipText) else None),
            )
            if isinstance(weights, HubWeights) and weights.tag is None
        ]
        if needs:
            raise ValueError(f"{' and '.join(needs)}: open_clip has several of each; add `tag`")
        return self


def _classifier_unless_said(model: Any) -> Any:
    return {"kind": "classifier", **model} if isinstance(model, Mapping) and "kind" not in model else model


ModelConfig: TypeAlias = Annotated[
    ClassifierConfig | ClipConfig, Field(discriminator="kind"), BeforeValidator(_classifier_unless_said)
]
