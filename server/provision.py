"""Who may speak to the server: a private CA, the server's certificate, one key pair per site.

TLS tells a site that it speaks to its own server; the site's key tells the server which site
speaks. Both are made with `cryptography`, on P-384, the curve that Flower's SuperNode
authentication takes. Private keys are written with mode 0600 and never logged.
"""

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

VALID_DAYS = 825
"""Longest validity that common TLS stacks accept for a server certificate."""


@dataclass(frozen=True)
class ServerIdentity:
    """Files of the server's TLS identity."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True)
class SiteKey:
    """Files of one site's key pair."""

    private: Path
    public: Path


def make_server_identity(folder: Path, hosts: Sequence[str], valid_days: int = VALID_DAYS) -> ServerIdentity:
    """A new CA and a certificate for `hosts` (DNS names or addresses) signed by it.

    The CA's own key is used once and not kept: adding a host makes a new CA.
    """
    start = datetime.now(UTC) - timedelta(minutes=5)  # clocks of sites may lag a little
    end = start + timedelta(days=valid_days)
    ca_key, ca_name = ec.generate_private_key(ec.SECP384R1()), _name("Consilium CA")
    ca = (
        x509.CertificateBuilder(
            ca_name, ca_name, ca_key.public_key(), x509.random_serial_number(), start, end
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(ca_key.public_key()), critical=False)
        .sign(ca_key, hashes.SHA384())
    )
    key = ec.generate_private_key(ec.SECP384R1())
    certificate = (
        x509.CertificateBuilder(
            ca_name, _name("Consilium server"), key.public_key(), x509.random_serial_number(), start, end
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA384())
    )
    identity = ServerIdentity(folder / "ca.pem", folder / "server.pem", folder / "server.key")
    folder.mkdir(parents=True, exist_ok=True)
    identity.ca.write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    _write_private(identity.key, key, serialization.PrivateFormat.PKCS8)
    return identity


def make_site_key(folder: Path, site: str) -> SiteKey:
    """A new key pair for `site`: OpenSSH formats, as Flower reads them."""
    key = ec.generate_private_key(ec.SECP384R1())
    pair = SiteKey(folder / f"{site}.key", folder / f"{site}.pub")
    folder.mkdir(parents=True, exist_ok=True)
    _write_private(pair.private, key, serialization.PrivateFormat.OpenSSH)
    pair.public.write_bytes(
        key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    )
    return pair


def _write_private(path: Path, key: ec.EllipticCurvePrivateKey, form: serialization.PrivateFormat) -> None:
    pem = key.private_bytes(serialization.Encoding.PEM, form, serialization.NoEncryption())
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT, 0o600), "wb") as file:
        os.fchmod(file.fileno(), 0o600)  # a file that was there before keeps its mode otherwise
        file.truncate()
        file.write(pem)


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _host(host: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )
