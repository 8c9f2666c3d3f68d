"""The study: what is trained, by whom, how long. Owned by the server and sent to the sites.

A study says nothing about where a hospital's images lie (`client/config/site.py`) or where the
server runs (`server/config.py`). That split is the privacy border: a site can read the whole
study before it agrees, and the server never sees a path.

Defaults of the optimizers are the settings of the paper's public script (arXiv:2505.23040).
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self, TypeAlias, assert_never

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from common.config import prompts
from common.config.heads import HeadsConfig
from common.errors import ConfigError
from common.settings import Frozen

Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$")]
"""A name that is safe as a file name: letters, digits, `_`, `.`, `-`."""
Share = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Decay = Annotated[float, Field(ge=0, lt=1)]


# --- the model -----------------------------------------------------------------------------


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
    tag: Annotated[str, StringConstraints(min_length=1)] | None = None
    """Which of several: open_clip needs it (`laion2b_s34b_b79k`), timm takes it within the encoder's name."""


StartWeights: TypeAlias = Annotated[SeedWeights | FileWeights | HubWeights, Field(discriminator="kind")]


class LastBlocks(Frozen):
    """Train the head and the last `last_blocks` groups of layers, as timm groups them."""

    last_blocks: Annotated[int, Field(ge=1)]


class LinearProbe(Frozen):
    """Train the head only, on the features of an encoder that nobody changes."""

    kind: Literal["linear_probe"] = "linear_probe"


class BitFit(Frozen):
    """Train the head and every bias (Ben Zaken et al. 2022, arXiv:2106.10199)."""

    kind: Literal["bitfit"] = "bitfit"


class Lora(Frozen):
    """Train the head and a low-rank product beside chosen layers (Hu et al. 2022, arXiv:2106.09685)."""

    kind: Literal["lora"] = "lora"
    rank: Annotated[int, Field(ge=1, le=512)] = 8
    alpha: Positive = 16
    """The product is added alpha / rank times."""
    dropout: Decay = 0.0
    layers: Literal["attention", "linear", "all"] = "linear"
    """`attention`: the linear layers of attention. `linear`: every linear layer below the head. `all`:
    convolutions as well, but for grouped ones."""


class Bottleneck(Frozen):
    """Train the head and a small network before it, mixed with what it reads (CLIP-Adapter, Gao et al. 2021,
    arXiv:2110.04544, eq. 4): ratio * relu(W2 relu(W1 f)) + (1 - ratio) * f.
    """

    kind: Literal["adapter"] = "adapter"
    reduction: Annotated[int, Field(ge=1)] = 4
    """The network's middle is so many times narrower than the features."""
    ratio: Annotated[float, Field(gt=0, le=1)] = 0.2


Tuning: TypeAlias = Annotated[LinearProbe | BitFit | Lora | Bottleneck, Field(discriminator="kind")]


class ImageSide(Frozen):
    """What every kind of model has: an encoder of images, and which of its weights are trained."""

    encoder: Annotated[str, StringConstraints(min_length=1)]
    """A name of the paper (`convnext_t`, `swin_v2_b`, ...) or any timm name."""
    image_size: Annotated[int, Field(ge=16, le=1024)] | None = None
    """Pixels a side; None takes the size the encoder was made for."""
    weights: StartWeights = SeedWeights()
    trainable: Literal["all", "head"] | LastBlocks = "all"
    batch_norm: Literal["aggregate", "local"] = "aggregate"
    """`local` keeps normalisation layers at each site (FedBN, Li et al. 2021, arXiv:2102.07623)."""
    tuning: Tuning | None = None
    """Train and send a small part of the encoder, instead of what `trainable` says. Running means and variances
    of batch normalisation then stay as they came."""

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


Template = Annotated[str, AfterValidator(_has_a_place)]


class TextSide(Frozen):
    """What every text tower has."""

    templates: Annotated[tuple[Template, ...], Field(min_length=1)] = ("a picture of a {class}",)
    """Of several, the mean of the normalised vectors is taken, as CLIP does."""
    trainable: bool = False
    """False: classes are embedded once, with `consilium-site embed-prompts`, and no site needs the tower.
    True: every site builds the tower, trains it and sends it like any other weights."""


