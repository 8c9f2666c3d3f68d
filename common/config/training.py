"""Settings of local training: optimizer, schedule, batches, augmentation."""

from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.config.types import Decay, Positive, Share
from common.settings import Frozen


class Sgd(Frozen):
    """The paper's SGD."""

    kind: Literal["sgd"] = "sgd"
    lr: Positive = 0.01
    """Learning rate."""
    momentum: Decay = 0.9
    """Share of the previous step that is kept."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty: this times the weight is added to the gradient."""


class Adam(Frozen):
    """The paper's Adam."""

    kind: Literal["adam"] = "adam"
    lr: Positive = 1e-3
    """Learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay of the running means of the gradient and of its square."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    """L2 penalty: this times the weight is added to the gradient."""


class AdamW(Frozen):
    """The paper's AdamW."""

    kind: Literal["adamw"] = "adamw"
    lr: Positive = 1e-3
    """Learning rate."""
    betas: tuple[Decay, Decay] = (0.9, 0.98)
    """Decay of the running means of the gradient and of its square."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Decoupled: each step shrinks the weights by lr times this."""


class Adagrad(Frozen):
    """Adagrad with torch's settings; the paper gives none."""

    kind: Literal["adagrad"] = "adagrad"
    lr: Positive = 0.01
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty: this times the weight is added to the gradient."""


class Adadelta(Frozen):
    """The paper's Adadelta."""

    kind: Literal["adadelta"] = "adadelta"
    lr: Positive = 1e-3
    """Learning rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    """L2 penalty: this times the weight is added to the gradient."""


class RMSprop(Frozen):
    """RMSprop with torch's settings; the paper does not use it."""

    kind: Literal["rmsprop"] = "rmsprop"
    lr: Positive = 1e-3
    """Learning rate."""
    momentum: Decay = 0.0
    """Share of the previous step that is kept."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """L2 penalty: this times the weight is added to the gradient."""


Optimizer: TypeAlias = Annotated[
    Sgd | Adam | AdamW | Adagrad | Adadelta | RMSprop, Field(discriminator="kind")
]


class Constant(Frozen):
    """The same learning rate throughout."""

    kind: Literal["constant"] = "constant"
    warmup: Share = 0.0
    """Share of the whole study over which the learning rate rises linearly from 0."""
    round_warmup: Share = 0.0
    """Share of each round over which the learning rate rises linearly from 0, on top of `warmup`."""


class Cosine(Frozen):
    """Half a cosine over the study (Loshchilov and Hutter 2017, arXiv:1608.03983)."""

    kind: Literal["cosine"] = "cosine"
    warmup: Share = 0.0
    """Share of the whole study over which the learning rate rises linearly from 0."""
    round_warmup: Share = 0.0
    """Share of each round over which the learning rate rises linearly from 0, on top of `warmup`."""
    final: Share = 0.0
    """Learning rate at the end of the study, as a share of the optimizer's `lr`."""


