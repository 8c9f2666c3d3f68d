"""Keys that two sites share for one round, from a key pair of each (X25519, then HKDF with SHA-256).

A secret is for one session, one pair and one purpose: its name goes into the derivation, so that no secret of one use
is of any help for another.
"""

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from common.errors import WireError

KEY_BYTES = 32

_PAIR_MASK = b"consilium masking 3: mask of a pair, for the question "
_ENVELOPE = b"consilium masking 3: envelope from "
_NONCE = bytes(12)  # a key seals one envelope


def public(private: bytes) -> bytes:
    """The public half of a key pair."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def pair_seed(private: bytes, public: bytes, session: bytes, question: str) -> bytes:
    """Seed of the mask that one site of a pair adds and the other one subtracts. Raises WireError.

    `question` is a digest of what the sum asks (`common/wire/questions.py`): two sites that were asked different things
    have different masks, which do not cancel.
    """
    return _derived(private, public, session, _PAIR_MASK + question.encode())


def seal(private: bytes, public: bytes, session: bytes, sender: str, text: bytes) -> bytes:
    """`text` for the owner of `public` alone. Raises WireError. Once for each sender, receiver and session."""
    return ChaCha20Poly1305(_envelope_key(private, public, session, sender)).encrypt(_NONCE, text, None)


def unseal(private: bytes, public: bytes, session: bytes, sender: str, sealed: bytes) -> bytes:
    """What `sender`, the owner of `public`, sealed. Raises WireError for anything else."""
    try:
        return ChaCha20Poly1305(_envelope_key(private, public, session, sender)).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        raise WireError(
            f"found an envelope that {sender} did not seal for this site and this session"
        ) from error


def _envelope_key(private: bytes, public: bytes, session: bytes, sender: str) -> bytes:
    return _derived(private, public, session, _ENVELOPE + sender.encode())


def _derived(private: bytes, public: bytes, session: bytes, purpose: bytes) -> bytes:
    try:
        shared = X25519PrivateKey.from_private_bytes(private).exchange(
            X25519PublicKey.from_public_bytes(public)
        )
    except ValueError as error:  # of low order: the secret would be known to everybody
        raise WireError("found a public key that makes no secret") from error
    return HKDF(hashes.SHA256(), KEY_BYTES, salt=session, info=purpose).derive(shared)