class OpenClipText(TextSide):
    """The text tower of a CLIP that open_clip knows; with `weights.kind: seed` it is a random one."""

    kind: Literal["open_clip"] = "open_clip"
    architecture: Annotated[str, StringConstraints(min_length=1)]
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
    context_length: Annotated[int, Field(ge=8, le=512)] = 77
    """Tokens of a prompt that are read."""

    @model_validator(mode="after")
    def _hub_has_a_name(self) -> Self:
        if isinstance(self.weights, HubWeights) and self.weights.tag is None:
            raise ValueError("weights.kind=hub needs weights.tag, the name of the model on the hub")
        return self


class RandomText(Frozen):
    """No text tower: a random direction per class, from the study's seed. To compare with."""

    kind: Literal["random"] = "random"
    width: Annotated[int, Field(ge=2, le=4096)] = 512


Text: TypeAlias = Annotated[OpenClipText | HuggingFaceText | RandomText, Field(discriminator="kind")]


class ClassVectors(Frozen):
    """What a text tower said of the study's classes; written by `consilium-site embed-prompts`."""

    asked: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the tower and the prompts."""
    float32: str
    """Base64 of classes x width numbers; every class's vector has length 1."""


class ClipConfig(ImageSide):
    """CLIP with another image encoder: images and classes meet in the text tower's space (Radford et al. 2021,
    arXiv:2103.00020), and an image is of the class whose vector it is closest to.
    """

    kind: Literal["clip"] = "clip"
    library: Literal["timm", "open_clip"] = "timm"
    """`timm`: `encoder` with a learned linear projection to the text's width. `open_clip`: CLIP's own image
    tower of that name (`RN50`, `ViT-B-32`, ...) with its own projection and preprocessing."""
    text: Text
    vectors: ClassVectors | None = None
    loss: Literal["class", "contrastive", "supervised_contrastive"] = "class"
    """`class`: cross-entropy over the cosines with every class. `contrastive`: each image with its own text
    among those of the batch, as the paper's lab has it; images of one class are each other's negatives.
    `supervised_contrastive`: those are positives (SINCERE, Feeney and Hughes 2023, arXiv:2309.14277)."""
    temperature: Annotated[float, Field(ge=0.01, le=1)] = 0.07
    """To start from; learned, and never below 0.01."""

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


# --- local training ------------------------------------------------------------------------


class Sgd(Frozen):
    """The paper's SGD."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    momentum: Decay = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4


class Adam(Frozen):
    """The paper's Adam."""

    kind: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.02


class AdamW(Frozen):
    """The paper's AdamW."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    weight_decay: Annotated[float, Field(ge=0)] = 0.01


class Adagrad(Frozen):
    """The paper does not give its Adagrad settings; these are torch's."""

    kind: Literal["adagrad"] = "adagrad"
    lr: Positive = 0.01
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


class Adadelta(Frozen):
    """The paper's Adadelta."""

    kind: Literal["adadelta"] = "adadelta"
    lr: Positive = 1e-3
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4


