"""Sums for heads under masks: each step is opened as one sum of all sites, and no site's own part is seen.

Each step has masks of its own, with a number that grows. All sums are of the same sites, those of the first one: heads
are of the same images in each step, so two sums of different sites would show the difference. A site that is lost
before the first sum is opened is left out. A later one is asked again, and without it there are no heads until it is
back. Sites refuse anything else (`client/masking/session.py`).

The number of the last sum and its sites are on disk, so that a server that is started again goes on with the next one.
"""

import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from common import wire
from common.errors import QuorumNotMet, UpdateRejected
from common.masking.stream import Words
from common.masking.tables import (
    OUTLIERS,
    SCORES,
    TRAIN,
    UNSCORED,
    image_sums,
    num_words,
    opened_sum,
    pooled_score,
)
from common.metrics import NUM_BINS, Score
from common.weights import Array, Arrays, digest
from common.wire import head_steps, questions
from server.aggregation.masked_tables import MaskedTables
from server.heads.calls import HeadCalls, Shapes
from server.rounds.masked_round import HEADS_AGAIN, MaskedRound, last_of_heads


class SumRefusedError(Exception):
    """A site of the sums for heads does not take part in a step, by its policy. The text is for the report."""


@dataclass(frozen=True)
class Total:
    """The opened sum of one step."""

    sites: tuple[str, ...]
    sums: Mapping[str, Words]
    num_bins: int = NUM_BINS
    """Fewest bins that a site rounds probabilities to."""

    def counts(self, name: str) -> tuple[int, ...]:
        """A table of images. Raises QuorumNotMet for numbers that are none."""
        try:
            return image_sums(self.sums[name], len(self.sites))
        except ValueError as error:
            raise self._wrong(error) from error

    def arrays(self) -> dict[str, Array]:
        """The sums over training images. Raises QuorumNotMet for numbers that are none."""
        try:
            return {
                name: opened_sum(words, len(self.sites)) for name, words in self.sums.items() if name != TRAIN
            }
        except ValueError as error:
            raise self._wrong(error) from error

    def score(self, title: str, num_classes: int) -> Score:
        """A head's score. Raises QuorumNotMet for numbers that are none."""
        try:
            return pooled_score(self.sums[f"{SCORES}/{title}"], num_classes, self.num_bins)
        except ValueError as error:
            raise self._wrong(error) from error

    def _wrong(self, error: ValueError) -> QuorumNotMet:
        return QuorumNotMet(
            f"heads: the masked sum of {', '.join(self.sites)} is of no such numbers ({error}): a site sent wrong "
            "shares or wrong numbers"
        )


