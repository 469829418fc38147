"""What a device asks to be certified, made by it and read by the certificate service, to which it is hostile.

A request may say a name, host names and addresses. Role and tenant are the token's to give: a request that brings more
than that is refused, not trimmed.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from fogline.common import pki
from fogline.common.errors import IdentityError, ProtocolError

MAX_BYTES = 8192
MAX_HOSTS = 32
RENEWAL = b"fogline renew 1\n"


@dataclass(frozen=True)
class Wanted:
    """A request, checked: it was signed with the key that it names."""

    name: str
    hosts: tuple[str, ...]
    key: ec.EllipticCurvePublicKey


def make(key: ec.EllipticCurvePrivateKey, name: str, hosts: tuple[str, ...] = ()) -> bytes:
    """Make a request (DER). Raises ConfigError for hosts that are none."""
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
    builder = x509.CertificateSigningRequestBuilder().subject_name(subject)
    if hosts:
        names = [pki.general_name(host) for host in dict.fromkeys(hosts)]
        builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.DER)


def read(der: bytes) -> Wanted:
    """Read a request. Raises ProtocolError for what is none, IdentityError for what asks for too much."""
    if len(der) > MAX_BYTES:
        raise ProtocolError(f"a certificate request of {len(der)} bytes; at most {MAX_BYTES}")
    try:
        csr = x509.load_der_x509_csr(der)
        key = csr.public_key()
        extensions = list(csr.extensions)
        subject = list(csr.subject)
        ours = isinstance(key, ec.EllipticCurvePublicKey) and isinstance(key.curve, ec.SECP256R1)
        sound = ours and csr.is_signature_valid  # strangers choose other keys for what they cost to verify
    except (ValueError, TypeError, UnsupportedAlgorithm, InvalidSignature, x509.DuplicateExtension) as error:
        raise ProtocolError(f"{len(der)} bytes that are not a certificate request: {error}") from error
    if not isinstance(key, ec.EllipticCurvePublicKey) or not ours:
        raise IdentityError("the certificate request is not for an ECDSA key on P-256; `fogline join` makes one")
    if not sound:
        raise IdentityError("the certificate request is not signed with the key that it names; make it anew")
    if len(subject) != 1 or subject[0].oid != NameOID.COMMON_NAME:
        raise IdentityError("the subject of a certificate request is one common name, the device's, and nothing else")
    name = str(subject[0].value)
    if not re.fullmatch(pki.NAME_PATTERN, name):
        raise IdentityError(f"device name {name[:80]!r} is not allowed; use 1 to 63 of a-z 0-9 . _ -")
    return Wanted(name, _hosts(extensions), key)


def renewal_signature(key: ec.EllipticCurvePrivateKey, csr: bytes) -> bytes:
    """Sign a request for the next certificate with the key of the present one."""
    return key.sign(RENEWAL + csr, ec.ECDSA(hashes.SHA256()))


def check_renewal(key: object, csr: bytes, signature: bytes) -> None:
    """Raise IdentityError unless the holder of the present certificate's key made this request."""
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("the certificate is not of an ECDSA key; join again with a new token")
    try:
        key.verify(signature, RENEWAL + csr, ec.ECDSA(hashes.SHA256()))
    except InvalidSignature:
        raise IdentityError(
            "the renewal is not signed with the key of the certificate; only its holder renews it"
        ) from None


def _hosts(extensions: list[x509.Extension[x509.ExtensionType]]) -> tuple[str, ...]:
    hosts: list[str] = []
    for extension in extensions:
        if not isinstance(extension.value, x509.SubjectAlternativeName):
            raise IdentityError(
                f"a certificate request asks for the extension {extension.oid.dotted_string}; it may name hosts only"
            )
        for name in extension.value:
            if isinstance(name, x509.DNSName) and re.fullmatch(pki.HOST_PATTERN, name.value) and "*" not in name.value:
                hosts.append(name.value.lower())
            elif isinstance(name, x509.IPAddress) and isinstance(
                name.value, (ipaddress.IPv4Address, ipaddress.IPv6Address)
            ):
                hosts.append(str(name.value))
            else:
                raise IdentityError(
                    f"a certificate request names {str(name.value)[:80]!r}; it may name DNS names and IP addresses, "
                    "without wildcards"
                )
    if len(hosts) > MAX_HOSTS:
        raise IdentityError(f"a certificate request names {len(hosts)} hosts; at most {MAX_HOSTS}")
    return tuple(dict.fromkeys(hosts))
