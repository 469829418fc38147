"""The rules of the certificate service: who gets which certificate. Knows no gRPC and no clock."""

from __future__ import annotations

import fnmatch
import hashlib
import ipaddress
import re
import sqlite3
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from fogline.common import pki
from fogline.common.authority import csr as requests
from fogline.common.authority import register, token
from fogline.common.authority.register import Generation, Token
from fogline.common.database import Database
from fogline.common.errors import CapacityError, ConfigError, IdentityError
from fogline.common.pki import Authority, Enrolment, Identity, Role

# Renewed at two thirds of it: the service may be away for two days and more before anybody notices. What ends a stolen
# certificate is revocation, within a minute; this bounds what a lost revocation list or a copied disk is worth.
LIFETIME = timedelta(days=7)
# A camera that lay in a cupboard comes back by itself: it still holds the key, and was not revoked.
GRACE = timedelta(days=30)
LIST_LIFETIME = timedelta(days=7)
LIST_AGE = timedelta(hours=1)  # signed anew then, though nothing changed
MAX_USES = 100_000
MAX_VALID = 50  # certificates of one device at a time; one that is well has two
MAX_EXPIRY = timedelta(days=366)


@dataclass(frozen=True)
class Issued:
    """A new certificate, and every authority that is trusted now; PEM."""

    certificate: bytes
    authorities: bytes


