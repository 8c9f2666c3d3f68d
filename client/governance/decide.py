"""A person's decision about a study: in the audit log first, then in the files that the trainer looks at.

The command `approve` and the site's console decide through here, so both leave the same lines.
"""

from datetime import UTC, datetime
from pathlib import Path

from client.governance import approval
from client.governance.audit import Audit
from common.errors import ConfigError


def decide(
    state_dir: Path,
    wanted: str,
    *,
    by: str,
    refuse: bool = False,
    reason: str = "",
    fingerprint: str | None = None,
) -> approval.Pending:
    """Approve the study with this name or label, or refuse it; returns it.

    With `fingerprint` it must be exactly the study that the person has read. Raises ConfigError, StorageError.
    """
    if reason and not refuse:
        raise ConfigError("--reason is for a refusal; add --refuse")
    approval.require_reason(reason)
    meant = approval.find(state_dir, wanted, refuse=refuse)
    if fingerprint is not None and meant.study.fingerprint != fingerprint:
        raise ConfigError(f"study {wanted} is not the one that was shown; read it again")
    entry = {"study": meant.study.name, "fingerprint": meant.study.fingerprint, "by": by}
    now = datetime.now(UTC)
    if refuse:
        Audit(state_dir).append("decline", entry | ({"reason": reason} if reason else {}))
        approval.refuse(state_dir, meant, by=by, now=now, reason=reason)
        return meant
    Audit(state_dir).append("approval", entry)  # first: an approval that is not in the log does not count
    approval.approve(state_dir, meant, by=by, now=now)
    return meant
