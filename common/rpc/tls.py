"""Certificates and addresses on their way into gRPC."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import grpc
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from fogline.common import pki
from fogline.common.addresses import Address
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError

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
    ca, cert, key = _read("ca", ca_path), _read("cert", cert_path), _read("key", key_path)
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


def _read(field: str, path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_PEM:
            raise ConfigError(f"tls.{field} {path}: {path.stat().st_size} bytes is no certificate or key", number=206)
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"tls.{field} {path}: {error.strerror}; give the files of `fogline ca enrol`", number=206
        ) from error
