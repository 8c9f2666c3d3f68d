"""Signed heads of the sites' audit logs, kept as they came: `audit-heads.jsonl` in the run's folder.

One JSON object a line: when, for which plan, and the signed head. A site's log must contain every head that its key
has signed (`consilium-site audit --verify --signed audit-heads.jsonl`). Nothing depends on this file: a head that is
missing or wrong is named in the log once for each site, and the study goes on.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from common import log
from common.wire.signed_heads import SignedHead

FILE = "audit-heads.jsonl"


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass
class AuditHeads:
    """The file of one run."""

    run_dir: Path
    fingerprints: Mapping[str, str]
    """Of the sites' enrolled keys; a site that is not in it is not compared."""
    clock: Callable[[], datetime] = _now
    _named: set[str] = field(default_factory=set)

    def keep(self, site: str, plan_id: str, signed: SignedHead | None) -> None:
        """Write down what came with the answer of `site`; what is wrong with it is named once."""
        problem = self._problem(site, signed)
        if problem and site not in self._named:
            self._named.add(site)
            log.warn(f"{site}: {problem}; what its audit log says later cannot be held against it", site=site)
        if problem or signed is None:
            return
        line = {
            "time": self.clock().isoformat(timespec="milliseconds"),
            "plan_id": plan_id,
            **signed.model_dump(),
        }
        try:
            with (self.run_dir / FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(line, separators=(",", ":")) + "\n")
        except OSError as error:
            log.warn(
                f"{FILE} cannot be written ({error.strerror}); the head of {site}'s audit log is lost",
                site=site,
            )

    def _problem(self, site: str, signed: SignedHead | None) -> str:
        if signed is None:
            return "no signed head of its audit log came with its answer"
        if signed.site != site or not signed.is_right():
            return "the head of its audit log is not signed as it should be"
        if self.fingerprints.get(site, own := signed.fingerprint()) != own:
            return f"the head of its audit log is signed with another key than the enrolled one, {own}"
        return ""
