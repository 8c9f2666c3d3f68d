"""The roster of a federation: each site's public signing key, which people compare, not the server.

A site takes a key for a round only if the roster's key signed it. So a server cannot put a key of its own in place of
a site's. Keys are Ed25519, written as 64 hexadecimal digits.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, TypeAlias

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from pydantic import Field, StringConstraints

from common.config.types import MaskPhase, Name
from common.errors import ConfigError
from common.files import write_atomically
from common.settings import Frozen, load_settings

PublicKey: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]
Signature: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{128}$")]

IDENTITY = "mask-identity"
"""File in a site's `state_dir` with the private half of its key."""

_KEYS = "consilium masking 3: keys of a site for one sum"


class Roster(Frozen):
    """Public signing keys by site."""

    sites: Annotated[dict[Name, PublicKey], Field(min_length=2)]

    @property
    def fingerprint(self) -> str:
        """Short hash of the whole roster, for people to compare by telephone."""
        lines = "\n".join(f"{site} {key}" for site, key in sorted(self.sites.items()))
        digest = hashlib.sha256(lines.encode()).hexdigest()[:24]
        return " ".join(digest[at : at + 4] for at in range(0, len(digest), 4))


class Announcement(Frozen):
    """Public keys of one site for one session, signed."""

    mask_key: PublicKey
    """From which the masks of pairs follow. Its private half is shared among the sites, in case this one drops out."""
    envelope_key: PublicKey
    """With which shares are sealed. Its private half stays at the site."""
    signature: Signature

    def is_signed_by(
        self, signer: str, fingerprint: str, number: int, site: str, phase: MaskPhase = "training"
    ) -> bool:
        """Whether the owner of the public key `signer` announced these keys for this study, phase, round and site."""
        text = _signed(self.mask_key, self.envelope_key, fingerprint, number, site, phase)
        try:
            Ed25519PublicKey.from_public_bytes(bytes.fromhex(signer)).verify(
                bytes.fromhex(self.signature), text
            )
        except (InvalidSignature, ValueError):
            return False
        return True


def announce(
    identity: Ed25519PrivateKey,
    mask_key: bytes,
    envelope_key: bytes,
    fingerprint: str,
    number: int,
    site: str,
    phase: MaskPhase = "training",
) -> Announcement:
    """Public keys, signed for round `number` of the study with this fingerprint."""
    mask, envelope = mask_key.hex(), envelope_key.hex()
    signature = identity.sign(_signed(mask, envelope, fingerprint, number, site, phase))
    return Announcement(mask_key=mask, envelope_key=envelope, signature=signature.hex())


def _signed(
    mask_key: str, envelope_key: str, fingerprint: str, number: int, site: str, phase: MaskPhase
) -> bytes:
    return "\n".join((_KEYS, phase, fingerprint, str(number), site, mask_key, envelope_key)).encode()


def session(
    announcements: Mapping[str, Announcement], fingerprint: str, number: int, phase: MaskPhase = "training"
) -> bytes:
    """Number of the session that these announcements make: 32 bytes, equal at all that see the same."""
    lines = [f"{site} {one.mask_key} {one.envelope_key}" for site, one in sorted(announcements.items())]
    return hashlib.sha256("\n".join((_KEYS, phase, fingerprint, str(number), *lines)).encode()).digest()


def load_roster(path: Path) -> Roster:
    """Read a roster's YAML. Raises ConfigError."""
    return load_settings(path, Roster, "roster")


def load_identity(path: Path) -> Ed25519PrivateKey:
    """The signing key in a file, made if there is none. Raises ConfigError and StorageError."""
    try:
        return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(path.read_text().strip()))
    except FileNotFoundError:
        identity = Ed25519PrivateKey.generate()
        write_atomically(path, identity.private_bytes_raw().hex().encode() + b"\n", private=True)
        return identity
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{path} is not this site's signing key ({type(error).__name__}); restore it, or remove it and tell the "
            "other sites the new key"
        ) from error


def public_key(identity: Ed25519PrivateKey) -> str:
    """The public half, as a roster has it."""
    return identity.public_key().public_bytes_raw().hex()
