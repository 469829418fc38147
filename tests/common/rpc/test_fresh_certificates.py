"""A server shows new connections what its files hold by then, and stays with what it had while they are no good."""

from __future__ import annotations

import shutil
import socket
import ssl
from typing import Any

import pytest
from cryptography import x509
from rpc_helpers import Loop

from fogline.common.config import TlsConfig
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import images_pb2, images_pb2_grpc

HELLO = images_pb2.HelloRequest(protocol=1)


def shown(port: int, tls: TlsConfig) -> int:
    """Serial number of the certificate that a new connection is shown."""
    context = ssl.create_default_context(cafile=str(tls.ca))
    context.set_alpn_protocols(["h2"])
    context.load_cert_chain(str(tls.cert), str(tls.key))
    with (
        socket.create_connection(("127.0.0.1", port), timeout=10) as sock,
        context.wrap_socket(sock, server_hostname="127.0.0.1") as wrapped,
    ):
        der = wrapped.getpeercert(True)
        assert der is not None
        return x509.load_der_x509_certificate(der).serial_number


def serial(tls: TlsConfig) -> int:
    return x509.load_pem_x509_certificate(tls.files()[1].read_bytes()).serial_number


def test_certificates_are_taken_up_by_new_connections(
    loop: Loop, certificates: Any, other_certificates: Any, caplog: pytest.LogCaptureFixture
) -> None:
    own, edge = certificates.tls("gate", "fog"), certificates.tls("cam", "edge")
    first = serial(own)
    _, port = loop.serve(own)
    with connect(f"127.0.0.1:{port}", edge, meter=LinkMeter("x")) as channel:
        images = images_pb2_grpc.ImageServiceStub(channel)
        images.Hello(HELLO)
        assert shown(port, edge) == first
        _, cert, key = own.files()
        cert.write_bytes(b"half a certif")
        assert shown(port, edge) == first
        foreign = other_certificates.tls("gate", "fog")
        shutil.copy(foreign.files()[1], cert)
        shutil.copy(foreign.files()[2], key)
        assert shown(port, edge) == first
        assert "the old ones stay" in caplog.text
        new = certificates.tls("gate", "fog")
        for ours, theirs in zip(own.files(), new.files(), strict=True):
            shutil.copy(theirs, ours)
        assert shown(port, edge) == serial(new) != first
        images.Hello(HELLO)  # the connection from before goes on
