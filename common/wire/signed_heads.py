"""Signed heads: the last hash of a site's audit log, signed with the site's key, which goes with every answer.

The trainer has the log and no key; the gateway has the key and no log. So the trainer says its log's head with each
answer, the gateway signs it, and the server keeps it. Later the operator can show that a log was written again: it
lacks a head that this site's key has signed. And a hospital can show that it was not: no head that its key has signed
is missing. What the log says does not leave: each of its lines holds random bytes, so a hash cannot be guessed.
"""

import re
from typing import Annotated

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from pydantic import StringConstraints

from common import keys
from common.config import Name
from common.errors import ConfigError
from common.settings import Frozen

TRAILER = "consilium-audit-head"
"""gRPC trailer of an answer on the trainer's socket: the head of its log."""

HEAD = re.compile(r"[0-9a-f]{64}")
_PURPOSE = "consilium audit head"
"""Start of what is signed, so that no other signature of the key can pass for one of a head, or the other way."""


class SignedHead(Frozen):
    """One head, and the key that signed it."""

    site: Name
    head: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
    """Hash of the last line of the log."""
    signature: Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{16,300}$")]
    """ECDSA over P-384 with SHA-256, in DER, as hexadecimal digits."""
    key: Annotated[str, StringConstraints(max_length=1000)]
    """The public key in PEM."""

    def fingerprint(self) -> str:
        """Of the key, as `ssh-keygen -l` prints it. Raises ConfigError if there is none."""
        return keys.fingerprint(keys.from_flower(self.key.encode()))

    def is_right(self) -> bool:
        """Whether this key signed this head for this site."""
        try:
            public = keys.from_flower(self.key.encode())
            public.verify(
                bytes.fromhex(self.signature), _text(self.site, self.head), ec.ECDSA(hashes.SHA256())
            )
        except (InvalidSignature, ConfigError, ValueError):
            return False
        return True


def sign(site: str, head: str, key: ec.EllipticCurvePrivateKey) -> SignedHead:
    """The head, signed."""
    signature = key.sign(_text(site, head), ec.ECDSA(hashes.SHA256()))
    public = keys.flower_form(key.public_key()).decode()
    return SignedHead(site=site, head=head, signature=signature.hex(), key=public)


def _text(site: str, head: str) -> bytes:
    return f"{_PURPOSE}\n{site}\n{head}\n".encode()
