"""Certificates and keys, tried as they are used: in a TLS handshake, by Flower's own readers."""

import ssl
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    load_pem_private_key,
    load_ssh_private_key,
    load_ssh_public_key,
)

from common.errors import ConfigError, LaunchError
from common.keys import make_site_key
from server.deployment import certificates
from server.deployment.certificates import VALID_DAYS, ServerIdentity, make_server_identity, require_usable


@pytest.fixture(scope="module")
def identity(tmp_path_factory: pytest.TempPathFactory) -> ServerIdentity:
    folder = tmp_path_factory.mktemp("keys")
    return make_server_identity(folder, ["localhost", "127.0.0.1", "::1"])


def shake_hands(identity: ServerIdentity, host: str, ca: Path) -> str | None:
    """A whole TLS handshake in memory; returns the protocol. Raises ssl.SSLError."""
    server_side = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server_side.load_cert_chain(identity.certificate, identity.key)
    client_side = ssl.create_default_context(cafile=str(ca))
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    server = server_side.wrap_bio(to_server, to_client, server_side=True)
    client = client_side.wrap_bio(to_client, to_server, server_hostname=host)
    unfinished = [client, server]
    for _ in range(10):
        for side in list(unfinished):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                continue
            unfinished.remove(side)
    assert not unfinished
    return client.version()


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_a_site_that_has_the_ca_trusts_the_server_under_its_names(
    identity: ServerIdentity, host: str
) -> None:
    assert shake_hands(identity, host, identity.ca) == "TLSv1.3"


@pytest.mark.parametrize("host", ["hospital.example", "127.0.0.2"])
def test_and_under_no_other_name(identity: ServerIdentity, host: str) -> None:
    with pytest.raises(ssl.SSLCertVerificationError, match=r"mismatch|doesn't match|not valid for"):
        shake_hands(identity, host, identity.ca)


def test_a_site_with_another_federations_ca_does_not_trust_it(
    identity: ServerIdentity, tmp_path: Path
) -> None:
    other = make_server_identity(tmp_path, ["localhost"])
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(identity, "localhost", other.ca)


def test_the_certificate_ends_when_it_was_said_to(tmp_path: Path) -> None:
    for days in (VALID_DAYS, 3):
        made = make_server_identity(tmp_path, ["localhost"], valid_days=days)
        for path in (made.ca, made.certificate):
            certificate = x509.load_pem_x509_certificate(path.read_bytes())
            left = certificate.not_valid_after_utc - datetime.now(UTC)
            # valid from five minutes ago, so that much less remains
            assert timedelta(days=days, minutes=-6) < left < timedelta(days=days)
            assert certificate.not_valid_before_utc < datetime.now(UTC) - timedelta(minutes=4)


def test_private_keys_can_be_read_by_their_owner_only_even_where_a_laxer_file_was(
    tmp_path: Path,
) -> None:
    (tmp_path / "north.key").write_text("old")
    (tmp_path / "north.key").chmod(0o644)
    made, key = make_server_identity(tmp_path, ["localhost"]), make_site_key(tmp_path, "north")
    assert [path.stat().st_mode & 0o777 for path in (made.key, key.private)] == [0o600, 0o600]


def test_a_sites_key_is_what_flower_takes(tmp_path: Path) -> None:
    pair = make_site_key(tmp_path, "north")
    assert pair.public.read_bytes().startswith(b"ecdsa-sha2-nistp384 ")
    private = load_ssh_private_key(pair.private.read_bytes(), None)
    public = load_ssh_public_key(pair.public.read_bytes())
    assert isinstance(private, ec.EllipticCurvePrivateKey)
    assert isinstance(public, ec.EllipticCurvePublicKey)
    assert private.public_key().public_numbers() == public.public_numbers()


def test_every_site_and_every_federation_has_keys_of_its_own(tmp_path: Path) -> None:
    north, south = make_site_key(tmp_path, "north"), make_site_key(tmp_path, "south")
    again = make_site_key(tmp_path / "again", "north")
    assert len({pair.public.read_bytes() for pair in (north, south, again)}) == 3