class MaskedSums:
    """Asks for the steps of one study's heads under masks, one sum a step."""

    def __init__(
        self,
        calls: HeadCalls,
        pause: Callable[[float], None] = time.sleep,
        record: Path | None = None,
    ) -> None:
        """`record` is that of `MaskedRound`. Raises StorageError."""
        self._calls, self._pause, self._record = calls, pause, record
        self._number, self._sites = last_of_heads(calls.study, record)

    def training(
        self, names: Collection[str], step: head_steps.HeadStep, arrays: Arrays, shapes: Shapes
    ) -> Total:
        """Sums over training images: arrays of these shapes, and `TRAIN`. Raises what `ask` raises."""
        forms = {name: (2, *shape) for name, shape in shapes.items()}
        return self._ask(names, step, arrays, {TRAIN: (len(self._calls.study.classes),), **forms})

    def scores(self, names: Collection[str], step: head_steps.ScoreStep, arrays: Arrays) -> Total:
        """A table of each head, and `UNSCORED`. Raises what `ask` raises."""
        words = num_words(len(self._calls.study.classes))
        tables = {f"{SCORES}/{head.title}": (words,) for head in step.heads}
        return self._ask(names, step, arrays, {UNSCORED: (len(step.heads),), **tables})

    def outliers(self, names: Collection[str], arrays: Arrays) -> Total:
        """The table `OUTLIERS`. Raises what `ask` raises."""
        return self._ask(names, head_steps.OutliersStep(), arrays, {OUTLIERS: (NUM_BINS,)})

    def _ask(
        self, names: Collection[str], step: head_steps.HeadStep, arrays: Arrays, shapes: Shapes
    ) -> Total:
        """The sum over all sites that answer, or over those of the first sum. Raises QuorumNotMet if they are too few,
        and SumRefusedError if a site's policy keeps it from a later sum.
        """
        study = self._calls.study
        number = self._number + 1
        masks = MaskedRound(study, self._calls.sites, number, self._pause, self._record, "heads")
        asked = self._sites or tuple(sorted(names))
        masks.prepare(asked, all_of_them=bool(self._sites))
        self._calls.num_messages += 3  # keys, shares and the opening
        answers: dict[str, wire.HeadAnswer] = {}
        before = dict(self._calls.problems)
        self._calls.refusing.clear()
        for attempt in range(study.deadlines.repeats + 1):
            silent = masks.envelopes.keys() - answers.keys() - self._calls.refusing
            if not silent:
                break
            if attempt:
                self._pause(study.deadlines.repeat_after_s)
            answers |= self._calls.ask(
                silent,
                step,
                arrays,
                lambda _, answer: _admit(answer, step, shapes),
                (number, masks.envelopes),
            )
        for site in answers.keys() - before.keys():
            self._calls.problems.pop(site, None)  # it answered when it was asked again
        answers = self._of_one_form(step, answers)
        survivors = tuple(sorted(answers))
        self._require(number, survivors)
        tables = MaskedTables()
        for site in survivors:
            tables.add(site, answers[site].arrays)
        question = questions.of_heads(self._calls.round, digest(self._calls.state.weights), step, arrays)
        self._number, self._sites = (
            number,
            survivors,
        )  # from here on the sum counts as opened, at the sites as well
        masks.open(survivors, [tables], question)
        return Total(
            survivors, tables.sums, min(answer.score_bins or NUM_BINS for answer in answers.values())
        )

    def _of_one_form(
        self, step: head_steps.HeadStep, answers: dict[str, wire.HeadAnswer]
    ) -> dict[str, wire.HeadAnswer]:
        """The answers of the most common shapes: the width of the features is not known before the first sum."""
        forms = {
            site: tuple(sorted((name, array.shape) for name, array in answer.arrays.items()))
            for site, answer in answers.items()
        }
        if not forms:
            return answers
        counts = Counter(forms.values())
        usual = max(sorted(counts), key=lambda form: counts[form])
        for site in sorted(forms):
            if forms[site] != usual:
                self._calls.leave_out(site, step, "its features have another width than those of most sites")
        return {site: answer for site, answer in answers.items() if forms[site] == usual}

    def _require(self, number: int, survivors: tuple[str, ...]) -> None:
        missing = sorted(set(self._sites) - set(survivors))
        why = "; ".join(f"{site}: {self._calls.problems.get(site, 'no answer')}" for site in missing)
        if refused := [site for site in missing if site in self._calls.refusing]:
            raise SumRefusedError(
                f"its masked sums are of {', '.join(self._sites)}, and {', '.join(refused)} refused one ({why})"
            )
        if missing:
            raise QuorumNotMet(
                f"heads, step {number}: all masked sums for heads are of {', '.join(self._sites)}, because two "
                f"sums of different sites would show the difference, and {', '.join(missing)} did not answer ({why}). "
                f"{HEADS_AGAIN}"
            )
        study = self._calls.study
        needed = max(study.mask_threshold_of("heads"), study.sites.quorum)
        if len(survivors) < needed:
            reasons = "; ".join(f"{site}: {reason}" for site, reason in sorted(self._calls.problems.items()))
            raise QuorumNotMet(
                f"heads, step {number}: {len(survivors)} site(s) sent masked sums, {needed} are required "
                f"({reasons}). {HEADS_AGAIN}"
            )


def _admit(answer: wire.HeadAnswer, step: head_steps.HeadStep, shapes: Shapes) -> None:
    """Raise UpdateRejected for an answer of another form. Numbers under a mask look random."""
    if answer.train_counts or answer.results or answer.outliers is not None:
        raise UpdateRejected(
            "its counts or scores came without a mask; install the same version on all sides"
        )
    if answer.arrays.keys() != shapes.keys():
        odd = sorted(answer.arrays.keys() ^ shapes.keys())[0]
        raise UpdateRejected(f"{odd[:200]} is missing or was not asked for")
    for name, shape in shapes.items():
        array = answer.arrays[name]
        fits = len(array.shape) == len(shape) and all(
            expected in (None, actual) for actual, expected in zip(array.shape, shape, strict=True)
        )
        if not fits or array.dtype != np.uint64:
            raise UpdateRejected(f"{name} is not masked in the form that the step asks for")
    if (answer.score_bins is not None) != isinstance(step, head_steps.ScoreStep):
        raise UpdateRejected("it does not say how many bins its scores have")
