"""Settings of the rounds: sites, deadlines, selection of the best model, image overlap."""

from collections import Counter
from typing import Annotated, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from common.config.types import Name, Positive
from common.settings import Frozen


class SitesConfig(Frozen):
    """Who takes part, by name."""

    train: Annotated[tuple[Name, ...], Field(min_length=1)]
    """Sites that train, and score the model on their own test images."""
    evaluate: tuple[Name, ...] = ()
    """Sites that only score the model: a test set, an unseen domain."""
    evaluate_every: Annotated[int, Field(ge=1)] = 1
    """Sites that only score are asked in the first of every this many rounds, and always at the end."""
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
    """Time from the quorum to the end of the round."""


class Percentile(Frozen):
    """Once the quorum has answered, the others have as long as rounds used to take, and a bit."""

    kind: Literal["percentile"] = "percentile"
    percentile: Annotated[float, Field(gt=0, le=100)] = 90
    """Which percentile of the answering times of all sites in the last five rounds. The first round waits
    for all."""
    factor: Annotated[float, Field(ge=1)] = 1.5
    """Factor for that percentile."""


Grace: TypeAlias = Annotated[WaitForAll | CutOff | Percentile, Field(discriminator="kind")]


class DeadlinesConfig(Frozen):
    """How long the server waits before it names who is missing, in seconds, and what it does then."""

    enrol_s: Positive = 300
    """For sites to connect and describe themselves."""
    round_s: Positive = 3600
    """For sites to train and answer, in each round."""
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
    """Stop after this many scored rounds without a better one. None: all rounds are run."""
    min_gain: Annotated[float, Field(ge=0)] = 0.0
    """Smallest gain that counts as one."""


class OverlapConfig(Frozen):
    """Whether sites hold the same images, which they find out by hashes that the server cannot undo."""

    on_shared: Literal["fail", "warn"] = "fail"
    """What becomes of a study whose `evaluate` site holds an image of a training site, or cannot be compared."""