def test_the_cas_own_key_is_written_nowhere(tmp_path: Path) -> None:
    made = make_server_identity(tmp_path, ["localhost"])
    ca = x509.load_pem_x509_certificate(made.ca.read_bytes())
    keys = [path for path in tmp_path.iterdir() if b"PRIVATE KEY" in path.read_bytes()]
    assert keys == [made.key]
    key = load_pem_private_key(made.key.read_bytes(), None)
    assert isinstance(key, ec.EllipticCurvePrivateKey)
    assert isinstance(ca.public_key(), ec.EllipticCurvePublicKey)
    assert key.public_key() != ca.public_key()


# --- files that no site would trust ----------------------------------------------------------


def test_a_fresh_certificate_is_usable(identity: ServerIdentity) -> None:
    require_usable(identity)


def test_a_certificate_that_has_ended_is_named_before_flower_starts(tmp_path: Path) -> None:
    two_minutes = 2 / (24 * 60)  # from five minutes ago: it ended three minutes ago
    made = certificates.issue(certificates.make_authority(), tmp_path, ["localhost"], two_minutes)
    with pytest.raises(
        LaunchError, match=r"server\.pem ended on 2.* UTC, so no site.*`consilium-server provision`"
    ):
        require_usable(made)


def test_a_clock_before_the_certificate_begins_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificates, "_start", lambda: datetime.now(UTC) + timedelta(days=2))
    made = make_server_identity(tmp_path, ["localhost"])
    with pytest.raises(LaunchError, match=r"ca\.pem begins on 2.*, and the clock of this machine says 2"):
        require_usable(made)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("server.pem", "server.pem is not signed with"),
        ("server.key", "server.key is not the key of"),
        ("ca.pem", "server.pem is not signed with"),
    ],
)
def test_a_file_of_another_federation_is_named(name: str, found: str, tmp_path: Path) -> None:
    made = make_server_identity(tmp_path / "ours", ["localhost"])
    other = make_server_identity(tmp_path / "theirs", ["localhost"])
    made.ca.with_name(name).write_bytes(other.ca.with_name(name).read_bytes())
    with pytest.raises(LaunchError, match=found):
        require_usable(made)


@pytest.mark.parametrize("name", ["ca.pem", "server.pem", "server.key"])
@pytest.mark.parametrize(("content", "found"), [(b"", "PEM"), (None, "cannot be read")])
def test_a_damaged_or_missing_file_is_named(
    name: str, content: bytes | None, found: str, tmp_path: Path
) -> None:
    made = make_server_identity(tmp_path, ["localhost"])
    path = made.ca.with_name(name)
    path.unlink()
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(LaunchError, match=rf"{name} .*{found}"):
        require_usable(made)


def test_a_ca_that_has_ended_signs_nothing(tmp_path: Path) -> None:
    certificates.keep_authority(certificates.make_authority(valid_days=0.001), tmp_path)
    with pytest.raises(
        ConfigError, match=r"ca\.pem ended on .*a new CA, with which every site needs a new kit"
    ):
        certificates.load_authority(tmp_path)


@pytest.mark.parametrize("name", ["ca.pem", "ca.key"])
@pytest.mark.parametrize("damage", [b"", b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_damaged_ca_is_named(name: str, damage: bytes, tmp_path: Path) -> None:
    certificates.keep_authority(certificates.make_authority(), tmp_path)
    (tmp_path / name).write_bytes(damage)
    with pytest.raises(ConfigError, match="is damaged"):
        certificates.load_authority(tmp_path)


def test_the_key_of_another_ca_signs_nothing(tmp_path: Path) -> None:
    for name in ("ours", "theirs"):
        certificates.keep_authority(certificates.make_authority(), tmp_path / name)
    (tmp_path / "ours" / "ca.key").write_bytes((tmp_path / "theirs" / "ca.key").read_bytes())
    with pytest.raises(ConfigError, match=r"ca\.key is not the key of"):
        certificates.load_authority(tmp_path / "ours")
