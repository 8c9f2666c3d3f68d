"""Who may speak to the server: a private CA, the server's certificate, one key pair per site.

TLS tells a site that it speaks to its own server; the site's key tells the server which site
speaks. Both are made with `cryptography`, on P-384, the curve that Flower's SuperNode
authentication takes. Private keys are written with mode 0600 and never logged.
"""

import ipaddress
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from common.errors import ConfigError, LaunchError
from common.keys import write_private

VALID_DAYS = 825
"""Longest validity that common TLS stacks accept for a server certificate."""
CA_VALID_DAYS = 3650
"""Of a CA that is kept: every site has to be given a new one."""


@dataclass(frozen=True)
class ServerIdentity:
    """Files of the server's TLS identity."""

    ca: Path
    certificate: Path
    key: Path


def identity_in(folder: Path) -> ServerIdentity:
    """The files of the identity that is kept in `folder`, whether they exist or not."""
    return ServerIdentity(folder / "ca.pem", folder / "server.pem", folder / "server.key")


@dataclass(frozen=True)
class Authority:
    """A CA: who holds its key can vouch for servers."""

    certificate: x509.Certificate
    key: ec.EllipticCurvePrivateKey


def make_authority(valid_days: float = CA_VALID_DAYS) -> Authority:
    """A new CA, nowhere but in memory."""
    start, key, name = _start(), ec.generate_private_key(ec.SECP384R1()), _name("Consilium CA")
    certificate = (
        x509.CertificateBuilder(
            name,
            name,
            key.public_key(),
            x509.random_serial_number(),
            start,
            start + timedelta(days=valid_days),
        )
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_usage(signs_certificates=True), critical=True)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA384())
    )
    return Authority(certificate, key)


def keep_authority(authority: Authority, folder: Path) -> None:
    """Write ca.pem, which sites get, and ca.key, which stays with the operator."""
    folder.mkdir(parents=True, exist_ok=True)
    write_private(folder / "ca.key", authority.key, serialization.PrivateFormat.PKCS8)
    (folder / "ca.pem").write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))


def load_authority(folder: Path) -> Authority:
    """The CA that was kept in `folder`. Raises ConfigError if its key is not there."""
    try:
        key = serialization.load_pem_private_key((folder / "ca.key").read_bytes(), None)
        certificate = x509.load_pem_x509_certificate((folder / "ca.pem").read_bytes())
    except OSError as error:
        raise ConfigError(
            f"{folder / 'ca.key'} cannot be read ({error.strerror}), and a certificate has to be signed "
            "with it; put it back, or move the folder away for a new CA, with which every site needs a new kit"
        ) from error
    except (ValueError, TypeError) as error:
        raise ConfigError(
            f"{folder / 'ca.key'} or {folder / 'ca.pem'} is damaged: it is not in PEM, or has a passphrase; put back "
            "both from the backup, or move the folder away for a new CA, with which every site needs a new kit"
        ) from error
    if not isinstance(key, ec.EllipticCurvePrivateKey) or key.public_key() != certificate.public_key():
        raise ConfigError(
            f"{folder / 'ca.key'} is not the key of {folder / 'ca.pem'}; put back both from the backup, or move the "
            "folder away for a new CA, with which every site needs a new kit"
        )
    if certificate.not_valid_after_utc <= datetime.now(UTC):
        raise ConfigError(
            f"{folder / 'ca.pem'} ended on {_minute(certificate.not_valid_after_utc)}, so no site trusts a "
            "certificate that it signs; move the folder away for a new CA, with which every site needs a new kit"
        )
    return Authority(certificate, key)


def require_usable(identity: ServerIdentity) -> None:
    """Raise LaunchError unless sites can trust these files now.

    Flower would start with a certificate that has ended, and report something else much later.
    """
    if (found := why_unusable(identity)) is not None:
        raise LaunchError(
            f"{found}, so no site could connect; run `consilium-server provision` again, which makes a new "
            "certificate with the CA that is kept"
        )


def why_unusable(identity: ServerIdentity) -> str | None:
    """What keeps sites from trusting these files now; None if nothing does."""
    now, read = datetime.now(UTC), {}
    for path in (identity.ca, identity.certificate):
        try:
            read[path] = certificate = x509.load_pem_x509_certificate(path.read_bytes())
        except OSError as error:
            return f"{path} cannot be read ({error.strerror})"
        except ValueError:
            return f"{path} is no certificate in PEM"
        if certificate.not_valid_after_utc <= now:
            return f"{path} ended on {_minute(certificate.not_valid_after_utc)}"
        if certificate.not_valid_before_utc > now:
            begins = _minute(certificate.not_valid_before_utc)
            return f"{path} begins on {begins}, and the clock of this machine says {_minute(now)}"
    try:
        read[identity.certificate].verify_directly_issued_by(read[identity.ca])
    except (ValueError, TypeError, InvalidSignature):
        return f"{identity.certificate} is not signed with {identity.ca}"
    try:
        key = serialization.load_pem_private_key(identity.key.read_bytes(), None)
    except OSError as error:
        return f"{identity.key} cannot be read ({error.strerror})"
    except (ValueError, TypeError):
        return f"{identity.key} is no private key in PEM without a passphrase"
    if key.public_key() != read[identity.certificate].public_key():
        return f"{identity.key} is not the key of {identity.certificate}"
    return None


def _minute(moment: datetime) -> str:
    return f"{moment:%Y-%m-%d %H:%M} UTC"


def issue(
    authority: Authority, folder: Path, hosts: Sequence[str], valid_days: float = VALID_DAYS
) -> ServerIdentity:
    """A certificate and a new key for `hosts` (DNS names or addresses), signed by this CA."""
    start, key = _start(), ec.generate_private_key(ec.SECP384R1())
    end = min(start + timedelta(days=valid_days), authority.certificate.not_valid_after_utc)
    public = authority.key.public_key()
    certificate = (
        x509.CertificateBuilder(
            authority.certificate.subject,
            _name("Consilium server"),
            key.public_key(),
            x509.random_serial_number(),
            start,
            end,
        )
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectAlternativeName([_host(host) for host in hosts]), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(public), critical=False)
        .sign(authority.key, hashes.SHA384())
    )
    identity = identity_in(folder)
    folder.mkdir(parents=True, exist_ok=True)
    identity.ca.write_bytes(authority.certificate.public_bytes(serialization.Encoding.PEM))
    write_private(identity.key, key, serialization.PrivateFormat.PKCS8)
    identity.certificate.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return identity


def make_server_identity(
    folder: Path, hosts: Sequence[str], valid_days: float = VALID_DAYS
) -> ServerIdentity:
    """A new CA and a certificate for `hosts` signed by it; the CA's key is used once and not kept."""
    return issue(make_authority(valid_days), folder, hosts, valid_days)


def hosts_of(certificate: x509.Certificate) -> list[str]:
    """The names and addresses that a certificate is for."""
    names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    return [*names.get_values_for_type(x509.DNSName), *map(str, names.get_values_for_type(x509.IPAddress))]


def _start() -> datetime:
    return datetime.now(UTC) - timedelta(minutes=5)  # clocks of sites may lag a little


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
