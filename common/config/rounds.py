"""Settings of the rounds: sites, deadlines, selection of the best model, image overlap."""

from collections import Counter
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.config.types import MOST_NAMES, Name, Positive
from common.settings import Frozen


class SitesConfig(Frozen):
    """Sites that take part, by name."""

    train: Annotated[tuple[Name, ...], Field(min_length=1, max_length=MOST_NAMES)]
    """Sites that train, and score the model on their own validation and test images."""
    evaluate: Annotated[tuple[Name, ...], Field(max_length=MOST_NAMES)] = ()
    """Sites that only score the model: a test set, an unseen domain."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Rounds between two scorings: 3 means rounds 1, 4, 7, and always the weights of the last round. Sites train in
    every round."""
    per_round: Annotated[int, Field(ge=1)] | None = None
    """Training sites that are asked in one round, drawn again for each with the study's seed. None: all of them. Every
    site is asked in the closing evaluation."""
    required: Annotated[int, Field(ge=1)] | None = None
    """Fewest training sites whose updates make a round; None: all that are asked."""
    evaluate_missing: Literal["incomplete", "fail", "pass"] = "incomplete"
    """What it means if a site in `evaluate` does not score the final model. `incomplete`: the study ends as
    `finished, incomplete`, with exit code 3. `fail`: it ends as failed, before round 1 if the site does not enrol,
    and during training if the site stays without a score for longer than `deadlines.repeats` scorings in a row.
    `pass`: it ends as finished. The report names the site in each case."""

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
        if self.per_round is not None and self.per_round > len(self.train):
            raise ValueError(
                f"per_round={self.per_round} can never be drawn from {len(self.train)} training site(s); lower it or "
                "name more sites"
            )
        if self.required is not None and self.required > self.num_per_round:
            raise ValueError(
                f"required={self.required} can never be met by the per_round={self.per_round} sites of a round; lower "
                "the first or raise the second"
            )
        return self

    @property
    def quorum(self) -> int:
        """Fewest training sites whose updates make a round."""
        return self.num_per_round if self.required is None else self.required

    @property
    def num_per_round(self) -> int:
        """Training sites that are asked in one round."""
        return len(self.train) if self.per_round is None else self.per_round

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
    """Seconds from the quorum to the end of the round."""


class Percentile(Frozen):
    """Once the quorum has answered, the others have a time that follows from earlier rounds."""

    kind: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, le=100)] = 90
    """Percentile of the answering times of all sites in the last five rounds. The first round waits for all."""
    factor: Annotated[float, Field(ge=1)] = 1.5
    """Factor for that percentile."""


Grace: TypeAlias = Annotated[WaitForAll | CutOff | Percentile, Field(discriminator="kind")]


class DeadlinesConfig(Frozen):
    """How long the server waits for answers, in seconds, and what it does when they are missing."""

    enrol_s: Positive = 300
    """Seconds for sites to connect and describe themselves."""
    approval_s: Annotated[float, Field(ge=0)] | None = 7 * 24 * 3600
    """Seconds for people to approve the study at the sites whose policy asks for that (`ask`), and for sites that
    are closed to open (`hours`). The default is 7 days. A site that has not answered by then misses the study.
    0: no site is waited for. None: the study waits as long as it takes."""
    approval_after_quorum_s: Annotated[float, Field(ge=0)] | None = None
    """Seconds for the other sites once `sites.required` training sites have agreed. None: they have until the end
    of `approval_s`, too."""
    round_s: Positive = 3600
    """Seconds for sites to train and answer, in each round."""
    evaluate_s: Positive = 1800
    """Seconds for the last, evaluate-only round."""
    grace: Grace = WaitForAll()
    """How long a round waits for the rest once it has enough. Which sites are in a round then depends on
    their speed, so a study with it is only repeatable on `all`."""
    repeats: Annotated[int, Field(ge=0)] = 1
    """How often a round without a quorum is repeated before the study fails. Only sites that failed or
    did not answer get the plan again. Answers that arrived are kept, and a refused update would be the same."""
    repeat_after_s: Annotated[float, Field(ge=0)] = 10
    """Seconds before a repetition, so that a broken connection or machine can recover."""


class SelectionConfig(Frozen):
    """Choice of the best round's weights, and early stopping.

    The figure is of validation images, which nothing trains on. The test images are scored once, with the weights
    that were chosen.
    """

    metric: Literal["balanced_accuracy", "accuracy", "f1_macro", "auroc_macro", "loss"] = "balanced_accuracy"
    """Figure over all images of `sites` together. The largest is best, but the smallest `loss`."""
    sites: Annotated[tuple[Name, ...], Field(min_length=1)] | None = None
    """Sites whose validation images decide; None: the training sites that have some. A round in which one is missing
    does not count."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Stop after this many scored rounds without a better one. None: all rounds are run."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """Smallest gain of the figure that counts as an improvement."""


class OverlapConfig(Frozen):
    """Comparison of the sites' images, by hashes that the server cannot invert."""

    on_shared: Literal["fail", "warn"] = "fail"
    """What happens if an `evaluate` site holds an image of a training site, or cannot be compared: the study ends,
    or goes on with a warning."""
