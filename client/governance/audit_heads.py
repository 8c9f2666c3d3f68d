"""Signed heads of this site's audit log, as the server kept them, compared with the log.

A log that was cut at its end or written again as a whole is a right chain all the same. It then lacks a head that
this site's key has signed.
"""

from dataclasses import dataclass
from pathlib import Path

from client.governance import audit
from common.errors import StorageError
from common.formats import json_text
from common.wire.signed_heads import SignedHead


@dataclass(frozen=True)
class Compared:
    """What became of the heads that a server kept of this site's log."""

    num_heads: int
    num_forged: int
    """Their signature is not of the key that stands beside it."""
    num_missing: int
    """Signed, and in no line of the log."""
    keys: tuple[str, ...]
    """Fingerprints of the keys that signed. This site's own is that of `site.pub`."""

    @property
    def problem(self) -> str | None:
        """What is wrong, as a sentence."""
        if not self.num_heads:
            return "the file has no signed head of this site"
        if self.num_missing:
            return (
                f"{self.num_missing} of {self.num_heads} signed heads are in no line of the log; lines were cut off, "
                "or all were written again, or the key that signed is not this site's"
            )
        return (
            f"{self.num_forged} of {self.num_heads} heads are not signed as they should be"
            if self.num_forged
            else None
        )


def compare(log: Path, site: str, signed: Path) -> Compared:
    """Look for every signed head of `site` in its log. Raises StorageError."""
    hashes = {str(fields["hash"]) for fields in audit.events(log)}
    heads = [head for head in _read(signed) if head.site == site]
    right = [head for head in heads if head.is_right()]
    return Compared(
        num_heads=len(heads),
        num_forged=len(heads) - len(right),
        num_missing=sum(head.head not in hashes for head in right),
        keys=tuple(dict.fromkeys(head.fingerprint() for head in right)),
    )


def _read(path: Path) -> list[SignedHead]:
    try:
        lines = [json_text.loads(line) for line in path.read_bytes().splitlines()]
        return [
            SignedHead.model_validate({name: line[name] for name in SignedHead.model_fields})
            for line in lines
        ]
    except OSError as error:
        raise StorageError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise StorageError(
            f"{path} does not hold signed heads; ask the study operator for audit-heads.jsonl of the run"
        ) from error
