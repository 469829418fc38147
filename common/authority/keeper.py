"""Keeps a process's certificate fresh, and what it knows of the authority and of revocations; a thread of its own.

What is new is written to the files that `tls` names, so that it is there after a restart, and for every other process
that uses them: new connections of both kinds read them (`rpc/tls.py`). The key stays: one file is replaced in one step.
"""

from __future__ import annotations

import fcntl
import logging
import random
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fogline.common import addresses, pki
from fogline.common.authority import client, csr
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, FoglineError, IdentityError
from fogline.common.files import replace_file
from fogline.common.rpc.gen import authority_pb2 as pb
from fogline.common.rpc.retry import Backoff
from fogline.common.rpc.revocations import Revocations
from fogline.common.rpc.tls import read_pem

log = logging.getLogger(__name__)

SHARE = 2 / 3  # of a certificate's lifetime, after which it is renewed
JITTER = 0.05  # of it, so that devices that joined together do not renew together
CALM_S = 3600.0  # how often a process that serves nobody asks whom to trust
LISTS = "revoked.pem"


def due(info: pki.CertificateInfo, share: float = SHARE) -> datetime:
    """When a certificate is to be renewed."""
    # It was dated back, for devices whose clock is behind: that is no part of its life.
    begin = min(info.not_before + pki.BACKDATE, info.not_after)
    return begin + (info.not_after - begin) * share


def ensure(tls: TlsConfig) -> None:
    """Before a start: renew a certificate that ended while we were off. Whatever goes wrong is told by who needs it."""
    if tls.insecure or not tls.authority:
        return
    try:
        info = pki.inspect(read_pem("cert", tls.files()[1]), tls.files()[1])
        if _now() >= info.not_after:
            renew(tls)
    except FoglineError as error:
        log.warning("the certificate ended and can't be renewed: %s", error)


def renew(tls: TlsConfig, share: float = SHARE) -> bool:
    """Renew the certificate if it is due, once for all processes that share it; whether it was.

    Raises IdentityError, ConfigError, UnavailableError, ProtocolError, CapacityError.
    """
    ca_path, cert_path, key_path = tls.files()
    with _alone(cert_path):
        cert, key_pem = read_pem("cert", cert_path), read_pem("key", key_path)
        if _now() < due(pki.inspect(cert, cert_path), share):
            return False  # another process was faster
        who = pki.identity(cert, cert_path)
        key = pki.load_key(key_pem, key_path)
        request = csr.make(key, who.name)
        signature = csr.renewal_signature(key, request)
        asked = pb.RenewRequest(certificate=cert, csr=request, signature=signature)
        with client.connected(addresses.parse(tls.authority), read_pem("ca", ca_path)) as service:
            answer = service.Renew(asked, timeout=client.DEADLINE_S)
        if pki.check(answer.certificate, answer.authorities, key_pem, origin="the renewed certificate") != who:
            raise IdentityError(f"{tls.authority} renewed {who.name} as somebody else; update the service")
        _write(ca_path, answer.authorities)
        _write(cert_path, answer.certificate)
    log.info("certificate renewed", extra={"until": pki.inspect(answer.certificate).not_after.isoformat()})
    return True


