"""Failure report: all that leaves a hospital when something breaks.

The text of an exception may hold a path with a patient's name, so no text of an exception
ever leaves. The server gets the kind of error, a case number and a fixed advice. The site's
own log has the details under that number. A refusal by the site's policy is no error: it has a
reason, which is made of the study's own values, and no case number.
"""

import uuid

from common import log, wire
from common.errors import (
    ConfigError,
    ConsiliumError,
    DeviceLost,
    PolicyRefusal,
    SiteDataError,
    StorageError,
    WeightsMissing,
    WireError,
)
from common.text import one_line

_ADVICE: dict[wire.ErrorKind, str] = {
    "data": "the site's images, labels or weights file cannot be used as they are",
    "study": "the site cannot build what the study asks for; check encoder, image_size and precision",
    "weights": "the site could not compute with the weights it received, or training diverged",
    "policy": "the plan asks for what this site did not agree to",
    "memory": "the site ran out of memory; lower image_size or micro_batch_size",
    "device": "a further device of the site has gone; the site's next round starts its process again",
    "storage": "the site could not write to its disk",
    "message": "the site could not understand the plan; install the same version on both sides",
    "unreachable": "the site's trainer did not answer",
    "internal": "an unexpected error at the site",
    "no_base": "the site does not hold the weights of the round before, and needs whole ones",
}


def failure(error: BaseException, plan_id: str, site: str) -> wire.Failure:
    """Report of `error` for the server; the details go to this site's log."""
    kind, case, reason = _kind(error), "", ""
    if isinstance(error, PolicyRefusal):
        reason = error.reason
        log.event(str(error))
    else:
        case = uuid.uuid4().hex[:8]
        log.logger.error("case %s (%s): %s", case, kind, error, exc_info=error)
    return wire.Failure(
        plan_id=plan_id,
        site=site,
        error=kind,
        case=case,
        advice=_ADVICE[kind],
        reason=one_line(reason, wire.LONGEST_REASON),
    )


def _kind(error: BaseException) -> wire.ErrorKind:
    match error:
        case SiteDataError():
            return "data"
        case ConfigError():
            return "study"
        case PolicyRefusal():
            return "policy"
        case StorageError():
            return "storage"
        case WireError():
            return "message"
        case WeightsMissing():
            return "no_base"
        case DeviceLost():
            return "device"
        case MemoryError():
            return "memory"
        case ConsiliumError():
            return "weights"
        case _:
            # torch.OutOfMemoryError, by name: the gateway imports this file's neighbours without torch
            return "memory" if type(error).__name__ == "OutOfMemoryError" else "internal"
