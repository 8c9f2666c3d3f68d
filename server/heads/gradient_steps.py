"""The searches of federated heads, which take gradients of all sites: one message for a step of all of them.

A search ends by itself, and the others go on with smaller messages. If a site is lost on the way, the sums are of other
images from then on, so each search begins again at the point that it has reached.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from common import log
from common.config.heads import Iterated
from common.heads import Floats, View, under
from common.weights import Array
from common.wire import head_steps
from server.heads import bounds
from server.heads.search import Searches
from server.heads.solvers import Statistics
from server.heads.sums import Part, weighed
from server.heads.training_sites import TooFewError, TrainingSites


@dataclass(frozen=True)
class GradientSteps:
    """Asks the training sites for losses and gradients until every search has ended."""

    sites: TrainingSites
    num_classes: int
    spreads: Mapping[str, Mapping[str, Floats]]
    """By head and site: its sums of squares, which bound the gradients that it can have."""

    def searched(
        self, heads: Sequence[Iterated], views: Mapping[str, View], sums: Mapping[str, Statistics]
    ) -> dict[str, Floats | str]:
        """By head: the point where its search ended (D + 1, C), or why it has none."""
        running = {head.title: Searches.begin(head, sums[head.title]) for head in heads}
        done: dict[str, Searches] = {}
        try:
            while running:
                running = self._stepped(running, views)
                for title, searches in list(running.items()):
                    if searches.finished:
                        done[title] = running.pop(title)
                        log.event(f"heads  federated.{title}: {done[title].summary}")
        except TooFewError as few:
            return {
                head.title: done[head.title].points_PC if head.title in done else str(few) for head in heads
            }
        return {title: searches.points_PC for title, searches in done.items()}

    def _stepped(self, running: Mapping[str, Searches], views: Mapping[str, View]) -> dict[str, Searches]:
        """Each search one step on. Raises TooFewError."""
        arrays: dict[str, Array] = {}
        shapes: dict[str, tuple[int | None, ...]] = {}
        for title, searches in running.items():
            trial_PC = searches.trial_PC
            arrays |= {f"points/{title}": trial_PC, **under(f"view/{title}", views[title].arrays())}
            num_losses = self.num_classes if searches.per_class else 1
            shapes |= {f"losses/{title}": (num_losses,), f"gradients/{title}": trial_PC.shape}
        objectives = tuple(
            head_steps.Objective(
                name=title,
                loss="squared_hinge" if searches.per_class else "softmax",
                fourier=views[title].fourier,
                class_weights=tuple(searches.weights_C.tolist()),
            )
            for title, searches in running.items()
        )
        before = self.sites.names
        step = head_steps.GradientsStep(objectives=objectives)
        parts = self.sites.parts(step, arrays, shapes, partial(self._wrong_gradients, objectives))
        factors = self.sites.factors([part.train_counts for part in parts])
        # The sums are of other images now: the searches restart from their points.
        if self.sites.names != before:
            return {title: searches.restarted() for title, searches in running.items()}
        return {
            title: searches.evaluated(
                weighed((part.arrays[f"losses/{title}"] for part in parts), factors),
                weighed((part.arrays[f"gradients/{title}"] for part in parts), factors),
            )
            for title, searches in running.items()
        }

    def _wrong_gradients(self, objectives: Sequence[head_steps.Objective], part: Part) -> str | None:
        for objective in objectives:
            wrong = bounds.wrong_gradient(
                part.arrays[f"losses/{objective.name}"],
                part.arrays[f"gradients/{objective.name}"],
                objective,
                part.train_counts,
                self.spreads.get(objective.name, {}).get(part.site),
            )
            if wrong is not None:
                return wrong
        return None
