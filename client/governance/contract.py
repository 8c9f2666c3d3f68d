"""The contract of one study at this site: which plans follow from the study that the site knows, and which do not.

A hospital agrees to a study, not to a server's questions. So every plan is compared with the study before anything
is computed. A site that only scores never trains. Rounds go forward, up to the number that the study says. Each
round has one question: the same weights may be asked about again, since the answer is the same, others may not.
The test images are scored for one set of weights, which was shown as those after one of the rounds, unless the study
says that its curves are of test images.
Heads, their steps and their views follow from `study.heads`. The first question of any kind decides; what was
answered is kept on the site's disk, so that a restart forgets nothing.

What is asked is remembered as a hash. Nothing here depends on the site's policy; `policy.py` adds what a hospital
restricts beyond the study.
"""

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, assert_never

from pydantic import Field, JsonValue

from client.governance import head_contract
from common import wire
from common.config import Scaffold
from common.errors import PolicyRefusal
from common.files import read_json, write_json
from common.settings import Frozen
from common.weights import Arrays, digest
from common.wire import head_steps, questions

FILE = "contract.json"
CONTRACT = "contract: "
"""Start of the reason of a refusal because a plan does not follow from its study."""
_FORMS = 2
"""Forms in which one question about heads is answered: a server fits the heads again after a site dropped out."""


class Agreed(Frozen):
    """What one run of a study has been asked so far."""

    run: Annotated[int, Field(ge=0)] = 0
    """Runs of the study from its first round, this one included; 0 before the first enrolment."""
    approval: str = ""
    """The approval that the runs are counted under."""
    questions: dict[int, str] = {}  # noqa: RUF012  (pydantic copies it)
    """By round: hash of the weights and of what was to be done with them."""
    weights: dict[int, str] = {}  # noqa: RUF012
    """By round: digest of the weights after it, as a question of the next round or a head showed them."""
    tested: str = ""
    """Digest of the weights that the test images were scored with at the end; empty before that."""
    resampled: str = ""
    """Digest of the weights whose test came with sums over patients, for intervals; empty before that."""
    heads: dict[str, tuple[str, ...]] = {}  # noqa: RUF012
    """By question about heads: hashes of the forms in which it was asked."""
    ended: int | None = None
    """Round of the weights that a study ended with, if it is not its last one, as heads on them showed it."""


