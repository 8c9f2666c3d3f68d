"""Settings of differential privacy: how much noise a site puts on what leaves it, and for whom."""

from typing import TYPE_CHECKING, Annotated, Literal, TypeAlias

from pydantic import Field

from common.config.heads import Lda, NaiveBayes, NearestMean, Ridge
from common.config.model import ClipConfig
from common.config.personalisation import NoPersonal
from common.config.training import LocalConfig
from common.config.types import Positive
from common.settings import Frozen

if TYPE_CHECKING:
    from common.config.study import StudyConfig


NoiseLevel: TypeAlias = Annotated[float, Field(ge=1e-3)]
"""Less than a thousandth is no noise, and the accountant has no number for it."""


class NoisySums(Frozen):
    """Noise on the sums that classical heads are made of (Gaussian mechanism; Balle and Wang 2018, arXiv:1805.06530).

    A patient counts as one, with the mean of what its images would add. So no bound on images per patient is needed.
    """

    noise: NoiseLevel
    """Standard deviation of the noise, in units of what one patient can change in all sums together."""
    max_feature_norm: Positive
    """Euclidean norm to which the features of an image are shrunk before they are added. A usual length of features of
    the encoder, from public images: what is longer loses its length, what is shorter has more noise beside it."""


class NoisyScoring(Frozen):
    """Noise on the scores of training sites: on confusion matrices of test images, at the end of a study."""

    noise: NoiseLevel
    """Standard deviation of the noise on each cell, in patients: each counts as one, with the mean over its images. It
    is larger by the root of the number of heads, where several are scored on the same images."""


class DpSgdConfig(Frozen):
    """Differentially private training at the sites (DP-SGD, Abadi et al. 2016, arXiv:1607.00133) of whole patients.

    What a training site sends in the study then hardly depends on any one patient: (epsilon, delta) for a patient who
    is added or removed. Without patients' names, of a lesion; without those, of an image.
    """

    kind: Literal["dp_sgd"] = "dp_sgd"
    """The mechanism; there is one."""
    noise: NoiseLevel | None = Field(default=None, exclude_if=lambda noise: noise is None)
    """Standard deviation of the noise on the sum of a step, in units of `max_grad_norm`. A study with rounds needs
    it."""
    max_grad_norm: Positive = 1.0
    """Euclidean norm to which the gradient of one patient is shrunk, over all trained tensors together."""
    sampling_rate: Annotated[float, Field(gt=0, le=1)] | None = Field(
        default=None, exclude_if=lambda chance: chance is None
    )
    """Chance of each patient to be in a step, in place of `local.batch_size`. An epoch has 1 / chance steps. A study
    with rounds needs it."""
    images_per_patient: Annotated[int, Field(ge=1, le=1000)] = 1
    """Most images of one patient in a step, drawn for each step, and in the counts of the enrolment."""
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-5
    """Chance that epsilon does not hold. Well below one in the number of patients."""
    count_noise: NoiseLevel = 20.0
    """Standard deviation of the noise on the training images of each class, in units of `images_per_patient`."""
    heads: NoisySums | None = Field(default=None, exclude_if=lambda heads: heads is None)
    """Noise on the sums for classical heads, once in a study. None: the study fits no heads."""
    scores: NoisyScoring | None = Field(default=None, exclude_if=lambda scores: scores is None)
    """Noise on the scores of the final weights on test images. None: no score of a training site leaves."""

    @property
    def step_noise(self) -> float:
        """`noise` of a study that trains."""
        assert self.noise is not None, "a study without it has no rounds"
        return self.noise

    @property
    def step_rate(self) -> float:
        """`sampling_rate` of a study that trains."""
        assert self.sampling_rate is not None, "a study without it has no rounds"
        return self.sampling_rate

    def num_steps(self, local: LocalConfig) -> int:
        """Steps of a round. They depend on nothing at the site."""
        if local.num_epochs is None:
            return local.steps or 1
        return max(1, round(local.num_epochs / self.step_rate))


