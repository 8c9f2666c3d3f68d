"""Settings of a site's policy: what it allows, how much, and at what hours."""

import re
from datetime import time
from typing import Annotated, Any
from zoneinfo import ZoneInfo

from pydantic import Field, StringConstraints, field_validator, model_serializer, model_validator

from common.config.heads import LocalKind
from common.settings import Frozen

Pattern = Annotated[str, StringConstraints(min_length=1)]
"""A name, in which `*` stands for any text: `isic-*`."""


Patterns = Annotated[tuple[Pattern, ...], Field(min_length=1)]


_CLOCK = re.compile("\\s*(\\d{1,2}):(\\d{2})\\s*[-\u2010-\u2015\u2212]\\s*(\\d{1,2}):(\\d{2})\\s*", re.ASCII)
"""Two times of day, with a hyphen between them or one of the dashes that word processors make of it."""


class Hours(Frozen):
    """A part of the day, written "19:00-07:00"; it may reach past midnight."""

    opens: time
    """The first minute in which plans are taken."""
    closes: time
    """The first minute in which plans are not taken any more."""

    @model_validator(mode="before")
    @classmethod
    def _read(cls, value: Any) -> Any:
        match = _CLOCK.fullmatch(value) if isinstance(value, str) else None
        try:
            opens, closes = (time(int(h) % 24, int(m)) for h, m in (match.group(1, 2), match.group(3, 4)))  # type: ignore[union-attr]
        except (AttributeError, ValueError):
            raise ValueError(f'found {value!r}, expected two times of day like "19:00-07:00"') from None
        if opens == closes:
            raise ValueError(
                f"{value!r} opens and closes at the same time; leave hours out to allow any time"
            )
        return {"opens": opens, "closes": closes}

    @model_serializer
    def _write(self) -> str:
        return f"{self.opens:%H:%M}-{self.closes:%H:%M}"


class PrivacyPolicy(Frozen):
    """How much of its patients' privacy this hospital spends, in all studies together (differential privacy)."""

    max_epsilon: Annotated[float, Field(gt=0)]
    """Largest epsilon of all that leaves, ever. A study that would go beyond it is refused before it begins, and so is
    each round that would."""
    delta: Annotated[float, Field(gt=0, lt=0.1)] = 1e-5
    """Chance that `max_epsilon` does not hold. Well below one in the number of patients."""
    least_noise: Annotated[float, Field(gt=0)] | None = None
    """Smallest `privacy.noise` of a study that trains. None: whatever epsilon allows."""


