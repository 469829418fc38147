"""Calls to the certificate service. It is known by its authority, wherever it runs, and told no secret before."""

from __future__ import annotations

import hashlib
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc

from fogline.common.addresses import Address
from fogline.common.errors import FoglineError, IdentityError, UnavailableError
from fogline.common.pki import AUTHORITY_HOST
from fogline.common.rpc.channel import OPTIONS
from fogline.common.rpc.gen.authority_pb2_grpc import AuthorityServiceStub
from fogline.common.rpc.status import translate

DEADLINE_S = 20.0


def pinned(address: Address, sha256: bytes, timeout_s: float = DEADLINE_S) -> bytes:
    """The authority (PEM) that the service shows, if it has this SHA-256. Raises IdentityError or UnavailableError.

    Nothing is believed of the service yet but that: `connected` then verifies that it holds the authority's trust.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with (
            socket.create_connection((address.host, address.port), timeout=timeout_s) as sock,
            context.wrap_socket(sock, server_hostname=AUTHORITY_HOST) as wrapped,
        ):
            chain = _chain(wrapped)
    except ssl.SSLError as error:
        raise IdentityError(
            f"{address} does not speak TLS as a certificate service does ({error.reason}); check the token's address"
        ) from error
    except OSError as error:
        reason = "no answer" if isinstance(error, TimeoutError) else error.strerror or error
        raise UnavailableError(
            f"certificate service {address}: {reason}; is `fogline ca serve` running there?", number=802
        ) from error
    for der in chain:
        if hashlib.sha256(der).digest() == sha256:
            return ssl.DER_cert_to_PEM_cert(der).encode()
    raise IdentityError(
        f"{address} does not show the authority {sha256.hex()[:16]}… of the token: something else answers, or "
        "the token is of another deployment. It was told nothing; ask for a new token",
        number=713,
    )


@contextmanager
def connected(address: Address, authorities: bytes) -> Iterator[AuthorityServiceStub]:
    """Calls to the service, which must show a certificate of one of `authorities` (PEM). Raises errors of the tree."""
    options = (*OPTIONS, ("grpc.ssl_target_name_override", AUTHORITY_HOST))
    credentials = grpc.ssl_channel_credentials(authorities)
    with (
        translate(f"certificate service {address}"),
        grpc.secure_channel(str(address), credentials, options) as made,
    ):
        try:
            yield AuthorityServiceStub(made)
        except grpc.RpcError as error:
            raise _explained(error, address) or error from error


def _explained(error: Any, address: Address) -> FoglineError | None:
    """gRPC says "unavailable" of a service with a foreign certificate."""
    detail = str(error.details() or "") if isinstance(error, grpc.Call) else ""
    if "CERTIFICATE_VERIFY_FAILED" in detail or "Hostname Verification" in detail:
        return IdentityError(
            f"{address} is no certificate service of our authority; compare tls.authority and tls.ca, or join again"
        )
    return None


def _chain(wrapped: ssl.SSLSocket) -> list[bytes]:
    if hasattr(wrapped, "get_unverified_chain"):  # Python 3.13
        shown: Any = wrapped.get_unverified_chain()
        return [bytes(der) for der in shown]
    inner: Any = wrapped._sslobj  # type: ignore[attr-defined]  # has had it since 3.10
    return [ssl.PEM_cert_to_DER_cert(one.public_bytes()) for one in inner.get_unverified_chain() or ()]
