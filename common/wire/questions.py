"""What one masked sum asks of all its sites, as a digest.

The masks of pairs follow from it (`common/masking/agreement.py`). So the masks of a site that was asked something else
do not cancel, and a server that gives one site other weights than the rest opens a sum of random numbers: not that
site's part (Pasquini et al. 2022, "Eluding Secure Aggregation in Federated Learning via Model Inconsistency").

The study and the number of the sum are in the session's keys already.
"""

import hashlib

from common.weights import Arrays, digest
from common.wire.fields import Digest
from common.wire.head_steps import HeadStep
from common.wire.plans import RoundPlan

CENSUS: Digest = hashlib.sha256(b"census").hexdigest()
"""The census asks for nothing but the counts of the study's images."""


def of_round(plan: RoundPlan, weights_digest: Digest) -> Digest:
    """The question of a round. `weights_digest` is that of the whole weights, also where a change of them travels."""
    control = (plan.control, digest(plan.control_variate)) if plan.control_variate else ()
    return _digest(
        "round", plan.train, plan.score, plan.best, weights_digest, plan.class_counts or (), control
    )


def of_heads(number: int, weights_digest: Digest, step: HeadStep, arrays: Arrays) -> Digest:
    """The question of a step towards heads, after round `number`. `arrays` are those of the step, not the weights."""
    return _digest("heads", number, weights_digest, step.model_dump_json(), digest(arrays))


def _digest(*what: object) -> Digest:
    return hashlib.sha256("\x1f".join(map(repr, what)).encode()).hexdigest()
