"""Certificates: one authority per deployment, one certificate per device, a role in each.

A device's identity is its certificate's URI name `fogline://ROLE/NAME`, with `?tenant=T` where it has a tenant. Servers
(fog, cloud) may also be dialled and carry the host names and addresses they answer at; an edge's certificate can't be
used to pose as a server. Keys are ECDSA P-256. While an authority's key is replaced, a file of authorities holds the
old one and the new one, and a certificate of either will do.
"""

from __future__ import annotations

import ipaddress
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Literal, get_args

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from fogline.common.errors import ConfigError, IdentityError

Role = Literal["edge", "fog", "cloud"]
ROLES: tuple[Role, ...] = get_args(Role)
# The certificate service itself. It is dialled by this name wherever it runs: who knows its authority needs no other.
AUTHORITY_HOST = "authority.fogline.internal"
NAME_PATTERN = r"[a-z0-9]([a-z0-9._-]{0,61}[a-z0-9])?"
HOST_PATTERN = r"[A-Za-z0-9_*]([A-Za-z0-9._-]{0,251}[A-Za-z0-9_])?"

AUTHORITY_DAYS = 3650
DEVICE_DAYS = 365
# A device whose clock runs a little behind must not refuse a certificate made a minute ago.
BACKDATE = timedelta(hours=1)


@dataclass(frozen=True)
class Identity:
    """Who a certificate speaks for."""

    name: str
    role: Role
    tenant: str = ""  # "": the default one


@dataclass(frozen=True)
class Enrolment:
    """A new certificate and its private key, PEM."""

    cert_pem: bytes
    key_pem: bytes


@dataclass(frozen=True)
class CertificateInfo:
    """What a certificate says. Times are UTC."""

    identity: Identity | None  # None: an authority, or not one of ours
    hosts: tuple[str, ...]
    not_before: datetime
    not_after: datetime
    issuer: str
    is_authority: bool


