"""A site's key pair, and its fingerprint as other tools print it."""

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

from common import keys
from common.errors import ConfigError, StorageError


def test_the_fingerprint_is_the_one_that_ssh_keygen_prints(tmp_path: Path) -> None:
    if shutil.which("ssh-keygen") is None:
        pytest.skip("needs ssh-keygen, which CI has")
    pair = keys.make_site_key(tmp_path, "site")
    printed = subprocess.run(["ssh-keygen", "-lf", pair.public], capture_output=True, text=True, check=True)
    assert printed.stdout.split()[1] == keys.fingerprint(keys.read_public(pair.public))


def test_both_halves_have_one_fingerprint_and_two_pairs_two(tmp_path: Path) -> None:
    first, second = keys.make_site_key(tmp_path / "1", "site"), keys.make_site_key(tmp_path / "2", "site")
    assert keys.fingerprint(keys.read_public(first.public)) == keys.fingerprint_of_private(first.private)
    assert keys.fingerprint_of_private(first.private) != keys.fingerprint_of_private(second.private)


def test_a_key_that_cannot_be_written_is_a_sentence_and_a_former_one_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = keys.make_site_key(tmp_path, "site")
    former = pair.private.read_bytes()
    inode = pair.private.stat().st_ino
    with monkeypatch.context() as patch:
        patch.setattr(keys.os, "fchmod", fail(errno.EROFS))
        with pytest.raises(StorageError, match=r"site\.key cannot be written: Read-only file system"):
            keys.make_site_key(tmp_path, "site")
    assert pair.private.read_bytes() == former
    keys.make_site_key(tmp_path, "site")
    assert pair.private.read_bytes() != former
    assert pair.private.stat().st_ino == inode  # a container has this file mounted
    assert pair.private.stat().st_mode & 0o777 == 0o600


def fail(number: int) -> Callable[..., None]:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    return refuse


def test_flowers_form_leads_back_to_the_key(tmp_path: Path) -> None:
    key = keys.read_public(keys.make_site_key(tmp_path, "site").public)
    assert keys.fingerprint(keys.from_flower(keys.flower_form(key))) == keys.fingerprint(key)
    with pytest.raises(ConfigError):
        keys.from_flower(b"nonsense")


@pytest.mark.parametrize(
    "make", [ed25519.Ed25519PrivateKey.generate, lambda: ec.generate_private_key(ec.SECP256R1())]
)
def test_a_key_of_another_kind_is_refused(tmp_path: Path, make) -> None:
    public = (
        make().public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    (tmp_path / "site.pub").write_bytes(public)
    with pytest.raises(ConfigError, match="not a key on the curve P-384"):
        keys.read_public(tmp_path / "site.pub")
