"""The training sites of a federated fit: their sums, one by one or under masks, and how much each counts."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from common import wire
from common.config import StudyConfig
from common.masking.tables import TRAIN
from common.weights import Arrays
from common.wire import head_steps
from server.aggregation.update import limited_weights
from server.heads.calls import HeadCalls, Shapes
from server.heads.masked import MaskedSums, SumRefusedError
from server.heads.sums import ALL, Part, parts_of, usual_width, width_of


class TooFewError(Exception):
    """A head could not be fitted: too few answers. The text is for the report."""


@dataclass
class TrainingSites:
    """The training sites that have answered every step so far, and what they are asked for."""

    study: StudyConfig
    calls: HeadCalls
    names: Sequence[str]
    masks: MaskedSums | None
    """How sums are asked for in a study with secure aggregation."""

    def parts(
        self,
        step: head_steps.StatisticsStep | head_steps.GradientsStep,
        arrays: Arrays,
        shapes: Shapes,
        wrong: Callable[[Part], str | None],
    ) -> list[Part]:
        """What is added up: the sums of each site, or under masks those of all together. `wrong` says why no images
        have these sums. Raises TooFewError.
        """
        if self.masks is not None:
            return [self._under_masks(self.masks, step, arrays, shapes, wrong)]
        admit = self.calls.admit_training(
            shapes, lambda site, answer: wrong(Part(site, self._counts(site), answer.arrays))
        )
        answers = self.calls.ask(self.names, step, arrays, admit)
        if isinstance(step, head_steps.StatisticsStep):
            answers = self.of_usual_width(step, answers, step.views[0].name)
        else:
            self._keep_only(answers)
        return parts_of(answers)

    def _under_masks(
        self,
        masks: MaskedSums,
        step: head_steps.HeadStep,
        arrays: Arrays,
        shapes: Shapes,
        wrong: Callable[[Part], str | None],
    ) -> Part:
        try:
            total = masks.training(self.names, step, arrays, shapes)
        except SumRefusedError as refused:
            raise TooFewError(str(refused)) from refused
        part = Part(ALL, total.counts(TRAIN), total.arrays())
        if (reason := wrong(part)) is not None:
            raise TooFewError(
                f"the masked sum of {', '.join(total.sites)} is of no images, so a site sent wrong numbers: {reason}"
            )
        self.names = total.sites
        return part

    def of_usual_width(
        self, step: head_steps.StatisticsStep, answers: dict[str, wire.HeadAnswer], view: str
    ) -> dict[str, wire.HeadAnswer]:
        """The answers whose features have the width of most. Raises TooFewError."""
        self._keep_only(answers)
        width = usual_width(answers, view)
        for site, answer in list(answers.items()):
            if (actual := width_of(answer, view)) != width:
                self.calls.leave_out(
                    site, step, f"its features have width {actual}, expected {width} as at most sites"
                )
                del answers[site]
        self._keep_only(answers)
        return answers

    def _counts(self, site: str) -> tuple[int, ...]:
        return self.calls.cohort.enrolments[site].train_counts

    def factors(self, counts: Sequence[tuple[int, ...]]) -> list[float]:
        """Weight of each site's sums, by its training images by class: 1 but for a site whose share of the images is
        beyond the study's limit.
        """
        return limited_weights([sum(counts_C) for counts_C in counts], self.study.largest_share_of_sums)

    def _keep_only(self, answers: Mapping[str, wire.HeadAnswer]) -> None:
        """Go on with the sites that answered. Raises TooFewError if they are no quorum."""
        missing = [site for site in self.names if site not in answers]
        self.names = [site for site in self.names if site in answers]
        if len(self.names) < self.study.sites.quorum:
            raise TooFewError(
                f"{len(self.names)} training site(s) answered, {self.study.sites.quorum} are required"
                + (f"; {', '.join(missing)} did not" if missing else "")
            )
