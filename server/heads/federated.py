"""The steps in which federated heads are fitted: sums, views, exact heads, votes; searches (`gradient_steps.py`).

The messages follow from the heads that the study lists. Sums per class are enough for a nearest mean and naive Bayes.
Discriminants and ridge need second moments, once. Machines and logistic regression need one message per step of their
search, and share these messages. The order in which sites answer does not change a head.

A head that could not be fitted is named with its reason, and the others go on.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal, assert_never

import numpy as np

from common import log, wire
from common.config import NoisySums, StudyConfig
from common.config.heads import (
    FederatedHead,
    HeadsConfig,
    Iterated,
    Lda,
    LinearSvm,
    Logistic,
    NaiveBayes,
    NearestMean,
    RffSvm,
    Ridge,
    Vote,
    candidates,
)
from common.errors import UpdateRejected
from common.heads import FittedHead, Floats, Form, Fourier, HeadForm, View, identity, under
from common.heads.needs import moments_of, noisy_blocks
from common.weights import Array
from common.wire import head_steps
from server.heads import bounds, noisy_sums, solvers
from server.heads.calls import HeadCalls
from server.heads.gradient_steps import GradientSteps
from server.heads.solvers import Statistics
from server.heads.sums import Part, added, weighed
from server.heads.training_sites import TooFewError, TrainingSites

_RAW = "raw"


@dataclass
class FederatedFit:
    """Fits the study's federated heads step by step."""

    study: StudyConfig
    heads: HeadsConfig
    calls: HeadCalls
    sites: TrainingSites

    def __post_init__(self) -> None:
        self.lacking: dict[str, str] = {}
        self.forms: dict[str, FittedHead] = {}
        """Forms of heads of which the best is chosen, by the title of each form."""
        self.discriminant: tuple[View, Statistics] | None = None
        """View and sums of the head that the outlier score is made with."""
        self._spreads: dict[str, dict[str, Floats]] = {}
        """By view and site, or `ALL`: its sums of squares, as its second moments have them."""
        self.num_classes = len(self.study.classes)

    def run(self) -> Iterator[FittedHead]:
        """Every head that could be fitted; `lacking` says why the others could not."""
        points: Mapping[str, Floats | str] = {}
        try:
            if self.study.privacy is not None:
                views, sums = self._with_noise()
                yield from self._fitted(views, sums, points)
                return
            raw = self._statistics({_RAW: (None, self._request(_RAW, squares=True))})[_RAW]
            views = self._views(raw)
            sums = self._sums(raw, views)
        except TooFewError as few:
            self.lacking = {f"federated.{head.title}": str(few) for head in self.heads.federated}
            return
        iterated = [head for head in self.heads.federated if isinstance(head, Iterated)]
        points = GradientSteps(self.sites, self.num_classes, self._spreads).searched(iterated, views, sums)
        yield from self._fitted(views, sums, points)

    def _fitted(
        self,
        views: Mapping[str, View],
        sums: Mapping[str, Statistics],
        points: Mapping[str, Floats | str],
    ) -> Iterator[FittedHead]:
        for head in self.heads.federated:
            title = f"federated.{head.title}"
            try:
                yield self._head(head, title, views[head.title], sums.get(head.title), points)
            except (TooFewError, np.linalg.LinAlgError) as error:
                self.lacking[title] = str(error)
                log.warn(f"heads  no {title}: {error}")

    # --- sums ------------------------------------------------------------------------------

    def _request(
        self,
        name: str,
        *,
        weights_C: Floats | None = None,
        fourier: Fourier | None = None,
        squares: bool = False,
        moments: Literal["none", "float32", "float64"] = "none",
    ) -> head_steps.ViewRequest:
        weights = np.ones(self.num_classes) if weights_C is None else weights_C
        return head_steps.ViewRequest(
            name=name,
            fourier=fourier,
            class_weights=tuple(weights.tolist()),
            squares=squares,
            moments=moments,
        )

    def _statistics(
        self, requests: Mapping[str, tuple[View | None, head_steps.ViewRequest]]
    ) -> dict[str, Statistics]:
        """Sums over all sites, by view. Raises TooFewError."""
        arrays: dict[str, Array] = {}
        shapes: dict[str, tuple[int | None, ...]] = {}
        for name, (view, request) in requests.items():
            width = None if view is None else view.width
            arrays |= {} if view is None else under(f"view/{name}", view.arrays())
            shapes[f"statistics/{name}/sums"] = (self.num_classes, width)
            if request.squares:
                shapes[f"statistics/{name}/squares"] = (self.num_classes, width)
            if request.moments != "none" and width is not None:
                shapes[f"statistics/{name}/moments"] = (width * (width + 1) // 2,)
        step = head_steps.StatisticsStep(views=tuple(request for _, request in requests.values()))
        parts = self.sites.parts(step, arrays, shapes, partial(self._wrong_sums, step.views))
        for name, (_, request) in requests.items():
            if request.moments != "none":
                self._spreads[name] = {
                    part.site: bounds.diagonal_of(part.arrays[f"statistics/{name}/moments"]) for part in parts
                }
        factors = self.sites.factors([part.train_counts for part in parts])
        counts_C = weighed((np.asarray(part.train_counts) for part in parts), factors)
        return {
            name: added([part.arrays for part in parts], request, counts_C, factors)
            for name, (_, request) in requests.items()
        }

    @staticmethod
    def _wrong_sums(requests: Sequence[head_steps.ViewRequest], part: Part) -> str | None:
        for request in requests:
            if (wrong := bounds.wrong_sums(part.arrays, request, part.train_counts)) is not None:
                return wrong
        return None

    def _with_noise(self) -> tuple[dict[str, View], dict[str, Statistics]]:
        """Views and sums by head in a study with privacy, all from one message. Raises TooFewError."""
        assert self.study.privacy is not None
        assert self.study.privacy.heads is not None
        request, blocks = head_steps.noisy_request(self.study), noisy_blocks(self.heads)
        shapes: dict[str, tuple[int | None, ...]] = {
            f"statistics/{_RAW}/{name}": {
                "counts": (self.num_classes,),
                "sums": (self.num_classes, None),
            }.get(name, (None,))
            for name in blocks
        }
        step = head_steps.StatisticsStep(views=(request,))
        admit = self.calls.admit_training(
            shapes, partial(self._wrong_noisy_sums, self.study.privacy.heads, blocks)
        )
        answers = self.sites.of_usual_width(step, self.calls.ask(self.sites.names, step, {}, admit), _RAW)
        noisy = noisy_sums.added(
            [_noisy(answer, blocks) for answer in answers.values()],
            self.sites.factors([answer.train_counts for answer in answers.values()]),
            self.study.privacy.heads,
        )
        if not noisy.present_C.any():
            raise TooFewError("no class has more patients than the noise on their number")
        views = {head.title: noisy.view(head.pca) for head in self.heads.federated}
        return views, {
            head.title: noisy.statistics(views[head.title], balanced=(moments_of(head) or ("", False))[1])
            for head in self.heads.federated
        }

    @staticmethod
    def _wrong_noisy_sums(
        settings: NoisySums, blocks: Sequence[str], _: str, answer: wire.HeadAnswer
    ) -> str | None:
        return noisy_sums.wrong(_noisy(answer, blocks), settings)

    # --- views -----------------------------------------------------------------------------

    def _views(self, raw: Statistics) -> dict[str, View]:
        """By head: the view that scales and reduces the features as the head is set."""
        unreduced = {True: solvers.scaled(raw), False: identity(raw.sums_CD.shape[1])}
        reduced = {head.scale for head in self.heads.federated if head.pca is not None}
        requests = {
            f"pca.{scale}": (unreduced[scale], self._request(f"pca.{scale}", moments="float64"))
            for scale in sorted(reduced)
        }
        moments_by_view = self._statistics(requests) if requests else {}
        views = {}
        for head in self.heads.federated:
            view = unreduced[head.scale]
            moments = moments_by_view.get(f"pca.{head.scale}")
            if head.pca is not None and moments is not None:
                view = solvers.principal(moments, view, head.pca)
            if isinstance(head, RffSvm):
                view = replace(view, fourier=self._fourier(head, raw, view, moments))
            views[head.title] = view
        return views

    def _fourier(self, head: RffSvm, raw: Statistics, view: View, moments: Statistics | None) -> Fourier:
        gamma = head.gamma
        if gamma == "scale":
            gamma = 1 / (view.width * solvers.variance(raw, view, moments))
        return Fourier(seed=self.study.seed % 2**32, gamma=gamma, num_components=head.num_components)

    def _sums(self, raw: Statistics, views: Mapping[str, View]) -> dict[str, Statistics]:
        """By head: the sums that it is fitted from. Equal requests are sent once."""
        sums: dict[str, Statistics] = {}
        requests: dict[str, tuple[View | None, head_steps.ViewRequest]] = {}
        same: dict[str, str] = {}
        for head in self.heads.federated:
            view = views[head.title]
            needed = moments_of(head)
            if needed is None:
                continue
            if needed == ("none", False) and view.components_FK is None:
                sums[head.title] = solvers.moved(raw, view)
                continue
            moments, weighted = needed
            request = self._request(
                head.title,
                weights_C=solvers.balanced(raw.counts_C) if weighted else None,
                fourier=view.fourier,
                squares=isinstance(head, NaiveBayes),
                moments=moments,
            )
            key = f"{head.scale} {head.pca} {request.model_copy(update={'name': ''})}"
            first = next((name for name, other in same.items() if other == key), head.title)
            same[head.title] = key
            if first == head.title:
                requests[head.title] = (view, request)
        if requests:
            answered = self._statistics(requests)
            for title, key in same.items():
                first = next(name for name in requests if same[name] == key)
                sums[title] = answered[first]
                self._spreads[title] = self._spreads.get(first, {})
        return sums

    # --- heads -----------------------------------------------------------------------------

    def _head(
        self,
        head: FederatedHead,
        title: str,
        view: View,
        sums: Statistics | None,
        points: Mapping[str, Floats | str],
    ) -> FittedHead:
        form: Form = "linear"
        if isinstance(head, Vote):
            form, parameters = "vote", self._voted(head, view)
        else:
            assert sums is not None
            match head:
                case NearestMean():
                    parameters = solvers.nearest_mean(sums)
                case NaiveBayes(priors=priors, smoothing=smoothing):
                    form, parameters = "gaussian", solvers.naive_bayes(sums, priors, smoothing)
                case Lda(priors=priors, shrinkage=shares):
                    forms = [solvers.lda(sums, priors, share) for share in shares]
                    self.forms |= {
                        name: FittedHead(HeadForm(title=name, form="linear"), view, form)
                        for name, form in zip(candidates(head), forms, strict=False)
                    }
                    parameters = forms[0]
                    if head == self.study.outlier_head:
                        self.discriminant = view, sums
                case Ridge(alpha=alpha):
                    parameters = solvers.ridge(sums, alpha)
                case LinearSvm() | Logistic() | RffSvm():
                    points_PC = points[head.title]
                    if isinstance(points_PC, str):
                        raise TooFewError(points_PC)
                    parameters = solvers.linear_from(sums, points_PC)
                case _:
                    assert_never(head)
        return FittedHead(HeadForm(title=title, form=form, fourier=view.fourier), view, parameters)

    def _voted(self, head: Vote, view: View) -> dict[str, Floats]:
        name, width = head.title, view.width

        def admit(site: str, answer: wire.HeadAnswer) -> None:
            if answer.results:
                raise UpdateRejected(
                    f"its head for the vote {name} could not be fitted: {answer.results[0].problem}"
                )
            shapes = {
                f"coefficients/{name}/weights": (width, self.num_classes),
                f"coefficients/{name}/bias": (self.num_classes,),
            }
            self.calls.admit_training(shapes)(site, answer)

        step = head_steps.CoefficientsStep(votes=(name,))
        answers = self.calls.ask(self.sites.names, step, under(f"view/{name}", view.arrays()), admit)
        if not answers:
            raise TooFewError("no site has a head to vote with")
        counts = [answer.train_counts for answer in answers.values()]
        images_S = np.multiply([sum(counts_C) for counts_C in counts], self.sites.factors(counts))
        heads = [answer.arrays for answer in answers.values()]
        return {
            "weights": np.stack([arrays[f"coefficients/{name}/weights"] for arrays in heads]).astype(
                np.float64
            ),
            "bias": np.stack([arrays[f"coefficients/{name}/bias"] for arrays in heads]).astype(np.float64),
            "shares": images_S / images_S.sum(),
        }


def _noisy(answer: wire.HeadAnswer, blocks: Sequence[str]) -> dict[str, Array]:
    """The arrays with noise that an answer was asked for."""
    return {name: answer.arrays[f"statistics/{_RAW}/{name}"] for name in blocks}
