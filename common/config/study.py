"""The study: what is trained, by whom, how long. Owned by the server and sent to the sites.

A study says nothing about where a hospital's images lie (`client/config/site.py`) or where the
server runs (`server/config.py`). That split is the privacy border: a site can read the whole
study before it agrees, and the server never sees a path.

Defaults of the optimizers are the settings of the paper's public script (arXiv:2505.23040).
"""

import hashlib
from collections import Counter
from collections.abc import Mapping
from typing import Annotated, Literal, Self

from pydantic import (
    Field,
    StringConstraints,
    field_validator,
    model_validator,
)

from common.config import prompts
from common.config.aggregation import (
    AdmissionConfig,
    Aggregation,
    Algorithm,
    Averaging,
    FedAvg,
    Mean,
    Scaffold,
    share_limit,
    wrong_rule,
)
from common.config.calibration import CalibrationConfig, wrong_calibration
from common.config.heads import SOFTMAX, FederatedHead, HeadsConfig, Lda, Logistic, Ridge
from common.config.model import ClipConfig, HuggingFaceText, ModelConfig, OpenClipText
from common.config.out_of_distribution import OutOfDistributionConfig, wrong_out_of_distribution
from common.config.personalisation import NoPersonal, Personalisation
from common.config.privacy import DpSgdConfig, wrong_privacy
from common.config.rounds import DeadlinesConfig, OverlapConfig, SelectionConfig, SitesConfig
from common.config.scoring import GivenWeights, wrong_scoring
from common.config.secure_aggregation import SecureAggregationConfig, wrong_masks
from common.config.subgroups import Subgroups, wrong_subgroups
from common.config.training import LocalConfig, Sgd
from common.config.transport import TransportConfig
from common.config.types import MOST_NAMES, MOST_ROUNDS, Line, MaskPhase, Name, ScoredSide
from common.errors import ConfigError
from common.settings import Frozen

_FINAL_HEADS: Mapping[str, FederatedHead] = {
    "federated_lda": Lda(shrinkage=(0.02, 0.1, 0.3, 0.5, 0.8)),
    "federated_ridge": Ridge(),
    "federated_logistic": Logistic(),
}
"""Heads that a study gets for its `final_head`, if it does not list one of the kind."""