class RMSprop(Frozen):
    """Not among the paper's; torch's settings."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: Positive = 1e-3
    momentum: Decay = 0.0
    weight_decay: Annotated[float, Field(ge=0)] = 0.0


Optimizer: TypeAlias = Annotated[
    Sgd | Adam | AdamW | Adagrad | Adadelta | RMSprop, Field(discriminator="kind")
]


class Constant(Frozen):
    """The same learning rate throughout."""

    kind: Literal["constant"] = "constant"
    warmup: Share = 0.0
    """Share of the whole study over which the learning rate rises linearly from 0."""


class Cosine(Frozen):
    """Half a cosine over the study (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.0
    final: Share = 0.0
    """Learning rate at the end of the study, as a share of the optimizer's `lr`."""


class Step(Frozen):
    """Falls at milestones."""

    kind: Literal["step"] = "step"
    warmup: Share = 0.0
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Shares of the whole study after which the learning rate is multiplied by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1


Schedule: TypeAlias = Annotated[Constant | Cosine | Step, Field(discriminator="kind")]


Augmentation: TypeAlias = Literal["none", "paper", "dermoscopy", "mri"]


class LocalConfig(Frozen):
    """What a site does between receiving weights and answering."""

    epochs: Annotated[int, Field(ge=1)] | None = None
    """Passes over the site's images per round; 1 if neither this nor `steps` is given."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps per round, instead of `epochs`."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = 32
    """Images per optimizer step; `all` takes every image of the site in one step."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images on the device at once; gradients add up to `batch_size`. None: the whole batch."""
    optimizer: Optimizer = Sgd()
    schedule: Schedule = Constant()
    """The learning rate over the whole study, not over one round."""
    clip_grad_norm: Positive | None = None
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    class_weights: Literal["none", "balanced"] = "none"
    """`balanced`: inverse class frequency, from the site's own counts."""
    sampling: Literal["shuffled", "weighted"] = "shuffled"
    """`shuffled`: each image once an epoch. `weighted`: as many draws an epoch, each class equally likely,
    so that images of rare classes come several times and some of common ones not at all."""
    augmentation: Augmentation = "paper"
    """`paper`: random crop from 256/224 of the image size, horizontal flip. `dermoscopy`: any rotation, both
    flips, scale, colour. `mri`: small rotations, horizontal flip, scale, brightness and contrast."""
    precision: Literal["auto", "float32", "float64", "bf16", "fp16"] = "auto"
    """`auto`: bf16 autocast on a GPU that has it, float32 elsewhere."""
    channels_last: bool = True
    compile: bool = False

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs={self.epochs} and steps={self.steps} contradict each other; keep one")
        return self

    @model_validator(mode="after")
    def _rare_classes_count_once(self) -> Self:
        if self.sampling == "weighted" and self.class_weights == "balanced":
            raise ValueError(
                "sampling=weighted and class_weights=balanced both make up for rare classes; keep one"
            )
        if self.sampling == "weighted" and self.batch_size == "all":
            raise ValueError(
                "sampling=weighted draws images, batch_size=all takes each once; set a batch size, or class_weights"
            )
        return self

    @property
    def num_epochs(self) -> int | None:
        """Epochs per round, or None if `steps` counts."""
        return self.epochs if self.steps is not None or self.epochs is not None else 1


# --- the federation ------------------------------------------------------------------------


class FedAvg(Frozen):
    """The mean of the sites' deltas, weighted by examples (McMahan et al. 2017, arXiv:1602.05629)."""

    kind: Literal["fedavg"] = "fedavg"


class FedProx(Frozen):
    """FedAvg whose sites are pulled towards what they received (Li et al. 2020, arXiv:1812.06127)."""

    kind: Literal["fedprox"] = "fedprox"
    mu: Annotated[float, Field(ge=0)] = 0.01
    squared: bool = True
    """True: mu/2 * ||w - w_t||**2, the paper's term. False: mu/2 * ||w - w_t||."""


class FedAvgM(Frozen):
    """FedAvg with server momentum (Hsu et al. 2019, arXiv:1909.06335)."""

    kind: Literal["fedavgm"] = "fedavgm"
    server_lr: Positive = 1.0
    momentum: Decay = 0.9


class FedAdam(Frozen):
    """Adam on the server (Reddi et al. 2021, arXiv:2003.00295, algorithm 2)."""

    kind: Literal["fedadam"] = "fedadam"
    server_lr: Positive = 0.1
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Positive = 1e-3


class FedYogi(Frozen):
    """Yogi on the server (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedyogi"] = "fedyogi"
    server_lr: Positive = 0.01
    beta1: Decay = 0.9
    beta2: Decay = 0.99
    tau: Positive = 1e-3


class FedAdagrad(Frozen):
    """Adagrad on the server (Reddi et al. 2021, algorithm 2)."""

    kind: Literal["fedadagrad"] = "fedadagrad"
    server_lr: Positive = 0.1
    beta1: Decay = 0.0
    tau: Positive = 1e-3


Algorithm: TypeAlias = Annotated[
    FedAvg | FedProx | FedAvgM | FedAdam | FedYogi | FedAdagrad, Field(discriminator="kind")
]


# --- what the server makes of the updates ----------------------------------------------------


class Clipped(Frozen):
    """Base of every rule."""

    norm_clip: Positive | None = None
    """Before the rule, a delta with a larger Euclidean norm, over all its tensors, is shrunk to this
    one (Sun et al. 2019, arXiv:1911.07963). Bounds what one site can do, finds nobody."""


class Mean(Clipped):
    """The mean weighted by examples; the only rule that never has to see the updates side by side."""

    kind: Literal["mean"] = "mean"


class TrimmedMean(Clipped):
    """Per-coordinate mean without the extremes (Yin et al. 2018, arXiv:1803.01498, definition 2).

    Counts of examples are ignored: they are the sites' own word.
    """

    kind: Literal["trimmed_mean"] = "trimmed_mean"
    trim: Annotated[float, Field(gt=0, lt=0.5)] = 0.2
    """Share of sites dropped at each end, rounded down to whole sites."""

    def num_dropped(self, num_sites: int) -> int:
        """Sites dropped at each end of `num_sites`; at least one is always left."""
        # The small addend undoes binary rounding: 0.29 * 100 is 28.999999999999996.
        return min(int(self.trim * num_sites + 1e-9), (num_sites - 1) // 2)


class Median(Clipped):
    """Per-coordinate median (Yin et al. 2018, definition 1). Counts of examples are ignored."""

    kind: Literal["median"] = "median"


class Krum(Clipped):
    """The one delta that is closest to its nearest others (Blanchard et al. 2017, arXiv:1703.02757).

    Counts of examples are ignored.
    """

    kind: Literal["krum"] = "krum"
    num_byzantine: Annotated[int, Field(ge=1)] = 1
    """Bad sites a round has to stand; needs 2 * num_byzantine + 3 sites."""


class MultiKrum(Clipped):
    """The mean of the deltas that Krum scores best. Counts of examples are ignored."""

    kind: Literal["multi_krum"] = "multi_krum"
    num_byzantine: Annotated[int, Field(ge=1)] = 1
    """Bad sites a round has to stand; needs 2 * num_byzantine + 3 sites."""
    num_selected: Annotated[int, Field(ge=1)]
    """Deltas that are averaged; 1 is Krum."""


class GeometricMedian(Clipped):
    """The point with the least weighted sum of distances to the deltas (Pillutla et al. 2022,
    arXiv:1912.13445). Weighted by examples, as in the paper: sites that hold more than half of all
    examples decide alone.
    """

    kind: Literal["geometric_median"] = "geometric_median"
    iterations: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Most steps of the smoothed Weiszfeld algorithm; it stops earlier when nothing moves."""
    smoothing: Positive = 1e-6
    """Distances below this one count as this one."""


Aggregation: TypeAlias = Annotated[
    Mean | TrimmedMean | Median | Krum | MultiKrum | GeometricMedian, Field(discriminator="kind")
]


class AdmissionConfig(Frozen):
    """How large an update may be, and how often a site may send one that is refused."""

    max_norm: Positive | None = None
    """Largest Euclidean norm of a delta, over all its tensors."""
    max_norm_ratio: Annotated[float, Field(gt=1)] | None = None
    """Largest norm of a delta, as a multiple of the median norm of the round's other deltas."""
    set_aside_after: Annotated[int, Field(ge=1)] | None = None
    """A site refused in so many answers in a row gets no more plans; None: it always gets another."""


# --- who takes part --------------------------------------------------------------------------


class SitesConfig(Frozen):
    """Who takes part, by name."""

    train: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that train, and score the model on their own test images."""
    evaluate: tuple[Name, ...] = ()
    """Sites that only score the model: a test set, an unseen domain."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Sites that only score are asked in the first of every so many rounds, and always at the end."""
    required: Annotated[int, Field(ge=1)] | None = None
    """Fewest training sites whose updates make a round; None: all of them."""

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        twice = [name for name, count in Counter(self.train + self.evaluate).items() if count > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice; a site either trains or evaluates")
        if self.required is not None and self.required > len(self.train):
            raise ValueError(
                f"required={self.required} can never be met by {len(self.train)} training site(s); "
                "lower the first or name more sites"
            )
        return self

    @property
    def quorum(self) -> int:
        """Fewest training sites whose updates make a round."""
        return len(self.train) if self.required is None else self.required

    @property
    def all(self) -> tuple[str, ...]:
        """Every site of the study, training ones first."""
        return self.train + self.evaluate


class WaitForAll(Frozen):
    """Every site has until the deadline."""

    kind: Literal["all"] = "all"


class CutOff(Frozen):
    """Once the quorum has answered, the others have a fixed time left."""

    kind: Literal["cut_off"] = "cut_off"
    after_quorum_s: Annotated[float, Field(ge=0)]


class Percentile(Frozen):
    """Once the quorum has answered, the others have as long as rounds used to take, and a bit."""

    kind: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, le=100)] = 90
    """Of the answering times of all sites in the last five rounds; the first round waits for all."""
    factor: Annotated[float, Field(ge=1)] = 1.5
    """Times that percentile."""