class Registrar:
    """One authority's folder: `ca.pem`, `ca.key`, `authority.db`. Threads and processes may share it."""

    def __init__(self, folder: Path, lifetime: timedelta = LIFETIME) -> None:
        """Open; the register is made when missing. Raises ConfigError or IdentityError."""
        self._folder, self._lifetime = folder, lifetime
        self._keys: dict[str, Authority] = {"ca": Authority.load(folder)}
        self._db = Database(folder / "authority.db", register.SCHEMA, register.VERSION)
        self._signing = threading.Lock()
        self._lists: tuple[tuple[int, tuple[int, ...]], datetime, list[bytes]] | None = None
        with self._db.transaction() as db:
            if not register.generations(db):
                register.add_generation(db, Generation(1, "ca", 0, None))

    def close(self) -> None:
        """Close the register."""
        self._db.close()

    # --- tokens and certificates

    def issue_token(
        self,
        role: Role,
        names: str,
        now: datetime,
        *,
        tenant: str = "",
        hosts: tuple[str, ...] = (),
        uses: int = 1,
        expires: timedelta = timedelta(days=1),
    ) -> str:
        """Make a token and return its secret, of which only a hash is kept. Raises ConfigError.

        `names`: the one name that it is good for, or a pattern with `*` and `?`.
        """
        if role not in pki.ROLES:
            raise ConfigError(f"role {role!r} is unknown; use one of {', '.join(pki.ROLES)}")
        if not re.fullmatch(r"[a-z0-9._*?-]{1,63}", names):
            raise ConfigError(f"name or pattern {names[:80]!r} is not allowed; use 1 to 63 of a-z 0-9 . _ - and * ?")
        if tenant and not re.fullmatch(pki.NAME_PATTERN, tenant):
            raise ConfigError(f"tenant {tenant[:80]!r} is not allowed; use 1 to 63 of a-z 0-9 . _ -")
        if not 1 <= uses <= MAX_USES:
            raise ConfigError(f"a token for {uses} uses is not made; 1 to {MAX_USES}")
        if not timedelta(0) < expires <= MAX_EXPIRY:
            raise ConfigError(f"a token that is good for {expires} is not made; use up to {MAX_EXPIRY.days} days")
        if hosts and role == "edge":
            raise ConfigError("an edge is dialled by nobody; leave out the hosts, or choose another role")
        if uses > 1 and not _is_pattern(names):
            raise ConfigError(f"{uses} devices can't all be {names!r}; give a pattern such as '{names}-*', or one use")
        secret = token.new_secret()
        made = Token(0, role, tenant, names, hosts, uses, _seconds(now + expires))
        with self._db.transaction() as db:
            register.forget_tokens(db, _seconds(now - MAX_EXPIRY))
            register.add_token(db, token.digest(secret), made)
        return secret

    def enrol(self, secret: str, csr: bytes, now: datetime) -> Issued:
        """Certify a device that brings a token. The same request again gets its certificate again, and costs no use.

        Raises IdentityError for what is not allowed, ProtocolError for what is no request.
        """
        wanted = requests.read(csr)
        key = _digest(wanted.key)
        with self._db.transaction() as db:
            found = register.find_token(db, token.digest(secret))
            if found is None:
                raise IdentityError(
                    "this authority knows no such token; ask for a new one (`fogline ca token`)", number=710
                )
            if _seconds(now) >= found.expires_at:
                ended = datetime.fromtimestamp(found.expires_at, timezone.utc)
                raise IdentityError(
                    f"the token ended on {ended:%Y-%m-%d %H:%M} UTC; ask for a new one (`fogline ca token`)", number=710
                )
            if not fnmatch.fnmatchcase(wanted.name, found.names):
                raise IdentityError(
                    f"the token is for {found.names!r} and not for {wanted.name!r}; use --name", number=710
                )
            again = register.used_before(db, found, wanted.name, key)
            if not again and register.uses(db, found) >= found.uses:
                raise IdentityError("the token was used by another device already; ask for a new one", number=710)
            who = Identity(wanted.name, found.role, found.tenant)
            self._check_name(db, who, key, exact=not _is_pattern(found.names))
            self._check_hosts(db, who, wanted.hosts, found.hosts)
            register.use(db, found, who.name, key)
            replaced = register.revoke(db, who.name, _seconds(now), keep_key=key)
            if replaced:
                register.release_hosts(db, who.name)
            return self._issue(db, who, wanted.hosts, wanted.key, now)

    def renew(self, certificate_pem: bytes, csr: bytes, signature: bytes, now: datetime) -> Issued:
        """Certify the next key of a device that holds a certificate of ours, if it ended at most `GRACE` ago.

        Raises IdentityError for what is not allowed, ProtocolError for what is no request.
        """
        if len(certificate_pem) > requests.MAX_BYTES:
            raise IdentityError(f"a certificate of {len(certificate_pem)} bytes; at most {requests.MAX_BYTES}")
        info = pki.inspect(certificate_pem)
        who = info.identity
        if who is None:
            raise IdentityError("the certificate names no Fogline device; join with a token")
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        requests.check_renewal(certificate.public_key(), csr, signature)
        wanted = requests.read(csr)
        if wanted.name != who.name or wanted.hosts:
            raise IdentityError(
                f"{who.name} asks to be certified as {wanted.name}; a renewal changes nothing but the key"
            )
        if now >= info.not_after + GRACE:
            raise IdentityError(
                f"the certificate of {who.name} ended on {info.not_after:%Y-%m-%d}, more than {GRACE.days} days ago; "
                "join again with a new token"
            )
        with self._db.transaction() as db:
            self._note(db, certificate, who, now)
            known = register.find_device(db, who.name)
            if known != who:
                raise IdentityError(f"{who.name} is enrolled as {_text(known)} and its certificate says {_text(who)}")
            if register.key_revoked(db, _digest(certificate.public_key())):
                raise IdentityError(
                    f"the certificate of {who.name} was revoked; join again with a new token and key", number=712
                )
            hosts = tuple(host for host in info.hosts if host != who.name)
            return self._issue(db, who, hosts, wanted.key, now)

    def record(self, certificate_pem: bytes, now: datetime) -> None:
        """Note a certificate that was made without the service. Raises IdentityError where its name is another's."""
        info = pki.inspect(certificate_pem)
        certificate = x509.load_pem_x509_certificate(certificate_pem)
        if info.identity is None:
            raise IdentityError("the certificate names no Fogline device")
        with self._db.transaction() as db:
            self._note(db, certificate, info.identity, now)
            known = register.find_device(db, info.identity.name)
            if known != info.identity:
                raise IdentityError(f"{info.identity.name} is enrolled as {_text(known)} already; choose another name")
            register.add_device(db, info.identity, _claims(info.identity, info.hosts))

    def revoke(self, name: str, now: datetime) -> int:
        """Revoke every certificate of a device; how many. Raises ConfigError where there is none to revoke."""
        with self._db.transaction() as db:
            if register.find_device(db, name) is None:
                raise ConfigError(
                    f"no device {name!r} was enrolled here; give its name as enrolled, or its certificate with --cert"
                )
            count = register.revoke(db, name, _seconds(now))
            register.release_hosts(db, name)
        return count

    def enrol_by_hand(
        self, name: str, role: Role, hosts: tuple[str, ...], now: datetime, tenant: str = ""
    ) -> tuple[Enrolment, bytes]:
        """Make a key and a certificate, to be copied to a device; and every authority that is trusted, PEM."""
        with self._db.transaction() as db:
            signer = self._key(self._signer(db, now))
        made = signer.enrol(name, role, hosts, tenant=tenant)
        self.record(made.cert_pem, now)
        return made, self.bundle(now)

    def rotate(self, now: datetime, overlap: timedelta, *, compromised: bool = False) -> tuple[datetime, datetime]:
        """Make the authority's next key; when it begins to sign, and when the old one is no longer trusted.

        Everybody hears of the new one while the old one still signs, for `overlap`; then certificates of the old one
        run out. With `compromised`, the old one ends at once, and every device has to join again.
        Raises ConfigError while a change is under way.
        """
        with self._db.transaction() as db:
            trusted = self._trusted(db, now)
            newest = register.generations(db)[-1]
            if len(trusted) > 1 and not compromised:
                raise ConfigError(
                    f"the authority is being changed: {newest.file}.pem signs from {_when(newest.signs_from)} on, and "
                    f"the old one is trusted until {_when(trusted[0].retires_at or 0)}; wait for that"
                )
            begins = now if compromised else now + overlap
            ends = now
            for one in trusted:
                if not compromised:
                    last = register.newest_end(db, one.number) or 0
                    ends = max(datetime.fromtimestamp(last, timezone.utc), begins + self._lifetime) + GRACE
                register.add_generation(db, Generation(one.number, one.file, one.signs_from, _seconds(ends)))
            number = newest.number + 1
            file = f"ca-{number}"
            if not (self._folder / f"{file}.pem").exists():  # else we were killed before its row was written
                Authority.create(f"Fogline authority {number}").save(self._folder, file)
            register.add_generation(db, Generation(number, file, _seconds(begins), None))
        return begins, ends

    def devices(self) -> list[tuple[Identity, datetime, datetime | None]]:
        """Every device by name, when its newest certificate ends, and when that was revoked."""
        with self._db.transaction() as db:
            found = register.devices(db)
        return [(who, _moment(ends), None if revoked is None else _moment(revoked)) for who, ends, revoked in found]

    # --- what everybody may know

    def lists(self, now: datetime) -> tuple[list[bytes], bytes]:
        """What is revoked, a signed list (DER) of each trusted authority; and those authorities, PEM."""
        with self._signing, self._db.transaction() as db:
            trusted = self._trusted(db, now)
            state = register.revocations(db), tuple(one.number for one in trusted)
            if self._lists is None or self._lists[0] != state or now - self._lists[1] > LIST_AGE:
                made = []
                for one in trusted:
                    serials = register.revoked(db, one.number, _seconds(now))
                    entries = [(serial, datetime.fromtimestamp(at, timezone.utc)) for serial, at in serials]
                    made.append(self._key(one).revocation_list(entries, state[0], now, LIST_LIFETIME))
                self._lists = state, now, made
            return self._lists[2], self._bundle(db, now)

    def bundle(self, now: datetime) -> bytes:
        """Every authority that is trusted now, PEM, the one that signs first."""
        with self._db.transaction() as db:
            return self._bundle(db, now)

    def known_to_all(self, now: datetime) -> Authority:
        """The authority that vouches for the service itself: the oldest that is trusted, which everybody knows."""
        with self._db.transaction() as db:
            return self._key(self._trusted(db, now)[0])

    # --- inside

    def _check_name(self, db: sqlite3.Connection, who: Identity, key: bytes, *, exact: bool) -> None:
        if register.key_revoked(db, key):
            raise IdentityError(f"the key of {who.name} was revoked; delete {who.name}.key and join again", number=712)
        known = register.find_device(db, who.name)
        if known is None:
            return
        if known != who:
            raise IdentityError(f"{who.name} is enrolled as {_text(known)}, not as {_text(who)}; choose another name")
        if not exact and not register.has_key(db, who.name, key):
            raise IdentityError(
                f"{who.name} is the name of another device; choose another with --name, or, where this one replaces "
                f"it, ask for a token of just that name (`fogline ca token --name {who.name}`)",
                number=711,
            )

    def _check_hosts(
        self, db: sqlite3.Connection, who: Identity, hosts: tuple[str, ...], patterns: tuple[str, ...]
    ) -> None:
        if hosts and who.role == "edge":
            raise IdentityError(f"{who.name} is an edge, which nobody dials; leave out --host")
        for host in _claims(who, (who.name, *hosts)):
            owner = register.host_owner(db, host)
            if owner not in (None, who.name):
                raise IdentityError(f"{who.name} asks for the host {host!r}, which is that of {owner}; leave it out")
        for host in hosts:
            if patterns and host != who.name and not any(fnmatch.fnmatchcase(host, one) for one in patterns):
                raise IdentityError(f"the token allows the hosts {', '.join(patterns)} and not {host!r}; leave it out")

    def _issue(
        self,
        db: sqlite3.Connection,
        who: Identity,
        hosts: tuple[str, ...],
        key: ec.EllipticCurvePublicKey,
        now: datetime,
    ) -> Issued:
        register.forget_certificates(db, who.name, _seconds(now - GRACE))
        if register.valid_certificates(db, who.name, _seconds(now)) >= MAX_VALID:
            raise CapacityError(
                f"{who.name} has {MAX_VALID} certificates that are good, and asks for another; find out why it can't "
                "keep the new ones (is its folder full or read-only?), and try again when some have ended"
            )
        signer = self._signer(db, now)
        try:
            pem = self._key(signer).certify(
                key, who, hosts, not_before=now - pki.BACKDATE, not_after=now + self._lifetime
            )
        except ConfigError as error:  # a host that is kept for the service
            raise IdentityError(str(error)) from error
        made = x509.load_pem_x509_certificate(pem)
        register.add_device(db, who, _claims(who, (who.name, *hosts)))
        ends = _seconds(made.not_valid_after_utc)
        register.add_certificate(db, made.serial_number, who.name, signer.number, _digest(key), ends)
        return Issued(pem, self._bundle(db, now))

    def _note(self, db: sqlite3.Connection, certificate: x509.Certificate, who: Identity, now: datetime) -> None:
        """Remember a certificate of ours that the register does not have yet. Raises IdentityError for others'."""
        for one in self._trusted(db, now):
            if pki.issued_by(certificate, self._key(one).certificate):
                break
        else:
            raise IdentityError(f"the certificate of {who.name} is not of this authority; join with a token")
        if register.find_device(db, who.name) is None:
            register.add_device(db, who, ())
        key, ends = _digest(certificate.public_key()), _seconds(certificate.not_valid_after_utc)
        register.add_certificate(db, certificate.serial_number, who.name, one.number, key, ends)

    def _signer(self, db: sqlite3.Connection, now: datetime) -> Generation:
        return [one for one in self._trusted(db, now) if one.signs_from <= _seconds(now)][-1]

    def _trusted(self, db: sqlite3.Connection, now: datetime) -> list[Generation]:
        found = register.generations(db)
        return [one for one in found if one.retires_at is None or _seconds(now) < one.retires_at]

    def _bundle(self, db: sqlite3.Connection, now: datetime) -> bytes:
        trusted = [one for one in self._trusted(db, now)]
        trusted.sort(key=lambda one: (one.signs_from > _seconds(now), -one.number))
        return b"".join(self._key(one).certificate_pem for one in trusted)

    def _key(self, generation: Generation) -> Authority:
        if generation.file not in self._keys:
            self._keys[generation.file] = Authority.load(self._folder, generation.file)
        return self._keys[generation.file]


