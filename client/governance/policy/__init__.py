"""The site's policy, applied: plans outside it are refused. What is left out of the images is in `small_cells.py`.

A plan is compared with the site's own YAML before anything is built or read, and once more
when model and images are known. All violations are reported at once. The server learns which
rules refuse and what the *study* asks for. It never learns the policy's limits or what this
site holds. One exception is the next opening time, because a server needs it to try again.
The limits are written to the site's own log.
"""

from client.governance.policy.answers import allows_calibration, enforce_answer, enforce_slopes
from client.governance.policy.plans import check, enforce, enforce_lasting, is_open, next_opening, scores
from client.governance.policy.training import epochs

__all__ = [
    "allows_calibration",
    "check",
    "enforce",
    "enforce_answer",
    "enforce_lasting",
    "enforce_slopes",
    "epochs",
    "is_open",
    "next_opening",
    "scores",
]
