"""Fields of the audit log's lines: what came, what left, what was not carried out.

A line never holds a path, a file name or anything about a patient: only what the server sent or gets, sizes,
counts that left, hashes and case numbers.
"""

from collections.abc import Iterable
from typing import assert_never

from pydantic import JsonValue

from client.governance.hash_chain import Fields, sha256
from common import wire
from common.heads import travelling


def received(request: bytes, plan: wire.Plan | wire.Answer | None, arrays_digest: str = "") -> Fields:
    """Of what came from the server; None: it could not be read."""
    size: Fields = {"bytes": len(request), "sha256": sha256(request)}
    match plan:
        case None:
            return {"kind": "unreadable", **size}
        case (
            wire.ApprovalPlan()
            | wire.EnrolPlan()
            | wire.RoundPlan()
            | wire.HeadPlan()
            | wire.OverlapPlan()
            | wire.MaskPlan()
        ):
            study = plan.study
            about: Fields = {"study": study.name, "fingerprint": study.fingerprint}
            if isinstance(plan, wire.RoundPlan):
                about = {**about, "round": plan.round, "train": plan.train}
            if isinstance(plan, wire.HeadPlan | wire.MaskPlan):
                about = {**about, "round": plan.round, "step": plan.step.kind}
            if isinstance(plan, wire.OverlapPlan):
                about = {**about, "shared": len(plan.shared)}
            about = {**about, "arrays": arrays_digest} if arrays_digest else about
            about = {**about, "asked": _asked(plan)}
            return {**_message(plan), **about, **size}
        case (
            wire.ApprovalAnswer()
            | wire.Enrolment()
            | wire.RoundAnswer()
            | wire.HeadAnswer()
            | wire.OverlapAnswer()
            | wire.MaskAnswer()
            | wire.Failure()
        ):
            return {**_message(plan), **size}
        case _:
            assert_never(plan)


_ELSEWHERE = {"kind", "plan_id", "site", "study", "shared"}
"""Fields of a plan that stand beside `asked`, in the log's earlier lines, or that are hashes of this site's images."""


def _asked(plan: wire.Plan) -> dict[str, JsonValue]:
    """What a plan asks, but for its arrays. The study is in the line of the enrolment: nothing is computed before."""
    asked: dict[str, JsonValue] = plan.model_dump(mode="json", exclude=_ELSEWHERE)
    if isinstance(plan, wire.EnrolPlan):
        asked["study"] = plan.study.model_dump(mode="json")
    return asked


def sent(reply: bytes, answer: wire.Answer) -> Fields:
    """Fields of a message that is about to leave."""
    size: Fields = {"bytes": len(reply), "sha256": sha256(reply)}
    match answer:
        case wire.ApprovalAnswer():
            reason: Fields = {"reason": answer.reason} if answer.reason else {}
            return {**_message(answer), "decision": answer.decision, **reason, **size}
        case wire.Enrolment():
            counts: dict[str, JsonValue] = {
                "train": [*answer.train_counts],
                "validation": [*answer.validation_counts],
                "test": [*answer.test_counts],
            }
            return {**_message(answer), **size, "counts": counts}
        case wire.RoundAnswer():
            scored: dict[str, JsonValue] = {
                side: score.confusion_CC.sum(axis=1).tolist() for side, score in answer.scores.items()
            }
            counts = {"examples": answer.num_examples, "steps": answer.num_steps, "scored": scored}
            if answer.subgroups:
                counts["subgroups"] = {
                    name: one.confusion_VCC.sum(axis=2).tolist() for name, one in answer.subgroups.items()
                }
            if answer.calibration is not None:
                counts = {**counts, "calibrated": [*answer.calibration.images_C]}
            seconds = round(answer.train_s + answer.evaluate_s, 3)
            return {**_message(answer), "round": answer.round, **size, "counts": counts, "seconds": seconds}
        case wire.OverlapAnswer():
            hashes: dict[str, JsonValue] = {"same": len(answer.same), "similar": len(answer.similar)}
            return {**_message(answer), **size, "hashes": hashes}
        case wire.MaskAnswer():
            sites: dict[str, JsonValue] = {
                "envelopes": len(answer.envelopes),
                "seeds_of": [*answer.seed_shares],
                "keys_of": [*answer.key_shares],
            }
            if answer.census:
                sites["masked_counts"] = len(answer.census)
            return {**_message(answer), "round": answer.round, **size, "masks": sites}
        case wire.HeadAnswer():
            behind: dict[str, JsonValue] = {"train": [*answer.train_counts], "heads": len(answer.results)}
            if answer.outliers is not None:
                behind = {**behind, "outliers": sum(answer.outliers)}
            about: Fields = {"round": answer.round, "step": answer.step}
            if left := travelling.left_in(sorted(answer.arrays)):
                about = {**about, "heads_that_left": {**left}}
            return {
                **_message(answer),
                **about,
                **size,
                "counts": behind,
                "seconds": round(answer.seconds, 3),
            }
        case wire.Failure():
            return {**_message(answer), **size}
        case _:
            assert_never(answer)


def failed(failure: wire.Failure) -> Fields:
    """Fields of a plan that was not carried out."""
    about: Fields = {"plan_id": failure.plan_id, "error": failure.error}
    if failure.case:
        about = {**about, "case": failure.case}
    return {**about, "reason": failure.reason} if failure.reason else about


def _message(message: wire.Plan | wire.Answer) -> Fields:
    names: Iterable[str] = wire.arrays_of(message)
    tensors = sorted(names)
    return {
        "plan_id": message.plan_id,
        "kind": message.kind,
        "tensors": len(tensors),
        "tensor_names": sha256("\n".join(tensors).encode()),
    }