class Step(Frozen):
    """A learning rate that falls at milestones."""

    kind: Literal["step"] = "step"
    warmup: Share = 0.0
    """Share of the whole study over which the learning rate rises linearly from 0."""
    round_warmup: Share = 0.0
    """Share of each round over which the learning rate rises linearly from 0, on top of `warmup`."""
    milestones: tuple[Share, ...] = (0.5, 0.75)
    """Shares of the whole study after which the learning rate is multiplied by `gamma`."""
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Factor for the learning rate at each milestone."""


Schedule: TypeAlias = Annotated[Constant | Cosine | Step, Field(discriminator="kind")]


Determinism: TypeAlias = Literal["exact", "fast"]

LossKind: TypeAlias = Literal["cross_entropy", "balanced_softmax", "focal"]

Augmentation: TypeAlias = Literal["none", "paper", "dermoscopy", "mri"]


class LocalConfig(Frozen):
    """What a site does between receiving weights and answering."""

    epochs: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    """Passes over the site's images per round; 1 if neither this nor `steps` is given. A pass may go on from round to
    round: with 0.25 every image is trained on once in four rounds."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps per round, instead of `epochs`. Sites of any size then take as many steps; in the mean they
    weigh by their training images all the same."""
    batch_size: Annotated[int, Field(ge=1)] | Literal["all"] = 32
    """Images per optimizer step; `all` takes every image of the site in one step."""
    micro_batch_size: Annotated[int, Field(ge=1)] | None = None
    """Images on the device at once; gradients add up to `batch_size`. None: the whole batch."""
    optimizer: Optimizer = Sgd()
    """Optimizer at the sites."""
    optimizer_state: Literal["keep", "fresh"] | None = None
    """What becomes of the optimizer's running means between two rounds. `keep`: they stay at the site, on its disk.
    `fresh`: every round begins without any. None: `keep` for all but SGD, whose momentum is of the last few steps."""
    schedule: Schedule = Constant()
    """The learning rate over the whole study, not over one round."""
    clip_grad_norm: Positive | None = None
    """A gradient with a larger Euclidean norm is shrunk to this one. None: it is not."""
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of a label's weight that is spread over all classes."""
    loss: LossKind | None = None
    """Loss over the classes. `balanced_softmax` takes the site's own class frequencies out of it, and classes that the
    site does not have (Ren et al. 2020, arXiv:2007.10740). `focal` looks at hard images (Lin et al. 2017,
    arXiv:1708.02002). None: `balanced_softmax`; `cross_entropy` if `class_weights` or `sampling` make up for rare
    classes."""
    prior: Literal["site", "study"] = "site"
    """Class frequencies that `balanced_softmax` takes out: those of the site's own training images, or those of the
    training images of all sites, which the server then sends along."""
    absent_classes: Literal["keep", "mask"] = "keep"
    """`mask`: classes of which the site has no training image are left out of its loss, so that a site does not teach
    the network that they never occur. `balanced_softmax` with the site's own prior always does."""
    class_weights: Literal["none", "site", "study", "capped"] = "none"
    """Weight of an image by its class. `site`: inverse class frequency, from the site's own counts. `study`: the same
    from the counts of all training sites together, which the server sends along. `capped`: as `site`, and no class
    weighs more than `class_weight_cap` times another."""
    class_weight_cap: Annotated[float, Field(ge=1)] = 10.0
    """Largest class weight under `capped`, as a multiple of the smallest."""
    sampling: Literal["shuffled", "weighted"] = "shuffled"
    """`shuffled`: each image once an epoch. `weighted`: as many draws an epoch, each class equally likely,
    so that images of rare classes come several times and some of common ones not at all."""
    augmentation: Augmentation = "paper"
    """`paper`: random crop from 256/224 of the image size, horizontal flip. `dermoscopy`: any rotation, both
    flips, scale, colour. `mri`: small rotations, horizontal flip, scale, brightness and contrast."""
    mixstyle: Share = 0.0
    """Probability that the channel statistics of a batch's early features are mixed among its images (MixStyle, Zhou et
    al. 2021, arXiv:2104.02008). For CNNs. It makes a network lean less on the look of one camera."""
    amplitude_mix: Share = 0.0
    """Probability that an image gets a part of the amplitudes of its Fourier spectrum from another of its batch (Xu et
    al. 2021, arXiv:2105.11120). Shapes stay, colour and texture change."""
    precision: Literal["auto", "float32", "float64", "bf16", "fp16"] = "auto"
    """`auto`: bf16 autocast on a GPU that has it, float32 elsewhere."""
    channels_last: bool = True
    """Store images and weights with the channels last in memory, which is faster on most devices."""
    determinism: Determinism = "exact"
    """`exact`: the same site computes the same bits every time. `fast`: a GPU takes its quickest kernels and TF32, and
    its results differ in the last digits from run to run. On a CPU both are the same."""
    compile: bool = False
    """Compile the model with `torch.compile`. It takes minutes at the start and pays in long studies."""

    @model_validator(mode="after")
    def _epochs_or_steps(self) -> Self:
        if self.epochs is not None and self.steps is not None:
            raise ValueError(f"epochs={self.epochs:g} and steps={self.steps} contradict each other; keep one")
        return self

    @model_validator(mode="after")
    def _styles_are_mixed_in_batches(self) -> Self:
        if self.mixstyle == 0 and self.amplitude_mix == 0:
            return self
        if 1 in (self.batch_size, self.micro_batch_size):
            raise ValueError(
                "mixstyle and amplitude_mix mix the images of a batch, found batches of 1 (batch_size, "
                "micro_batch_size); it takes 2 or more"
            )
        if self.mixstyle > 0 and self.compile:
            raise ValueError(
                "mixstyle and compile do not go together; set compile to false, or mixstyle to 0"
            )
        return self

    @model_validator(mode="after")
    def _rare_classes_count_once(self) -> Self:
        if self.sampling == "weighted" and self.class_weights != "none":
            raise ValueError(
                f"sampling=weighted and class_weights={self.class_weights} both make up for rare classes; keep one"
            )
        if self.loss == "balanced_softmax" and (self.class_weights != "none" or self.sampling == "weighted"):
            raise ValueError(
                "loss=balanced_softmax makes up for rare classes, as class_weights and sampling=weighted do; "
                "keep one"
            )
        if self.prior == "study" and self.chosen_loss != "balanced_softmax":
            raise ValueError(
                f"prior=study is for loss=balanced_softmax, found loss={self.chosen_loss}; leave one out"
            )
        if self.loss == "focal" and self.label_smoothing > 0:
            raise ValueError("loss=focal has no label_smoothing; set it to 0, or take another loss")
        if self.sampling == "weighted" and self.batch_size == "all":
            raise ValueError(
                "sampling=weighted draws images, batch_size=all takes each once; set a batch size, or class_weights"
            )
        return self

    @property
    def chosen_loss(self) -> LossKind:
        """The loss of a study that may leave the choice open."""
        if self.loss is not None:
            return self.loss
        evens_out = self.class_weights != "none" or self.sampling == "weighted"
        return "cross_entropy" if evens_out else "balanced_softmax"

    @property
    def keeps_optimizer_state(self) -> bool:
        """Whether the optimizer's state stays at the site from round to round."""
        if self.optimizer_state is not None:
            return self.optimizer_state == "keep"
        return not isinstance(self.optimizer, Sgd)

    @property
    def needs_class_counts(self) -> bool:
        """Whether a site has to know how many training images of each class all sites have together."""
        return self.class_weights == "study" or self.prior == "study"

    @property
    def num_epochs(self) -> float | None:
        """Epochs per round, or None if `steps` counts."""
        return self.epochs if self.steps is not None or self.epochs is not None else 1
