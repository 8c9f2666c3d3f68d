"""Heads that travel: the training sites' own heads are collected, checked, and sent to every site to be scored.

A head that its owner keeps, or that is no such head, is named with the reason, and the others go on. The server
passes the arrays on and writes none of them to a file: they may hold features of patients. A site that drops out after
it sent its head is no reason to leave the head out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

from common import wire
from common.config import StudyConfig
from common.config.heads import HeadProblem, LocalHead
from common.errors import UpdateRejected, WireError
from common.heads import below, travelling, under
from common.heads.travelling import FITTED, LARGEST_TOGETHER, Travelling
from common.weights import Array, Arrays, num_bytes
from common.wire import head_steps
from server.heads.calls import HeadCalls

_MIB = 2**20


@dataclass
class Travelled:
    """Heads that left their sites."""

    heads: tuple[Travelling, ...] = ()
    arrays: dict[str, Array] = field(default_factory=dict)
    """`head/TITLE/...` of each."""
    lacking: dict[str, str] = field(default_factory=dict)
    """By title of a head that did not come: why."""


def collect(study: StudyConfig, calls: HeadCalls, trainers: Sequence[str]) -> Travelled:
    """Every head of the study that travels, of every training site."""
    asked = travelling.asked(study.heads)
    if not asked:
        return Travelled()
    step = head_steps.TravelStep(heads=tuple(head.title for head in asked))

    def admit(site: str, answer: wire.HeadAnswer) -> None:
        calls.admit_training({})(site, answer)
        titles = [Travelling(name=head.title, owner=site).title for head in asked]
        if any(result.title not in titles or result.problem is None for result in answer.results):
            raise UpdateRejected("it answered about heads that it was not asked for")

    answers = calls.ask(trainers, step, {}, admit)
    found = Travelled()
    for site in study.sites.train:
        for head in asked:
            one = Travelling(name=head.title, owner=site)
            answer = answers.get(site)
            if answer is None:
                found.lacking[one.title] = (
                    f"{site} did not send it ({calls.problems.get(site, 'not in the study')})"
                )
                continue
            problem = {result.title: result.problem for result in answer.results}.get(one.title)
            arrays = below(f"{FITTED}/{head.kind}/{head.title}", answer.arrays)
            reason = _wrong(head, site, problem, arrays, len(study.classes), num_bytes(found.arrays))
            if reason is not None:
                found.lacking[one.title] = reason
                continue
            found.heads = (*found.heads, one)
            found.arrays |= under(f"head/{one.title}", arrays)
    return found


def _wrong(
    head: LocalHead,
    site: str,
    problem: HeadProblem | None,
    arrays: Arrays,
    num_classes: int,
    bytes_before: int,
) -> str | None:
    """Why a head is not passed on, or None."""
    if problem == "may_not_leave":
        return (
            f"{site}'s policy does not let a {head.kind} leave; {site} would have to list it in "
            "policy.heads_may_leave, or take a kind that is made of sums"
        )
    if problem == "too_large":
        return (
            f"it has more than {travelling.LARGEST_HEAD // _MIB} MiB; fewer principal components (`pca`) or trees make "
            "it smaller"
        )
    if problem is not None:
        return f"{site} could not fit it ({problem.replace('_', ' ')})"
    try:
        travelling.read(head, arrays, num_classes)
    except WireError as error:
        return f"what {site} sent is no such head: {error}"
    if bytes_before + num_bytes(arrays) > LARGEST_TOGETHER:
        return (
            f"with those before it, the heads have more than {LARGEST_TOGETHER // _MIB} MiB, which every site would "
            "receive; let fewer heads travel"
        )
    return None