class Contract:
    """The plans of one study that this site has agreed to. Kept in the study's folder."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / FILE
        self._agreed = read_json(self._path, Agreed) or Agreed()

    def starts_again(self, plan: wire.Plan) -> bool:
        """True if the plan begins the study again although rounds of it were answered.

        After round 1 alone it is the same run: a server that was killed before its first checkpoint asks the same.
        """
        answered = max(self._agreed.questions, default=0)
        return isinstance(plan, wire.ApprovalPlan | wire.EnrolPlan) and plan.first_round == 1 and answered > 1

    @property
    def num_answered(self) -> int:
        """Rounds of this run that were answered."""
        return len(self._agreed.questions)

    def has_shown(self, weights: str) -> bool:
        """Whether a round or a test of this site was of weights with this digest."""
        return weights in (*self._agreed.weights.values(), self._agreed.tested)

    def runs_under(self, approval: str) -> int:
        """Runs that were begun under this approval."""
        return self._agreed.run if self._agreed.approval == approval else 0

    def check(self, plan: wire.Plan, arrays_digest: str) -> None:
        """Raise PolicyRefusal for a plan that does not follow from the study and what was answered before.

        `arrays_digest` is the plan's: hashing a large model takes seconds, so it is done once.
        """
        problems = list(self._problems(plan, arrays_digest))
        if problems:
            text = "; ".join(problems)
            raise PolicyRefusal(
                f"the plan does not follow from its study: {text}", reason=f"{CONTRACT}{text}"
            )

    def keep(self, plan: wire.Plan, arrays_digest: str, approval: str = "") -> None:
        """Remember the question, before it is answered. Raises StorageError."""
        agreed = self._agreed
        match plan:
            case wire.EnrolPlan():
                runs = self.runs_under(approval)
                if self.starts_again(plan):
                    agreed = Agreed(run=runs + 1, approval=approval)
                else:
                    agreed = agreed.model_copy(update={"run": max(runs, 1), "approval": approval})
            case wire.RoundPlan():
                shown = {plan.round - 1: arrays_digest}
                asked = {} if _only_tests(plan) else {plan.round: questions.of_round(plan, arrays_digest)}
                agreed = agreed.model_copy(
                    update={
                        "questions": {**agreed.questions, **asked},
                        "weights": {**agreed.weights, **shown},
                        "tested": arrays_digest if _tests(plan) else agreed.tested,
                        "resampled": arrays_digest if wire.asks_for_replicates(plan) else agreed.resampled,
                    }
                )
            case wire.HeadPlan():
                agreed = agreed.model_copy(
                    update={
                        "heads": _with(agreed.heads, _head_questions(plan)),
                        "weights": {**agreed.weights, plan.round: plan.weights_digest},
                        "ended": agreed.ended if head_contract.is_due(plan) else plan.round,
                        "tested": plan.weights_digest if _tests(plan) else agreed.tested,
                    }
                )
            case wire.ApprovalPlan() | wire.OverlapPlan() | wire.MaskPlan():
                pass
            case _:
                assert_never(plan)
        if agreed != self._agreed:
            write_json(self._path, agreed)
            self._agreed = agreed

    # --- what does not follow ----------------------------------------------------------------

    def _problems(self, plan: wire.Plan, arrays_digest: str) -> Iterator[str]:
        study = plan.study
        if plan.site not in study.sites.all:
            yield "the study does not name this site"
            return
        if isinstance(plan, wire.ApprovalPlan | wire.EnrolPlan):
            yield from self._enrolment(plan)
            return
        if self._agreed.run == 0:
            yield "this site has not been enrolled in the study"
            return
        match plan:
            case wire.RoundPlan():
                yield from self._round(plan, arrays_digest)
            case wire.HeadPlan():
                yield from self._heads(plan)
            case wire.OverlapPlan():
                if study.overlap is None:
                    yield "the study compares no images"
            case wire.MaskPlan():
                yield from self._masks(plan)
            case _:
                assert_never(plan)

    def _enrolment(self, plan: wire.ApprovalPlan | wire.EnrolPlan) -> Iterator[str]:
        study = plan.study
        if isinstance(plan, wire.EnrolPlan) and plan.want_weights and plan.site not in study.sites.train:
            yield "first weights are asked of a site that only scores"
        if plan.first_round > study.rounds + 1:
            yield f"round {plan.first_round} would come next, of {study.rounds}"

    def _round(self, plan: wire.RoundPlan, arrays_digest: str) -> Iterator[str]:
        study, answered = plan.study, self._agreed.questions
        if plan.train and plan.site not in study.sites.train:
            yield "a site that only scores is asked to train"
        last = study.rounds if self._agreed.ended is None else self._agreed.ended
        last = last if plan.train else last + 1
        before = answered.get(plan.round)
        if plan.round > last and before is None:
            yield f"round {plan.round} is asked for, of {last if plan.train else last - 1}"
        if (plan.class_counts is not None) != (plan.train and study.local.needs_class_counts):
            yield "counts of all sites' classes come along or are missing, against the study"
        elif plan.class_counts is not None and len(plan.class_counts) != len(study.classes):
            yield f"counts of {len(plan.class_counts)} classes come along, of {len(study.classes)}"
        has_masks = study.secure_aggregation is not None and plan.site in study.sites.train
        if (plan.envelopes is not None) != has_masks:
            yield "masks come along or are missing, against the study"
        if plan.control >= plan.round:
            yield f"round {plan.round} is to go on from round {plan.control}"
        corrects = isinstance(study.algorithm, Scaffold) and plan.train and plan.round > 1
        if (plan.control or plan.control_variate) and not corrects:
            yield "a control variate comes along, and the study has none in this round"
        given = study.start_from
        if plan.round == 1 and given is not None and arrays_digest != given.sha256:
            yield "the first weights are not those that the study starts from"
        yield from self._tested_once(plan, arrays_digest)
        is_new = self._agreed.resampled not in ("", arrays_digest)
        if is_new and wire.asks_for_replicates(plan) and not _tests(plan):  # else it was said above
            yield "sums over test patients were asked for before, with other weights"
        known = self._agreed.weights.get(plan.round - 1)
        if _only_tests(plan):  # after the rounds, of the weights that were chosen among them
            if known is not None and known != arrays_digest:
                yield f"the weights are not those after round {plan.round - 1}"
            return
        if before is not None and before != questions.of_round(plan, arrays_digest):
            yield f"round {plan.round} was answered before, to another question"
        if before is None and answered and plan.round < max(answered):
            yield f"round {plan.round} is asked for after round {max(answered)}"
        if plan.train and before is None and self._agreed.tested:
            yield f"round {plan.round} is to be trained after the test images were scored"
        if before is None and known is not None and known != arrays_digest:
            yield f"the heads after round {plan.round - 1} were fitted on other weights"

    def _masks(self, plan: wire.MaskPlan) -> Iterator[str]:
        """The masks themselves have rules of their own (`client/masking/session.py`)."""
        study, last = plan.study, max(self._agreed.questions, default=0)
        if study.secure_aggregation is None or plan.site not in study.sites.train:
            yield "the study has no masks for this site"
        if isinstance(plan.step, wire.CensusStep) and plan.phase != "census":
            yield "counts of images are asked for under the masks of a round"
        if plan.phase == "heads":
            if study.heads is None:
                yield "masks for heads are asked for, and the study fits none"
            return
        if plan.phase == "census":
            if plan.round != 1 or last > 1:
                yield f"the census comes once, before round 1, and is asked for as of round {max(plan.round, last)}"
            return
        first, end = (1 if plan.phase == "test" else last), study.rounds + (plan.phase != "training")
        if not first <= plan.round <= end:
            yield f"masks of round {plan.round} are asked for after round {last}, of {end}"

    def _tested_once(self, plan: wire.RoundPlan | wire.HeadPlan, weights: str) -> Iterator[str]:
        """What of a question about test images would look at them before or beside the end of the study."""
        if not _tests(plan):
            return
        if isinstance(plan, wire.RoundPlan) and plan.train:
            yield "test images are to be scored in a round, and the study chooses by validation images"
        if self._agreed.tested not in ("", weights):
            yield "the test images were scored before, with other weights"

    def _heads(self, plan: wire.HeadPlan) -> Iterator[str]:
        if plan.study.heads is None:
            yield "the study fits no heads"
            return
        if plan.round > plan.study.rounds:
            yield f"heads after round {plan.round} are asked for, of {plan.study.rounds}"
        elif not head_contract.is_due(plan) and not self._may_have_ended(plan):
            yield f"heads after round {plan.round} are asked for, and none are due then"
        has_masks = plan.study.secure_aggregation is not None and plan.site in plan.study.sites.train
        if (plan.envelopes is not None, plan.mask_number > 0) != (has_masks, has_masks):
            yield "masks come along or are missing, against the study"
        known = self._agreed.weights.get(plan.round)
        if known is not None and known != plan.weights_digest:
            yield f"the weights are not those after round {plan.round}"
        given = plan.study.start_from
        if plan.round == 0 and given is not None and plan.weights_digest != given.sha256:
            yield "the weights are not those that the study starts from"
        yield from self._tested_once(plan, plan.weights_digest)
        yield from head_contract.problems(plan, plan.study.heads)
        # A search has as many points as the study says at most; the same point may come again.
        most = dict(head_contract.most_points(plan))
        for name, question in _head_questions(plan):
            asked = len({*self._agreed.heads.get(name, ()), question})
            what = name.rpartition(" ")[0]
            search = what.removeprefix(head_contract.POINT)
            if not name.startswith(head_contract.POINT):
                if asked > _FORMS:
                    yield f"{what} was asked for before, in another form"
            elif search in most and asked > most[search]:
                yield f"more than {most[search]} points of {search} are asked for"

    def _may_have_ended(self, plan: wire.HeadPlan) -> bool:
        """Whether the study can have ended with the weights after this round, by its selection: that is once, with the
        weights that were tested or with the last ones, and no round follows.
        """
        agreed, selection = self._agreed, plan.study.selection
        if selection is None or agreed.ended not in (None, plan.round):
            return False
        are_last = max(agreed.questions, default=0) <= plan.round + 1
        return agreed.tested == plan.weights_digest or (selection.patience is not None and are_last)


def _tests(plan: wire.RoundPlan | wire.HeadPlan) -> bool:
    """Whether the plan has test images scored, in a study that does so once."""
    if plan.study.curves_on == "test":
        return False
    if isinstance(plan, wire.RoundPlan):
        return "test" in plan.score
    return isinstance(plan.step, head_steps.ScoreStep) and plan.step.side == "test"


def _only_tests(plan: wire.RoundPlan) -> bool:
    """Whether the plan is the test of weights that were chosen."""
    return not plan.train and plan.score == ("test",)


def _head_questions(plan: wire.HeadPlan) -> Iterator[tuple[str, str]]:
    """Questions of a head plan: the name of each, with the weights that it is about, and its hash."""
    for name, what, arrays in head_contract.questions(plan):
        yield f"{name} {plan.weights_digest}", _hash(what, _digest(arrays))


def _with(
    before: dict[str, tuple[str, ...]], questions: Iterator[tuple[str, str]]
) -> dict[str, tuple[str, ...]]:
    after = dict(before)
    for name, question in questions:
        after[name] = tuple(dict.fromkeys((*after.get(name, ()), question)))
    return after


def _digest(arrays: Arrays) -> str:
    return digest(arrays) if arrays else ""


def _hash(*what: JsonValue) -> str:
    return hashlib.sha256("\x1f".join(map(str, what)).encode()).hexdigest()[:32]