class Keeper:
    """The thread. `revocations`: kept up to date, by who serves; None: of no use here."""

    def __init__(
        self, tls: TlsConfig, revocations: Revocations | None = None, on_renewed: Callable[[], None] | None = None
    ) -> None:
        self._tls, self._revocations, self._on_renewed = tls, revocations, on_renewed
        self._address = addresses.parse(tls.authority)
        self._stop = threading.Event()
        self._backoff = Backoff(cap_s=60.0)
        self._share = SHARE + random.random() * JITTER
        self._said: dict[str, str] = {}
        self._heard = datetime.fromtimestamp(0, timezone.utc)  # when the service last told what is revoked
        self._renew_after = 0.0  # by the monotonic clock, after a failure
        self._thread = threading.Thread(target=self._run, name="certificates", daemon=True)

    def start(self) -> None:
        """Take up what was known before, and begin. Raises ConfigError or IdentityError for files that are wrong."""
        if self._revocations is not None:
            self._recall(self._revocations)
        self._thread.start()

    def close(self) -> None:
        """Stop; a call under way is not waited for long."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(1.0)

    @property
    def trouble(self) -> str:
        """Why the certificate is not being renewed, or the list is old; empty when all is well."""
        return "; ".join(filter(None, self._said.values()))

    def refresh(self) -> None:
        """Ask now whom to trust; a failure is told later, by `trouble`."""
        self._attempt("revocations", self._refresh)

    def _run(self) -> None:
        interval = self._tls.refresh_s if self._revocations is not None else CALM_S
        asked = float("-inf")
        while not self._stop.is_set():
            self._attempt("renewal", self._renew)
            if time.monotonic() - asked >= interval:
                asked = time.monotonic()
                self._attempt("revocations", self._refresh)
            self._stop.wait(min(interval, 5.0))

    def _attempt(self, what: str, step: Callable[[], None]) -> None:
        try:
            step()
            self._said[what] = ""
        except FoglineError as error:
            if self._said.get(what) != str(error):  # the service may be away for days: one line for each new reason
                log.warning("%s: %s; trying again", what, error)
            self._said[what] = str(error)
        except Exception as error:
            log.exception("%s failed by a mistake of ours; trying again", what)
            self._said[what] = f"{type(error).__name__}: {error}"

    def _renew(self) -> None:
        if time.monotonic() < self._renew_after:
            return
        info = pki.inspect(read_pem("cert", self._tls.files()[1]))
        if _now() < due(info, self._share):
            return
        try:
            renewed = renew(self._tls, self._share)
        except FoglineError:
            self._renew_after = time.monotonic() + self._backoff.delay_s()
            raise
        self._backoff.reset()
        if self._on_renewed is not None and renewed:
            self._on_renewed()

    def _refresh(self) -> None:
        ca_path, cert_path, _ = self._tls.files()
        trusted = read_pem("ca", ca_path)
        with client.connected(self._address, trusted) as service:
            answer = service.RevocationList(pb.RevocationListRequest(), timeout=client.DEADLINE_S)
        if answer.authorities != trusted:
            # Only if we stay who we are: our certificate must be of one of them.
            pki.check(read_pem("cert", cert_path), answer.authorities, origin=cert_path)
            _write(ca_path, answer.authorities)
            log.info("authorities changed", extra={"count": len(pki.authorities(answer.authorities))})
        if self._revocations is not None:
            if self._revocations.update(answer.lists, pki.authorities(answer.authorities)):
                log.info("revocation list", extra={"revoked": len(self._revocations)})
                _write(ca_path.with_name(LISTS), _to_pem(answer.lists))
            self._heard = _now()

    def _recall(self, revocations: Revocations) -> None:
        ca_path = self._tls.files()[0]
        path = ca_path.with_name(LISTS)
        if not path.exists():
            return
        try:
            blocks = path.read_text("ascii").split("-----END X509 CRL-----")
            ders = [x509.load_pem_x509_crl(f"{b}-----END X509 CRL-----".encode()) for b in blocks if b.strip()]
        except (OSError, ValueError) as error:
            raise ConfigError(f"{path} can't be read: {error}; delete it, and it is fetched again") from error
        known = pki.authorities(read_pem("ca", ca_path), ca_path)
        for one in ders:
            try:
                revocations.update([one.public_bytes(Encoding.DER)], known)
            except IdentityError as error:  # of an authority that is trusted no more
                log.warning("%s: %s", path, error)


def _to_pem(lists: Iterable[bytes]) -> bytes:
    return b"".join(x509.load_der_x509_crl(der).public_bytes(Encoding.PEM) for der in lists)


def _write(path: Path, data: bytes) -> None:
    try:
        if path.exists() and path.read_bytes() == data:
            return
    except OSError as error:
        raise ConfigError(f"{path} can't be read: {error.strerror}; check its owner") from error
    try:
        replace_file(path, data)
    except FoglineError as error:
        raise ConfigError(
            f"{path} can't be replaced: {error}; this process must be able to write to {path.parent}"
        ) from error


@contextmanager
def _alone(cert_path: Path) -> Iterator[None]:
    """One process at a time renews a certificate that several use."""
    try:
        with cert_path.with_name(f".{cert_path.name}.lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield
    except OSError as error:
        raise ConfigError(
            f"certificates can't be renewed in {cert_path.parent}: {error.strerror}; let this process write there"
        ) from error


def _now() -> datetime:
    return datetime.now(timezone.utc)
