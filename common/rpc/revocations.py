"""Which certificates were revoked, by lists that our authorities signed. Pure logic: lists in, answers out."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec

from fogline.common.errors import IdentityError


@dataclass(frozen=True)
class RevocationList:
    """One authority's list, verified."""

    issuer: bytes  # its key, as the list identifies it
    number: int  # rises whenever something is revoked
    serials: frozenset[int]
    next_update: datetime
    der: bytes


class Revocations:
    """What is known to be revoked. One thread updates it, any may ask."""

    def __init__(self) -> None:
        self._lists: dict[bytes, RevocationList] = {}
        self._serials: frozenset[int] = frozenset()

    def __contains__(self, serial: int) -> bool:
        return serial in self._serials

    def __len__(self) -> int:
        return len(self._serials)

    @property
    def lists(self) -> tuple[RevocationList, ...]:
        """The lists in force."""
        return tuple(self._lists.values())

    def update(self, ders: Iterable[bytes], authorities: Iterable[x509.Certificate]) -> bool:
        """Take lists, each signed by one of `authorities`; whether anything is new.

        Raises IdentityError for one that is not, or that is older than what is held: somebody plays back an old one.
        """
        issuers = list(authorities)
        found = [read(der, issuers) for der in ders]
        for one in found:
            held = self._lists.get(one.issuer)
            if held is not None and one.number < held.number:
                raise IdentityError(
                    f"revocation list {one.number} came after {held.number}: an old one is played back, or the "
                    "authority's register was replaced by an old copy; restart to begin anew after deleting revoked.pem"
                )
        changed = any(self._lists.get(one.issuer) != one for one in found)
        known = {_key_identifier(one) for one in issuers}
        lists = {issuer: one for issuer, one in self._lists.items() if issuer in known}
        lists |= {one.issuer: one for one in found}
        self._lists = lists
        self._serials = frozenset(serial for one in lists.values() for serial in one.serials)
        return changed


def read(der: bytes, authorities: Iterable[x509.Certificate]) -> RevocationList:
    """Verify a list. Raises IdentityError."""
    try:
        crl = x509.load_der_x509_crl(der)
        number = crl.extensions.get_extension_for_class(x509.CRLNumber).value.crl_number
        issuer = crl.extensions.get_extension_for_class(x509.AuthorityKeyIdentifier).value.key_identifier
        next_update = crl.next_update_utc
        serials = frozenset(entry.serial_number for entry in crl)
    except (ValueError, TypeError, x509.ExtensionNotFound, x509.DuplicateExtension) as error:
        raise IdentityError(f"{len(der)} bytes that are not a revocation list: {error}") from error
    for one in authorities:
        key = one.public_key()
        if issuer != _key_identifier(one) or not isinstance(key, ec.EllipticCurvePublicKey):
            continue
        if next_update is not None and crl.is_signature_valid(key):
            return RevocationList(issuer, number, serials, next_update, der)
    raise IdentityError("a revocation list that none of our authorities signed; compare tls.ca and tls.authority")


def _key_identifier(certificate: x509.Certificate) -> bytes:
    return certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value.digest