class StudyConfig(Frozen):
    """One study, from first weights to report."""

    name: Name
    """Name of the study and of its folder under runs/. A site's policy can allow studies by this name."""
    classes: Annotated[tuple[Name, ...], Field(min_length=2, max_length=MOST_NAMES)]
    """Class names in the order of the model's outputs."""
    class_names: dict[Name, Annotated[Line, StringConstraints(min_length=1, max_length=200)]] = Field(
        default_factory=dict
    )
    """Full names of classes, for prompts (`mel: melanoma`). A class that is not listed keeps its own name."""
    sites: SitesConfig
    """Sites that take part, and the quorum of a round."""
    model: ModelConfig
    """The network and the weights that it starts from. Without `kind` it is a `classifier`."""
    start_from: GivenWeights | None = Field(default=None, exclude_if=lambda start: start is None)
    """Weights of an earlier run to begin with, which the server sends. `--start-from` fills it in. None: the sites
    build the first weights from `model`."""
    rounds: Annotated[int, Field(ge=0, le=MOST_ROUNDS)]
    """Rounds of training. One closing evaluation follows the last. 0: nothing is trained, the first weights are scored
    at every site, and `heads` are fitted on them."""
    local: LocalConfig = LocalConfig()
    """Training at a site within one round."""
    algorithm: Algorithm = FedAvg()
    """The federated algorithm: a step on the server, or a penalty at the sites."""
    aggregation: Aggregation = Mean()
    """Rule that combines the admitted updates of a round into one delta."""
    averaging: Averaging | None = None
    """Mean of the weights of several rounds, which is the last round's weights at the end. None: no mean."""
    admission: AdmissionConfig = AdmissionConfig()
    """Limits on an update, beyond the checks that every update has to pass."""
    deadlines: DeadlinesConfig = DeadlinesConfig()
    """How long the server waits, in seconds, and how often a round is repeated."""
    personalisation: Personalisation = NoPersonal()
    """Models that each training site has for itself, scored on its test images beside the global one."""
    selection: SelectionConfig | None = None
    """Choice of the best round's weights, and early stopping, by validation images. None: the last round's weights are
    the study's."""
    curves_on: ScoredSide = "validation"
    """Images that the curves over the rounds are of. `validation`: the test images are scored once, with the chosen
    weights. `test`: they are scored in every round as well, and the report says so. Choices are made by validation
    images in both cases."""
    subgroups: Subgroups | None = Field(default=None, exclude_if=lambda subgroups: subgroups is None)
    """Figures by subgroup, once, of the test at the end: `{sex: [female, male], age: {bands: [0, 40, 60, 120]}}`. A
    site counts by the columns that its `data.subgroups` names, as far as its policy allows. None: none."""
    calibration: CalibrationConfig | None = Field(
        default=None, exclude_if=lambda calibration: calibration is None
    )
    """Calibrated probabilities and sets of classes for `consilium-site predict`, from counts of the training sites'
    validation images, once, of the chosen weights: `calibration: {}`. None: probabilities as the network gives them."""
    out_of_distribution: OutOfDistributionConfig | None = Field(
        default=None, exclude_if=lambda settings: settings is None
    )
    """An outlier score for `consilium-site predict`: how unlike the training images an image is, and a flag beyond what
    validation images have: `out_of_distribution: {}`. It is made of the sums of the first LDA under `heads.federated`
    that has all features (no `pca`); a study that lists none gets one. None: no score."""
    intervals: bool = True
    """Intervals over patients for the figures of the final test. Sites whose policy allows it send sums over their test
    patients, each with a random number. None do in a study with `privacy` or `secure_aggregation`."""
    untrained_classes: tuple[Name, ...] = ()
    """Classes of which no training site needs an image. The model cannot learn them. Any other class without a
    training image stops the study, because it is probably a spelling mistake."""
    overlap: OverlapConfig | None = None
    """Comparison of images between sites. None: no comparison. Every site needs `overlap_secret` for it."""
    heads: HeadsConfig | None = None
    """Classical heads on the network's features; None: the network alone."""
    final_head: Literal["softmax", "federated_lda", "federated_ridge", "federated_logistic"] = "softmax"
    """Head that the study's model predicts with. `softmax`: the network's own. The others are fitted on the final
    network from sums over the training sites, as one of `heads`; a study that does not list one gets it with its
    defaults. The report shows both. Sites allow it as any head, by `policy.heads`."""
    transport: TransportConfig | None = Field(default=None, exclude_if=lambda transport: transport is None)
    """Fewer bytes for a round. None: weights and changes travel whole."""
    secure_aggregation: SecureAggregationConfig | None = Field(
        default=None, exclude_if=lambda masks: masks is None
    )
    """Masks on the sites' updates, so that the server learns their sum alone. None: it sees each site's."""
    privacy: DpSgdConfig | None = Field(default=None, exclude_if=lambda privacy: privacy is None)
    """Noise on all that leaves a training site, so that it hardly depends on any one patient. None: no noise."""
    keep_checkpoints: Annotated[int, Field(ge=1)] = 3
    """Checkpoints of the last rounds that are kept. The best round's is kept in addition."""
    seed: Annotated[int, Field(ge=0, lt=2**63)] = 0
    """Seed of every random draw: first weights, order of images, augmentation. The same seed on the same kind of
    machine gives the same weights."""

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
        problem = wrong_rule(self.aggregation, self.sites.quorum)
        if problem is not None:
            raise ValueError(
                f"aggregation.{problem}. A round may go on with {self.sites.quorum} site(s): raise "
                "sites.required, name more sites or choose another rule"
            )
        return self

    @model_validator(mode="after")
    def _without_rounds_nothing_is_trained(self) -> Self:
        if (problem := wrong_scoring(self)) is not None:
            raise ValueError(problem)
        return self

    @model_validator(mode="after")
    def _algorithm_fits(self) -> Self:
        name, optimizer = self.algorithm.kind, self.local.optimizer
        if self.algorithm.kind in ("scaffold", "fednova") and self.aggregation.kind != "mean":
            raise ValueError(
                f"algorithm={name} is about the weighted mean, found aggregation.kind={self.aggregation.kind}; set "
                "it to mean, or take another algorithm"
            )
        if isinstance(self.algorithm, Scaffold) and not (
            isinstance(optimizer, Sgd) and optimizer.momentum == 0 and self.local.clip_grad_norm is None
        ):
            raise ValueError(
                "algorithm=scaffold needs plain steps along the gradient: set local.optimizer to {kind: sgd, "
                "momentum: 0}, with the learning rate that suits it, and leave local.clip_grad_norm out"
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
    def _selecting_sites_score_in_every_round(self) -> Self:
        if self.selection is None or self.sites.per_round is None:
            return self
        drawn = [site for site in self.selection.sites or self.sites.all if site in self.sites.train]
        if drawn:
            raise ValueError(
                f"selection compares scores of the same sites, but with sites.per_round={self.sites.per_round} "
                f"{', '.join(drawn[:3])} is asked in some rounds only; name sites of sites.evaluate in selection.sites"
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
    def _final_head_is_listed(self) -> Self:
        """A head like any other, so that contract, policy, report and prediction know it."""
        kind = self.final_head.removeprefix("federated_")
        heads = self.heads or HeadsConfig.model_construct()
        if self.final_head == "softmax" or any(head.kind == kind for head in heads.federated):
            return self
        if taken := [head.title for head in heads.federated if head.title == kind]:
            raise ValueError(
                f"final_head={self.final_head} would be called federated.{taken[0]}, and heads.federated calls another "
                "head so; give that one another name"
            )
        listed = (*heads.federated, _FINAL_HEADS[self.final_head])
        # The settings are frozen once they are checked, and this is a part of the checking.
        object.__setattr__(self, "heads", heads.model_copy(update={"federated": listed}))
        return self

    @model_validator(mode="after")
    def _outlier_score_has_sums(self) -> Self:
        """The head that its sums are of is a head like any other, as the final head is."""
        if self.out_of_distribution is None:
            return self
        if (problem := wrong_out_of_distribution(self)) is not None:
            raise ValueError(f"out_of_distribution {problem}")
        if self.outlier_head is not None:
            return self
        heads, added = self.heads or HeadsConfig.model_construct(), Lda()
        if any(head.title == added.title for head in heads.federated):
            raise ValueError(
                f"out_of_distribution needs an LDA on all features, which would be called federated.{added.title}, and "
                "heads.federated calls another head so; give that one another name"
            )
        listed = (*heads.federated, added)
        object.__setattr__(self, "heads", heads.model_copy(update={"federated": listed}))
        return self

    @model_validator(mode="after")
    def _subgroups_fit(self) -> Self:
        if (problem := wrong_subgroups(self)) is not None:
            raise ValueError(f"subgroups {problem}")
        return self

    @model_validator(mode="after")
    def _masks_fit(self) -> Self:
        masks = self.secure_aggregation
        problem = None if masks is None else wrong_masks(masks, self)
        if problem:
            raise ValueError(f"secure_aggregation {problem}")
        return self

    @model_validator(mode="after")
    def _privacy_fits(self) -> Self:
        problem = wrong_privacy(self) if self.privacy is not None else None
        if problem:
            raise ValueError(f"privacy {problem}")
        return self

    @model_validator(mode="after")
    def _calibration_fits(self) -> Self:
        problem = wrong_calibration(self) if self.calibration is not None else None
        if problem:
            raise ValueError(f"calibration {problem}")
        return self

    @property
    def asks_for_intervals(self) -> bool:
        """Whether sites are asked for sums over their test patients: neither noise nor masks are on these."""
        return self.intervals and self.privacy is None and self.secure_aggregation is None

    def noise_of_scores(self, site: str, num_scored: int = 1) -> float:
        """Standard deviation of the noise on scores of this site's test images, for so many in one answer; 0: none."""
        if self.privacy is None or self.privacy.scores is None or site not in self.sites.train:
            return 0.0
        return float(self.privacy.scores.noise * num_scored**0.5)

    @property
    def outlier_head(self) -> Lda | None:
        """The head whose sums the outlier score is made of: the first LDA on all features."""
        federated = () if self.heads is None else self.heads.federated
        return next((head for head in federated if isinstance(head, Lda) and head.pca is None), None)

    @property
    def final_head_title(self) -> str:
        """Title of the head that the model predicts with, e.g. `federated.lda`."""
        kind = self.final_head.removeprefix("federated_")
        federated = () if self.heads is None else self.heads.federated
        return next((f"federated.{head.title}" for head in federated if head.kind == kind), SOFTMAX)

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

    @model_validator(mode="after")
    def _control_variates_travel_whole(self) -> Self:
        if self.transport is not None and isinstance(self.algorithm, Scaffold):
            raise ValueError(
                "transport is not for algorithm scaffold, whose control variates travel whole; leave it out"
            )
        return self

    @property
    def largest_share(self) -> float:
        """Largest share of the weight that one training site can have, 1 if there is no limit."""
        if self.secure_aggregation is not None:
            return 1.0  # each site weighs its own update, before the server sees anything
        return share_limit(self.aggregation, self.sites.num_per_round)

    @property
    def mask_threshold(self) -> int:
        """Sites that a masked sum must be of, 0 without masks."""
        masks = self.secure_aggregation
        return 0 if masks is None else masks.threshold_of(self.sites.num_per_round)

    def mask_threshold_of(self, phase: MaskPhase) -> int:
        """The same for one phase: a round may be of few sites that are drawn, the others are of all."""
        masks, asked = self.secure_aggregation, len(self.sites.train)
        if masks is None or phase == "training":
            return self.mask_threshold
        return max(masks.threshold_of(asked), asked // 2 + 1)

    @property
    def colluding_sites(self) -> int | None:
        """Sites that may work together with the server while the masks of the others hold; None without masks.

        They help with two openings of one sum, each of which takes the threshold; and two more sites must be in it.
        """
        if self.secure_aggregation is None:
            return None
        sizes: dict[MaskPhase, int] = {"training": self.sites.num_per_round, "test": len(self.sites.train)}
        once = min(2 * self.mask_threshold_of(phase) - num - 1 for phase, num in sizes.items())
        return max(0, min(once, self.sites.quorum - 2))

    @property
    def largest_share_of_sums(self) -> float:
        """Largest share of one site in the sums and votes of federated heads, 1 if there is no limit."""
        rule = self.aggregation
        return share_limit(Mean(max_share=getattr(rule, "max_share", None)), len(self.sites.train))

    @property
    def class_prompts(self) -> prompts.Prompts:
        """Prompts for the text tower, by class; empty for a model without one."""
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
        """Raise ConfigError if the class vectors still have to be computed before the study can run."""
        if self.lacks_vectors:
            raise ConfigError(
                f"study {self.name}: model.text names a text tower, but model.vectors are missing; run "
                "`consilium-site embed-prompts STUDY.yaml --out NEW.yaml` where the tower is, and start NEW.yaml"
            )

    @property
    def lacks_vectors(self) -> bool:
        """True if the class vectors still have to be computed before the study can run."""
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