def wrong_privacy(study: "StudyConfig") -> str | None:
    """Why this study cannot have differential privacy, or None. What is refused would leave without noise."""
    local = study.local
    if (problem := _wrong_steps(study)) is not None:
        return problem
    if local.class_weights != "none" or local.sampling != "shuffled" or local.absent_classes != "keep":
        return (
            "does not go with class_weights, sampling=weighted or absent_classes=mask, which make the part of one "
            "patient depend on the others; leave them out"
        )
    if local.mixstyle > 0 or local.amplitude_mix > 0:
        return "does not go with mixstyle or amplitude_mix, which mix the patients of a batch; leave them out"
    if isinstance(study.model, ClipConfig) and study.model.loss != "class":
        return f"does not go with model.loss={study.model.loss}, which compares patients in a batch; take `class`"
    if local.compile or local.precision == "fp16":
        return "does not go with local.compile or precision=fp16; leave them out"
    if study.algorithm.kind == "scaffold":
        return "does not go with algorithm=scaffold, whose control variates are not accounted for; take another one"
    if (problem := _wrong_heads(study)) is not None:
        return problem
    if study.curves_on == "test" and study.privacy is not None and study.privacy.scores is not None:
        return (
            "pays for the scores of the final weights alone, and curves_on=test would score each round; set "
            "curves_on: validation"
        )
    if (
        study.secure_aggregation is not None
        and study.privacy is not None
        and study.privacy.scores is not None
    ):
        return (
            "pays for scores with noise, which are not masked; leave privacy.scores or secure_aggregation out"
        )
    if study.overlap is not None:
        return "does not go with overlap: a hash of an image has no noise; leave overlap out"
    if not isinstance(study.personalisation, NoPersonal):
        return "does not go with personalisation, whose scores have no noise yet; leave it out"
    chosen_by = study.selection and study.selection.sites
    if study.selection is not None and not set(chosen_by or study.sites.train) <= set(study.sites.evaluate):
        return (
            "has no scores of training sites, which selection would choose by; name sites of sites.evaluate in "
            "selection.sites, or leave selection out"
        )
    return None


def _wrong_steps(study: "StudyConfig") -> str | None:
    """What the rounds of this study lack, or None."""
    privacy = study.privacy
    if privacy is None or not study.rounds:
        return None
    missing = [name for name in ("noise", "sampling_rate") if getattr(privacy, name) is None]
    if not missing:
        return None
    return (
        f"lacks {' and '.join(missing)}, which a study that trains needs (rounds: {study.rounds}); set what is "
        "missing, or set rounds to 0 to fit heads alone"
    )


def _wrong_heads(study: "StudyConfig") -> str | None:
    """Why these heads cannot be made of sums with noise, or None."""
    heads, paid = study.heads, study.privacy is not None and study.privacy.heads is not None
    if heads is None:
        return (
            "pays for heads, and the study has none; list some, or leave privacy.heads out" if paid else None
        )
    if not paid:
        return "does not pay for heads; set privacy.heads, or leave heads and final_head out"
    if heads.local:
        return "does not go with heads.local, of which only scores would leave; leave them out"
    if heads.every is not None:
        return "does not go with heads.every, since the sums are paid for once; leave it out"
    for head in heads.federated:
        if not isinstance(head, NearestMean | NaiveBayes | Lda | Ridge):
            return (
                f"does not go with federated.{head.title}, which is no head of sums; take nearest_mean, naive_bayes, "
                "lda or ridge"
            )
        if head.scale:
            return (
                f"does not go with scale of federated.{head.title}: a feature that hardly varies would be scaled to "
                "noise; list the head with scale: false"
            )
        if isinstance(head, Lda) and len(head.shrinkage) > 1:
            return (
                f"does not go with several values for shrinkage of federated.{head.title}, which validation images "
                "would choose from; give one"
            )
    return None
