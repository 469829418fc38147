"""Certificates and addresses on their way into gRPC."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fogline.common import pki
from fogline.common.addresses import Address
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, FoglineError

log = logging.getLogger(__name__)

MAX_PEM = 1 << 20  # bytes


@dataclass(frozen=True, repr=False)
class Material:
    """An authority, and our own certificate and key, as PEM; `der_size`: bytes of the certificate on the wire."""

    ca: bytes
    cert: bytes
    key: bytes
    der_size: int
    cert_path: Path
    key_path: Path

    def client(self) -> grpc.ChannelCredentials:
        """Credentials of a channel."""
        return grpc.ssl_channel_credentials(self.ca, self.key, self.cert)

    def server(self) -> grpc.ServerCredentials:
        """Credentials of a server that wants a certificate from every client."""
        return grpc.ssl_server_credentials([(self.key, self.cert)], root_certificates=self.ca, require_client_auth=True)

    def configuration(self) -> grpc.ServerCertificateConfiguration:
        """What such a server shows, and whom it trusts."""
        return grpc.ssl_server_certificate_configuration([(self.key, self.cert)], root_certificates=self.ca)


class Fresh:
    """Our own side as the files have it now: asked with every new connection, read when a file was replaced."""

    def __init__(self, tls: TlsConfig, address: Address, first: Material) -> None:
        self._tls, self._address = tls, address
        self._lock = threading.Lock()
        self._seen = stamp(tls)
        self._first = first
        self._said = ""

    def credentials(self) -> grpc.ServerCredentials:
        """Credentials of a server that wants a certificate from every client."""
        changed: Any = self._changed  # the stubs don't know that it may say "nothing new"
        return grpc.dynamic_ssl_server_credentials(
            self._first.configuration(), changed, require_client_authentication=True
        )

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """Called by gRPC, from any thread; None: nothing new. What can't be used now leaves what was in force."""
        with self._lock:
            now = stamp(self._tls)
            if now == self._seen:
                return None
            try:
                own = load(self._tls, self._address)
            except FoglineError as error:
                if str(error) != self._said:
                    log.error("new certificates can't be used, the old ones stay: %s", error)
                self._said = str(error)
                return None
            self._seen = now
            return None if own is None else own.configuration()


def stamp(tls: TlsConfig) -> tuple[tuple[int, int, int], ...]:
    """What changes whenever one of the files is replaced. Raises ConfigError where none are set."""
    found = []
    for path in tls.files():
        try:
            stat = path.stat()
            found.append((stat.st_mtime_ns, stat.st_ino, stat.st_size))
        except OSError:
            found.append((0, 0, 0))
    return tuple(found)


def load(tls: TlsConfig, address: Address) -> Material | None:
    """Read and check our own side of a connection; None: insecure, which only loopback may be.

    Raises ConfigError for missing files and for insecure beyond loopback, IdentityError for expired or foreign
    certificates.
    """
    if tls.insecure:
        if not address.is_loopback:
            raise ConfigError(
                f"tls.insecure with address {address}: unencrypted traffic is allowed on loopback only; "
                "use 127.0.0.1, or certificates from `fogline ca enrol`",
                number=207,
            )
        log.warning("insecure: traffic with %s is neither encrypted nor authenticated", address)
        return None
    ca_path, cert_path, key_path = tls.files()
    ca, cert, key = read_pem("ca", ca_path), read_pem("cert", cert_path), read_pem("key", key_path)
    pki.check(cert, ca, key, origin=cert_path)
    der = x509.load_pem_x509_certificate(cert).public_bytes(Encoding.DER)
    return Material(ca, cert, key, len(der), cert_path, key_path)


def anonymous_server(first: Material, current: Callable[[], Material]) -> grpc.ServerCredentials:
    """Credentials of a server that asks nobody for a certificate, and shows new connections its own of the moment."""

    def fetch() -> grpc.ServerCertificateConfiguration:
        own = current()
        return grpc.ssl_server_certificate_configuration([(own.key, own.cert)])

    initial = grpc.ssl_server_certificate_configuration([(first.key, first.cert)])
    return grpc.dynamic_ssl_server_credentials(initial, fetch, require_client_authentication=False)


def read_pem(field: str, path: Path) -> bytes:
    """The contents of the file that `tls.FIELD` names. Raises ConfigError."""
    try:
        if path.stat().st_size > MAX_PEM:
            raise ConfigError(f"tls.{field} {path}: {path.stat().st_size} bytes is no certificate or key", number=206)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"tls.{field} {path}: {error.strerror}; give the files of `fogline ca enrol`", number=206
        ) from error