Grace: TypeAlias = Annotated[WaitForAll | CutOff | Percentile, Field(discriminator="kind")]


class DeadlinesConfig(Frozen):
    """How long the server waits before it names who is missing, in seconds, and what it does then."""

    enrol_s: Positive = 300
    """For sites to connect and describe themselves."""
    round_s: Positive = 3600
    evaluate_s: Positive = 1800
    """For the last, evaluate-only round."""
    grace: Grace = WaitForAll()
    """How long a round waits for the rest once it has enough. Which sites are in a round then depends on
    their speed, so a study with it is only repeatable on `all`."""
    repeats: Annotated[int, Field(ge=0)] = 1
    """How often a round without a quorum is repeated before the study fails. Only sites that failed or
    did not answer are asked again: the answers that came stay, and a refused one would come again."""
    repeat_after_s: Annotated[float, Field(ge=0)] = 10
    """Pause before a repetition, for what was broken to come back."""


class SelectionConfig(Frozen):
    """Which round's weights were best, and when there is no use in going on.

    The figure is of the images that sites score on. To choose by it and to report it is optimistic:
    name sites to choose by, and report the others'.
    """

    metric: Literal["balanced_accuracy", "accuracy", "f1_macro", "auroc_macro", "loss"] = "balanced_accuracy"
    """Of all images of `sites` together; `loss` is better when smaller."""
    sites: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Sites whose images decide; None: all that score. A round in which one is missing does not count."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after so many scored rounds without a better one; None: all rounds are run."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """A smaller gain than this is none."""