def _claims(who: Identity, hosts: tuple[str, ...]) -> tuple[str, ...]:
    """The hosts that nobody else may have then. A loopback address is everybody's, and an edge is dialled by nobody."""
    return () if who.role == "edge" else tuple(host for host in hosts if not _is_loopback(host))


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _is_pattern(names: str) -> bool:
    return "*" in names or "?" in names


def _text(who: Identity | None) -> str:
    if who is None:
        return "nothing"
    return f"{who.role} of tenant {who.tenant!r}" if who.tenant else f"{who.role} without a tenant"


def _digest(key: object) -> bytes:
    if not isinstance(key, ec.EllipticCurvePublicKey):
        raise IdentityError("the certificate is not of an ECDSA key; join again with a new token")
    return hashlib.sha256(key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)).digest()


def _when(seconds: int) -> str:
    return f"{_moment(seconds):%Y-%m-%d %H:%M} UTC"


def _moment(seconds: int) -> datetime:
    return datetime.fromtimestamp(seconds, timezone.utc)


def _seconds(moment: datetime) -> int:
    return int(moment.timestamp())


@contextmanager
def opened(folder: Path) -> Iterator[Registrar]:
    """A registrar for the length of a command."""
    registrar = Registrar(folder)
    try:
        yield registrar
    finally:
        registrar.close()
