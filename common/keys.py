"""A site's key pair: made where it is used, and identified by a fingerprint.

On P-384, the curve that Flower's SuperNode authentication takes, in OpenSSH's formats, as Flower reads
them. Private keys are written with mode 0600 and never logged; what is shown is the public half's
fingerprint, as `ssh-keygen -l` prints it, short enough to be read out over the phone.
"""

import base64
import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from common.errors import ConfigError, StorageError
from common.files import write_atomically


@dataclass(frozen=True)
class SiteKey:
    """Files of one site's key pair."""

    private: Path
    public: Path


def make_site_key(folder: Path, site: str) -> SiteKey:
    """A new key pair for `site`; one that is there is replaced. Raises StorageError."""
    key = ec.generate_private_key(ec.SECP384R1())
    pair = SiteKey(folder / f"{site}.key", folder / f"{site}.pub")
    write_private(pair.private, key, serialization.PrivateFormat.OpenSSH)
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    write_atomically(pair.public, public)
    return pair


def write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    """Write a private key that only this user can read. Raises StorageError.

    In its place, not beside it and renamed: a container that has this one file mounted would keep the former one.
    """
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
            os.fchmod(file.fileno(), 0o600)  # a file that was there before keeps its mode otherwise
            file.write(pem)
            file.truncate()  # at last: on a full disk a former key is still there
    except OSError as error:
        raise StorageError(
            f"{path} cannot be written: {error.strerror}; choose a folder that is yours, on a disk with some space"
        ) from error


def read_public(path: Path) -> ec.EllipticCurvePublicKey:
    """The public key in a file. Raises ConfigError."""
    try:
        data = path.read_bytes()
        key = serialization.load_ssh_public_key(data)
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror}; give the site's public key") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        secret = b"PRIVATE KEY" in data
        what = "a private key, which must stay at the site" if secret else "not a public key"
        raise ConfigError(f"{path} is {what}; give the .pub file that `consilium-site key` wrote") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not isinstance(key.curve, ec.SECP384R1):
        raise ConfigError(f"{path} is not a key on the curve P-384; make one with `consilium-site key`")
    return key


def fingerprint(key: ec.EllipticCurvePublicKey) -> str:
    """SHA-256 of the key in OpenSSH's form, base64 without padding."""
    openssh = key.public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    digest = hashlib.sha256(base64.b64decode(openssh.split()[1])).digest()
    return "SHA256:" + base64.b64encode(digest).decode().rstrip("=")


def read_private(path: Path) -> ec.EllipticCurvePrivateKey:
    """The private key in a file. Raises ConfigError."""
    try:
        key = serialization.load_ssh_private_key(path.read_bytes(), None)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read: {error.strerror}; `consilium-site key` makes one"
        ) from error
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        raise ConfigError(f"{path} is not this site's key; `consilium-site key` makes one") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise ConfigError(f"{path} is not a key on the curve P-384; make one with `consilium-site key`")
    return key


def fingerprint_of_private(path: Path) -> str:
    """The fingerprint of a key pair, from its private file. Raises ConfigError."""
    return fingerprint(read_private(path).public_key())


def flower_form(key: ec.EllipticCurvePublicKey) -> bytes:
    """The key as Flower keeps it in its database and sends it in its requests."""
    return key.public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def from_flower(pem: bytes) -> ec.EllipticCurvePublicKey:
    """A key in Flower's form. Raises ConfigError for anything else."""
    try:
        key = serialization.load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm) as error:
        raise ConfigError("not a public key in PEM form") from error
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise ConfigError("not a key on an elliptic curve")
    return key