class OverlapConfig(Frozen):
    """Whether sites hold the same images, which they find out by hashes that the server cannot undo."""

    on_shared: Literal["fail", "warn"] = "fail"
    """What becomes of a study whose `evaluate` site holds an image of a training site, or cannot be compared."""


class StudyConfig(Frozen):
    """One study, from first weights to report."""

    name: Name
    classes: Annotated[tuple[Name, ...], Field(min_length=2)]
    """Class names in the order of the model's outputs."""
    class_names: dict[Name, Annotated[str, StringConstraints(min_length=1, max_length=200)]] = Field(
        default_factory=dict
    )
    """What a class is called in full, for prompts (`mel: melanoma`); without one, its name is used."""
    sites: SitesConfig
    model: ModelConfig
    rounds: Annotated[int, Field(ge=1)]
    local: LocalConfig = LocalConfig()
    algorithm: Algorithm = FedAvg()
    aggregation: Aggregation = Mean()
    admission: AdmissionConfig = AdmissionConfig()
    deadlines: DeadlinesConfig = DeadlinesConfig()
    selection: SelectionConfig | None = None
    """None: the last round's weights are the study's."""
    untrained_classes: tuple[Name, ...] = ()
    """Classes that the study may begin without: no training site needs an image of them. The model cannot
    learn them; without this a class that nobody has is taken for a misspelt one."""
    overlap: OverlapConfig | None = None
    """None: nobody looks whether sites share images. Every site needs `overlap_secret` for it."""
    heads: HeadsConfig | None = None
    """Classical heads on the network's features; None: the network alone."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    """Of the last rounds; the best one is kept besides."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0

    @field_validator("classes")
    @classmethod
    def _classes_differ(cls, classes: tuple[str, ...]) -> tuple[str, ...]:
        twice = [name for name, count in Counter(classes).items() if count > 1]
        if twice:
            raise ValueError(f"{', '.join(twice)} is named twice; every class needs a name of its own")
        return classes

    @model_validator(mode="after")
    def _untrained_classes_are_of_the_study(self) -> Self:
        if strange := [name for name in self.untrained_classes if name not in self.classes]:
            raise ValueError(
                f"untrained_classes names {', '.join(strange)}, expected some of {', '.join(self.classes)}"
            )
        return self

    @model_validator(mode="after")
    def _rule_fits_the_quorum(self) -> Self:
        problem = _wrong_rule(self.aggregation, self.sites.quorum)
        if problem is not None:
            raise ValueError(
                f"aggregation.{problem}. A round may go on with {self.sites.quorum} site(s): raise "
                "sites.required, name more sites or choose another rule"
            )
        return self

    @model_validator(mode="after")
    def _norms_have_others_to_compare_with(self) -> Self:
        if self.admission.max_norm_ratio is not None and self.sites.quorum < 2:
            raise ValueError(
                f"admission.max_norm_ratio={self.admission.max_norm_ratio:g} compares a site with the others "
                f"of its round, which may be {self.sites.quorum - 1}; set admission.max_norm or raise "
                "sites.required to 2 or more"
            )
        return self

    @model_validator(mode="after")
    def _selecting_sites_are_of_the_study(self) -> Self:
        chosen = self.selection.sites if self.selection else None
        if strange := [site for site in chosen or () if site not in self.sites.all]:
            raise ValueError(
                f"selection.sites names {', '.join(strange)}, expected sites of the study: {', '.join(self.sites.all)}"
            )
        return self

    @model_validator(mode="after")
    def _names_are_of_classes(self) -> Self:
        if strange := [name for name in self.class_names if name not in self.classes]:
            raise ValueError(
                f"class_names has {', '.join(strange)}, expected classes of the study: {', '.join(self.classes)}"
            )
        return self

    @model_validator(mode="after")
    def _vectors_answer_the_prompts(self) -> Self:
        if not isinstance(self.model, ClipConfig) or self.model.vectors is None:
            return self
        again = "run `consilium-site embed-prompts` again"
        if self.model.vectors.asked != self.asked:
            raise ValueError(f"model.vectors were made of another tower or other prompts; {again}")
        try:
            prompts.unpack(self.model.vectors.float32, len(self.classes))
        except ValueError as error:
            raise ValueError(f"model.vectors: {error}; {again}") from None
        return self

    @model_validator(mode="after")
    def _batches_hold_pairs(self) -> Self:
        if not isinstance(self.model, ClipConfig) or self.model.loss == "class":
            return self
        loss, local = self.model.loss, self.local
        if 1 in (local.batch_size, local.micro_batch_size):
            raise ValueError(
                f"model.loss={loss} compares the images of a batch, found batches of 1 (local.batch_size, "
                "local.micro_batch_size); it takes 2 or more"
            )
        if local.label_smoothing > 0:
            raise ValueError(
                f"local.label_smoothing={local.label_smoothing:g} is for model.loss=class, found {loss}; set it to 0"
            )
        return self

    @property
    def class_prompts(self) -> prompts.Prompts:
        """By class, what a text tower is asked; empty for a model without one."""
        match self.model:
            case ClipConfig(text=OpenClipText() | HuggingFaceText() as text):
                return prompts.fill(text.templates, self.classes, self.class_names)
            case _:
                return ()

    @property
    def asked(self) -> str:
        """Hash of the text tower and the prompts."""
        tower = self.model.text.model_dump(mode="json") if isinstance(self.model, ClipConfig) else {}
        return prompts.fingerprint(tower, self.class_prompts)

    def require_vectors(self) -> None:
        """Raise ConfigError if the text tower still has to be asked before the study can run."""
        if self.lacks_vectors:
            raise ConfigError(
                f"study {self.name}: model.text names a text tower that was not asked yet; run `consilium-site "
                "embed-prompts STUDY.yaml --out NEW.yaml` where the tower is, and start NEW.yaml"
            )

    @property
    def lacks_vectors(self) -> bool:
        """True if the text tower still has to be asked before the study can run."""
        match self.model:
            case ClipConfig(
                vectors=None, text=OpenClipText(trainable=False) | HuggingFaceText(trainable=False)
            ):
                return True
            case _:
                return False

    @property
    def fingerprint(self) -> str:
        """Hash of everything in the study; two sites that agree on it run the same study."""
        return hashlib.sha256(self.model_dump_json().encode()).hexdigest()


def _wrong_rule(rule: Aggregation, quorum: int) -> str | None:
    """Why a rule cannot do its work on the updates of the smallest round, or None."""
    match rule:
        case Mean():
            return None
        case TrimmedMean(trim=trim):
            dropped = rule.num_dropped(quorum)
            least = f"; it takes at least 1/{quorum}" if quorum > 2 else ""
            return None if dropped else f"trim={trim:g} drops 0 of {quorum} site(s) at each end{least}"
        case Median() | GeometricMedian():
            return f"kind={rule.kind} needs 3 sites to outvote one, found {quorum}" if quorum < 3 else None
        case Krum(num_byzantine=bad) | MultiKrum(num_byzantine=bad):
            if quorum < 2 * bad + 3:
                return f"num_byzantine={bad} needs 2 * {bad} + 3 = {2 * bad + 3} sites, found {quorum}"
            if isinstance(rule, MultiKrum) and rule.num_selected > quorum - bad:
                return (
                    f"num_selected={rule.num_selected} of {quorum} takes in one of {bad} bad site(s) for "
                    f"certain; at most {quorum} - {bad} = {quorum - bad} can be good"
                )
            return None
        case _:
            assert_never(rule)