class PolicyConfig(Frozen):
    """What this hospital agreed to. A rule without a value allows everything.

    Names are compared as the study spells them, capitals included.
    """

    studies: Patterns | None = None
    """Names of studies that may run here."""
    encoders: Patterns | None = None
    """Encoders that may be trained here."""
    max_epochs_per_round: Annotated[float, Field(gt=0)] | None = None
    """Passes over the training images in one round; steps count as steps x batch / images."""
    max_rounds_per_day: Annotated[int, Field(ge=0)] | None = None
    """Rounds of training, of all studies together, from midnight to midnight."""
    min_train_images: Annotated[int, Field(ge=1)] | None = None
    """Fewest training images with which this site trains."""
    min_class_images: Annotated[int, Field(ge=1)] | None = None
    """Fewest training images of each class that has any."""
    min_cell: Annotated[int, Field(ge=2)] | None = None
    """Fewest groups (patients or lesions; images where no group is known) that may be counted. A class
    with fewer on one side of the split is left out there: neither counted nor trained on nor scored."""
    min_batch: Annotated[int, Field(ge=2)] | None = None
    """Fewest patients (or lesions; images where neither is known) in an optimizer step. Steps with a negligible
    learning rate do not count, and no patient may weigh more than one part in this many in a round. None: as
    `min_cell`."""
    min_cohort: Annotated[int, Field(ge=1)] | None = None
    """Fewest training sites without which the study does not go on (`sites.required` of the study): a mean over few
    sites says much about each."""
    max_colluding: Annotated[int, Field(ge=0)] = 0
    """Other sites that may work together with the server, and masks still hold: in studies with `secure_aggregation`, a
    sum is of two sites more than that at least, and its threshold is large enough."""
    only_masked: bool = False
    """Updates leave only in studies with `secure_aggregation`, where the server learns the sum over sites alone."""
    privacy: PrivacyPolicy | None = None
    """Only studies with `privacy` take place, within these limits, and no score of this site's images leaves. The rules
    about numbers of patients (`min_cell`, `min_batch`, `max_patient_share`) do not count in them: noise takes their
    place. None: no limit."""
    max_runs: Annotated[int, Field(ge=1)] | None = None
    """How often one study may begin again from its first round, for each approval."""
    max_evaluations_per_day: Annotated[int, Field(ge=0)] | None = None
    """Sets of weights that are scored on this site's images, of all studies together, from midnight to midnight."""
    max_device_minutes_per_day: Annotated[float, Field(ge=0)] | None = None
    """Minutes of training, scoring and fitting, of all studies together, from midnight to midnight."""
    max_weight_change: Annotated[float, Field(gt=0)] | None = None
    """Largest change of the received weights from one round to the next, as a share of their Euclidean norm. The
    statistics of batch normalisation do not count."""
    max_patient_share: Annotated[float, Field(gt=0, le=1)] | None = None
    """Largest share of one patient (or lesion; image where neither is known) in what a round teaches, measured by the
    slopes of the loss while it is trained. Images that the received weights classify without doubt teach nothing, so
    with weights chosen for it a round is of one image. Such a round is trained and not answered. The same holds for
    the features behind a head's sums: no patient's are longer than this share of a class's."""
    own_first_weights: bool = True
    """True: the weights of round 1 are those that this site builds from the study itself. False: a study may start
    from other weights of the server."""
    hub_weights: bool = False
    """True: a study may start from weights that this site fetches from a public hub."""
    histogram_bins: Annotated[int, Field(ge=2, le=500)] = 20
    """Bins of the histograms of scores that leave, one per class: probabilities are rounded to the middle of a bin."""
    min_score_cell: Annotated[int, Field(ge=3)] | None = None
    """Fewest patients (or lesions; images where neither is known) in a cell of a score: a true class and a predicted
    one. Images of smaller cells are left out of the score, and no bin of a histogram is of fewer patients. None: all
    are counted."""
    subgroups: bool = True
    """False: no counts by subgroup leave, whatever columns `data.subgroups` names."""
    min_subgroup: Annotated[int, Field(ge=3)] = 10
    """Fewest patients (or lesions; images where neither is known) of a class in a subgroup. Fewer are left out of the
    counts by subgroup, and as many more as hide them in the difference to the score of all."""
    calibration: bool = True
    """False: no counts for a temperature, for sets of classes and for the limit of an outlier score leave. With
    `min_score_cell` none leave either."""
    scores: bool = True
    """False: the model is not scored on this site's images, and no test image is counted."""
    intervals: bool = True
    """False: no sums over test patients leave, from which a study's figures get intervals."""
    overlap: bool = True
    """False: a study that compares images between sites is refused. Without `overlap_secret` it is refused
    as well."""
    tensors: Patterns | None = None
    """Tensors that may leave, by name. A study that trains others is refused."""
    heads: tuple[Pattern, ...] = ()
    """Classical heads that may be fitted on this site's features, as `local.svm_rbf`, `federated.lda` or `*`. A
    study that lists others gets no heads from this site."""
    heads_may_leave: tuple[LocalKind, ...] = ("svm_linear", "logistic", "lda", "naive_bayes", "nearest_mean")
    """Kinds of this site's own heads that may go to other sites, in studies that ask for it (`travels`). Those that
    stand here by default are made of sums over a class's images. `svm_rbf`, `knn`, `random_forest` and
    `gradient_boosting` are made of features of single patients, which leave with the head. `[]`: none."""
    max_mib_down: Annotated[float, Field(gt=0)] | None = None
    """Largest plan in MiB (2**20 bytes); a round has one."""
    max_mib_up: Annotated[float, Field(gt=0)] | None = None
    """Largest answer in MiB."""
    hours: Hours | None = None
    """When plans are taken. One that was taken in time is finished, however long it takes."""
    timezone: str | None = None
    """Of `hours` and of a day, such as `Europe/Berlin`. None: the trainer's own, which is UTC in most
    containers."""
    ask: bool = False
    """A study waits until a person at this site has approved it."""

    @field_validator("timezone")
    @classmethod
    def _timezone_exists(cls, timezone: str | None) -> str | None:
        try:
            return None if timezone is None else ZoneInfo(timezone).key
        except (OSError, ValueError, KeyError):
            raise ValueError(f"found {timezone!r}, expected a name such as Europe/Berlin or UTC") from None
