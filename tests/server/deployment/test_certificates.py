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

from common.keys import make_site_key
from server.deployment.certificates import VALID_DAYS, ServerIdentity, make_server_identity


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
