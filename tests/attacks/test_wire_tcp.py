"""Garbage on the port: only the connection that sends it suffers."""

from __future__ import annotations

import socket
import ssl
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent.parent / "common" / "rpc"))  # `rpc_helpers`, under importlib mode

from rpc_helpers import EDGE, INSECURE, Loop

from fogline.common.config import TlsConfig
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import images_pb2, images_pb2_grpc

CORPUS = sorted((Path(__file__).parent / "wire" / "tcp").glob("*.bin"))
# A server's port, the TLS settings of its client, whether to attack inside the TLS session, and a stub on a connection
# that lives through all attacks.
Target = tuple[int, TlsConfig, bool, images_pb2_grpc.ImageServiceStub]
HELLO = images_pb2.HelloRequest(protocol=1)


@pytest.fixture(scope="module")
def loop() -> Iterator[Loop]:
    made = Loop()
    yield made
    made.close()


@pytest.fixture(scope="module", params=["insecure", "mtls", "inside-tls"])
def target(request: pytest.FixtureRequest, loop: Loop, certificates: Any) -> Iterator[Target]:
    inside, tls = request.param == "inside-tls", INSECURE
    port = loop.serve(INSECURE if request.param == "insecure" else certificates.tls("fog-1", "fog"))[1]
    if request.param != "insecure":
        tls = certificates.tls("edge-1", "edge")
    with connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x"), me=EDGE) as old:
        yield port, tls, inside, images_pb2_grpc.ImageServiceStub(old)


@contextmanager
def connection(port: int, tls: TlsConfig, inside: bool) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=5) as raw:
        if not inside:
            yield raw
            return
        ca, cert, key = tls.files()
        context = ssl.create_default_context(cafile=ca)
        context.load_cert_chain(cert, key)
        context.set_alpn_protocols(["h2"])
        with context.wrap_socket(raw, server_hostname="127.0.0.1") as wrapped:
            yield wrapped


@pytest.mark.parametrize("attack", CORPUS, ids=lambda path: path.stem)
def test_others_are_served_meanwhile_and_after(target: Target, attack: Path) -> None:
    port, tls, inside, old = target
    with connection(port, tls, inside) as hostile:
        with suppress(OSError):  # hung up on already: well done
            hostile.sendall(attack.read_bytes())
        old.Hello(HELLO)
        with connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x"), me=EDGE) as new:
            images_pb2_grpc.ImageServiceStub(new).Hello(HELLO)
    old.Hello(HELLO)


def test_many_silent_connections_keep_nobody_out(target: Target) -> None:
    port, tls, _, _ = target
    silent = [socket.create_connection(("127.0.0.1", port), timeout=5) for _ in range(200)]
    try:
        with connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x"), me=EDGE) as channel:
            images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO)
    finally:
        for one in silent:
            one.close()