class Authority:
    """A certificate authority in memory."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self._certificate = certificate
        self._key = key

    @classmethod
    def create(cls, name: str = "Fogline authority") -> Authority:
        """Make a new one, valid for ten years."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = _key_usage(digital_signature=True, key_cert_sign=True, crl_sign=True)
        now = datetime.now(timezone.utc)
        builder = _builder(subject, subject, key.public_key(), now - BACKDATE, now + timedelta(days=AUTHORITY_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        return cls(builder.sign(key, hashes.SHA256()), key)

    @classmethod
    def load(cls, folder: Path, name: str = "ca") -> Authority:
        """Read `ca.pem` and `ca.key` (or another pair's). Raises ConfigError or IdentityError."""
        pem, key_file = folder / f"{name}.pem", folder / f"{name}.key"
        certificate = _certificate(_read(pem), pem)
        key = load_key(_read(key_file), key_file)
        if key.public_key() != certificate.public_key():
            raise IdentityError(f"{key_file} is not the key of {pem}; restore the right pair")
        return cls(certificate, key)

    def save(self, folder: Path, name: str = "ca") -> None:
        """Write `ca.pem` and `ca.key` (mode 0600). Raises ConfigError rather than overwrite."""
        key = dump_key(self._key)
        _write_new(folder, {f"{name}.key": (key, 0o600), f"{name}.pem": (self.certificate_pem, 0o644)})

    @property
    def certificate(self) -> x509.Certificate:
        """The authority's certificate."""
        return self._certificate

    @property
    def certificate_pem(self) -> bytes:
        """The authority's certificate: what every process gets as `tls.ca`."""
        return self._certificate.public_bytes(serialization.Encoding.PEM)

    def enrol(
        self,
        name: str,
        role: Role,
        hosts: tuple[str, ...] = (),
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
        tenant: str = "",
    ) -> Enrolment:
        """Make a key and a certificate for a device, valid for a year unless told otherwise.

        `hosts` are the DNS names and IP addresses that a server is dialled at. Raises ConfigError.
        """
        key = ec.generate_private_key(ec.SECP256R1())
        made = self.certify(
            key.public_key(), Identity(name, role, tenant), hosts, not_before=not_before, not_after=not_after
        )
        return Enrolment(made, dump_key(key))

    def certify(
        self,
        key: ec.EllipticCurvePublicKey,
        who: Identity,
        hosts: tuple[str, ...] = (),
        *,
        not_before: datetime | None = None,
        not_after: datetime | None = None,
    ) -> bytes:
        """Make a certificate (PEM) for a device that holds the key itself; else as `enrol`."""
        name, role = who.name, who.role
        if not re.fullmatch(NAME_PATTERN, name):
            raise ConfigError(f"device name {name!r} is not allowed; use 1 to 63 of a-z 0-9 . _ -, the ends a-z or 0-9")
        if role not in ROLES:
            raise ConfigError(f"role {role!r} is unknown; use one of {', '.join(ROLES)}")
        now = datetime.now(timezone.utc)
        start = not_before or now - BACKDATE
        # A device outliving its authority would fail at a peer with a message about the wrong certificate.
        end = min(not_after or now + timedelta(days=DEVICE_DAYS), self._certificate.not_valid_after_utc)
        if who.tenant and not re.fullmatch(NAME_PATTERN, who.tenant):
            raise ConfigError(f"tenant {who.tenant!r} is not allowed; use 1 to 63 of a-z 0-9 . _ -")
        subject = x509.Name(
            [
                x509.NameAttribute(NameOID.COMMON_NAME, name),
                x509.NameAttribute(NameOID.ORGANIZATIONAL_UNIT_NAME, role),
            ]
        )
        names: list[x509.GeneralName] = [x509.UniformResourceIdentifier(_uri(who))]
        names += [general_name(host) for host in dict.fromkeys((name, *hosts))]
        purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
        if role != "edge":
            purposes.append(ExtendedKeyUsageOID.SERVER_AUTH)
        return self._sign(key, subject, names, purposes, start, end)

    def serving(self, lifetime: timedelta) -> Enrolment:
        """Make the certificate that the certificate service shows, and its key."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, AUTHORITY_HOST)])
        now = datetime.now(timezone.utc)
        end = min(now + lifetime, self._certificate.not_valid_after_utc)
        purposes = [ExtendedKeyUsageOID.SERVER_AUTH]
        made = self._sign(key.public_key(), subject, [x509.DNSName(AUTHORITY_HOST)], purposes, now - BACKDATE, end)
        return Enrolment(made, dump_key(key))

    def revocation_list(
        self, revoked: Iterable[tuple[int, datetime]], number: int, now: datetime, lifetime: timedelta
    ) -> bytes:
        """Sign a list (DER) of the serial numbers that are revoked, with when; `number` rises from list to list."""
        builder = x509.CertificateRevocationListBuilder().issuer_name(self._certificate.subject)
        builder = builder.last_update(now - BACKDATE).next_update(now + lifetime)
        for serial, at in revoked:
            entry = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(at)
            builder = builder.add_revoked_certificate(entry.build())
        builder = builder.add_extension(x509.CRLNumber(number), critical=False)
        builder = builder.add_extension(self._key_identifier(), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)

    def _sign(
        self,
        key: ec.EllipticCurvePublicKey,
        subject: x509.Name,
        names: list[x509.GeneralName],
        purposes: list[x509.ObjectIdentifier],
        start: datetime,
        end: datetime,
    ) -> bytes:
        builder = _builder(subject, self._certificate.subject, key, start, end)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(digital_signature=True), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        builder = builder.add_extension(self._key_identifier(), critical=False)
        return builder.sign(self._key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def _key_identifier(self) -> x509.AuthorityKeyIdentifier:
        issuer_key = self._certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
        return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(issuer_key)


def save_enrolment(enrolment: Enrolment, authority_pem: bytes, name: str, folder: Path) -> None:
    """Write `NAME.pem`, `NAME.key` (mode 0600) and a copy of `ca.pem`. Raises ConfigError rather than overwrite."""
    ca = folder / "ca.pem"
    if ca.exists() and ca.read_bytes() != authority_pem:
        raise ConfigError(f"{ca} is of another authority; enrol into another folder or remove it first")
    files = {f"{name}.key": (enrolment.key_pem, 0o600), f"{name}.pem": (enrolment.cert_pem, 0o644)}
    if not ca.exists():
        files["ca.pem"] = (authority_pem, 0o644)
    _write_new(folder, files)


def inspect(cert_pem: bytes, origin: str | Path = "certificate") -> CertificateInfo:
    """Read a certificate without judging it. Raises IdentityError when it is none."""
    certificate = _certificate(cert_pem, origin)
    hosts: list[str] = []
    identity = None
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        names = x509.SubjectAlternativeName([])
    hosts += names.get_values_for_type(x509.DNSName)
    hosts += [str(address) for address in names.get_values_for_type(x509.IPAddress)]
    ours = [u for u in names.get_values_for_type(x509.UniformResourceIdentifier) if u.startswith("fogline://")]
    if len(ours) == 1 and (match := _URI.fullmatch(ours[0])):
        role = next(role for role in ROLES if role == match["role"])
        identity = Identity(match["name"], role, match["tenant"] or "")
    try:
        is_authority = certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca
    except x509.ExtensionNotFound:
        is_authority = False
    return CertificateInfo(
        identity,
        tuple(hosts),
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.issuer.rfc4514_string(),
        is_authority,
    )


def identity(cert_pem: bytes, origin: str | Path = "certificate") -> Identity:
    """Return who a certificate (already verified by TLS) speaks for. Raises IdentityError when it names no device."""
    found = inspect(cert_pem, origin).identity
    if found is None:
        raise IdentityError(f"{origin} names no Fogline device; make it with `fogline ca enrol NAME --role ROLE`")
    return found


def own_identity(cert: Path, role: Role) -> Identity:
    """Return who the certificate in a file speaks for. Raises ConfigError, or IdentityError for another role."""
    try:
        found = identity(cert.read_bytes(), cert)
    except OSError as error:
        raise ConfigError(
            f"tls.cert {cert} can't be read: {error.strerror}; make it with `fogline ca enrol`", number=206
        ) from error
    if found.role != role:
        raise IdentityError(
            f"{cert} is a certificate of the {found.role} {found.name}; enrol with --role {role}", number=704
        )
    return found


def check(
    cert_pem: bytes,
    authority_pem: bytes,
    key_pem: bytes | None = None,
    *,
    now: datetime | None = None,
    origin: str | Path = "certificate",
) -> Identity:
    """Return a certificate's identity once it is in date, of this authority and (where given) of this key.

    Raises IdentityError that says what is wrong and what to do.
    """
    info = inspect(cert_pem, origin)
    certificate = _certificate(cert_pem, origin)
    issuers = authorities(authority_pem)
    issuer = next((one for one in issuers if issued_by(certificate, one)), None)
    if issuer is None:
        raise IdentityError(
            f"{origin} (issued by {info.issuer}) is not of the authority {issuers[0].subject.rfc4514_string()} in use; "
            "enrol it again with that authority, or use the ca.pem it came with",
            number=702,
        )
    moment = now or datetime.now(timezone.utc)
    for what, start, end in (
        (str(origin), info.not_before, info.not_after),
        ("the authority", issuer.not_valid_before_utc, issuer.not_valid_after_utc),
    ):
        if moment >= end:
            raise IdentityError(
                f"{what} expired on {end:%Y-%m-%d %H:%M} UTC, and this host's clock says {moment:%Y-%m-%d %H:%M}; set"
                " the clock if that is wrong, else enrol again with `fogline ca enrol`",
                number=701,
            )
        if moment < start:
            raise IdentityError(
                f"{what} is valid only from {start:%Y-%m-%d %H:%M} UTC and it is {moment:%Y-%m-%d %H:%M}; set this "
                "host's clock",
                number=701,
            )
    if key_pem is not None and load_key(key_pem, "key").public_key() != certificate.public_key():
        raise IdentityError(
            f"the private key does not belong to {origin}; use the pair that `fogline ca enrol` wrote", number=703
        )
    return identity(cert_pem, origin)


def authorities(bundle_pem: bytes, origin: str | Path = "authority") -> list[x509.Certificate]:
    """Return the authorities of a file, one or more. Raises IdentityError when there is none."""
    try:
        return x509.load_pem_x509_certificates(bundle_pem)
    except ValueError as error:
        raise IdentityError(f"{origin} is not a certificate in PEM: {error}") from error


def issued_by(certificate: x509.Certificate, issuer: x509.Certificate) -> bool:
    """Whether an authority signed a certificate; dates are not looked at."""
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


def _uri(who: Identity) -> str:
    return f"fogline://{who.role}/{who.name}" + (f"?tenant={who.tenant}" if who.tenant else "")


_URI = re.compile(
    rf"fogline://(?P<role>{'|'.join(ROLES)})/(?P<name>{NAME_PATTERN})(\?tenant=(?P<tenant>{NAME_PATTERN}))?"
)


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, start: datetime, end: datetime
) -> x509.CertificateBuilder:
    builder = x509.CertificateBuilder().subject_name(subject).issuer_name(issuer).public_key(key)
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(end)
    return builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key), critical=False)


def _key_usage(*, digital_signature: bool, key_cert_sign: bool = False, crl_sign: bool = False) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=digital_signature,
        key_cert_sign=key_cert_sign,
        crl_sign=crl_sign,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def general_name(host: str) -> x509.GeneralName:
    """Return a host as certificates name it. Raises ConfigError for what is neither an address nor a DNS name."""
    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        pass
    if not re.fullmatch(HOST_PATTERN, host):
        raise ConfigError(f"host {host!r} is neither an IP address nor a DNS name; give it without scheme and port")
    if host.lower().rstrip(".").endswith(AUTHORITY_HOST.partition(".")[2]):
        raise ConfigError(f"host {host!r} is kept for the certificate service; choose another name")
    return x509.DNSName(host)


def _certificate(pem: bytes, origin: str | Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(pem)
    except ValueError as error:
        raise IdentityError(f"{origin} is not a certificate in PEM: {error}") from error


def load_key(pem: bytes, origin: str | Path) -> ec.EllipticCurvePrivateKey:
    """Read a private key. Raises IdentityError."""
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (ValueError, TypeError) as error:
        raise IdentityError(f"{origin} is not a private key in PEM: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise IdentityError(f"{origin} is not an ECDSA key; enrol again with `fogline ca enrol`")
    return key


def dump_key(key: ec.EllipticCurvePrivateKey) -> bytes:
    """Return a private key as PEM, not encrypted."""
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"{path} can't be read: {error.strerror}; make an authority with `fogline ca init`"
        ) from error


def _write_new(folder: Path, files: dict[str, tuple[bytes, int]]) -> None:
    """Write all files or none, the private ones never readable by others, not even for a moment."""
    made: list[Path] = []
    for name in files:
        if (folder / name).exists():
            raise ConfigError(
                f"{folder / name} exists and is not overwritten; choose another folder or remove it first"
            )
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        for name, (data, mode) in files.items():
            handle = os.open(folder / name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, mode)
            made.append(folder / name)
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                os.fsync(handle)
    except OSError as error:
        for path in made:
            path.unlink(missing_ok=True)
        raise ConfigError(f"certificates can't be written to {folder}: {error}; choose another folder") from error
