"""Wrong certificates, addresses and ports: said at once, and by name."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

import pytest
from rpc_helpers import EDGE, INSECURE, Loop, raw_tls_server

from fogline.common import addresses
from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, FoglineError, IdentityError, UnavailableError
from fogline.common.rpc import server
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import aio_connect, connect
from fogline.common.rpc.diagnose import diagnose
from fogline.common.rpc.tls import Material

YESTERDAY = datetime.now(timezone.utc) - timedelta(days=1)
EXPIRED = {"not_before": YESTERDAY - timedelta(days=1), "not_after": YESTERDAY}


@contextmanager
def fails(error: type[FoglineError], words: str, within_s: float = 5.0) -> Iterator[None]:
    began = time.monotonic()
    with pytest.raises(error, match=words):
        yield
    assert time.monotonic() - began < within_s


async def dial(port: int, tls: TlsConfig, words: str, error: type[FoglineError] = IdentityError) -> None:
    """Both kinds of channels fail the same way, and quickly."""
    with fails(error, words):
        connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x"), me=EDGE)
    with fails(error, words):
        await aio_connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x"), me=EDGE)


async def test_a_server_of_another_authority(loop: Loop, certificates: Any, other_certificates: Any) -> None:
    _, port = loop.serve(other_certificates.tls("fog-1", "fog"))
    await dial(port, certificates.tls("edge-1", "edge"), "another authority than ours")


async def test_a_server_that_trusts_another_authority(certificates: Any, other_certificates: Any) -> None:
    liar, port = raw_tls_server(certificates.tls("fog-1", "fog"), other_certificates.tls("x", "fog"))
    await dial(port, certificates.tls("edge-1", "edge"), "trusts another authority")
    liar.stop(None).wait()


async def test_a_servers_expired_certificate(certificates: Any) -> None:
    expired = certificates.tls("fog-1", "fog", **EXPIRED)
    liar, port = raw_tls_server(expired, expired)
    await dial(port, certificates.tls("edge-1", "edge"), "has expired")
    liar.stop(None).wait()


async def test_a_certificate_for_another_name(loop: Loop, certificates: Any) -> None:
    _, port = loop.serve(certificates.tls("fog-1", "fog", hosts=("fog.example.org",)))
    await dial(port, certificates.tls("edge-1", "edge"), "not for '127.0.0.1'")


async def test_an_edge_that_poses_as_a_server(certificates: Any) -> None:
    posing = certificates.tls("edge-2", "edge")
    liar, port = raw_tls_server(posing, posing)
    await dial(port, certificates.tls("edge-1", "edge"), "we refuse its certificate")
    liar.stop(None).wait()


async def test_our_own_expired_certificate_is_noticed_before_dialling(loop: Loop, certificates: Any) -> None:
    _, port = loop.serve(certificates.tls("fog-1", "fog"))
    await dial(port, certificates.tls("edge-1", "edge", **EXPIRED), "expired on")
    with fails(IdentityError, "expired on"):
        loop.serve(certificates.tls("fog-1", "fog", **EXPIRED))


def test_a_server_refuses_an_expired_client(loop: Loop, certificates: Any) -> None:
    _, port = loop.serve(certificates.tls("fog-1", "fog"))
    ca, cert, key = certificates.tls("edge-1", "edge", **EXPIRED).files()
    unchecked = Material(ca.read_bytes(), cert.read_bytes(), key.read_bytes(), 0, cert, key)
    found = diagnose(addresses.parse(f"127.0.0.1:{port}"), unchecked, 5.0)
    assert isinstance(found, IdentityError)
    assert "expired" in str(found)


async def test_a_key_or_certificate_of_another_pair(certificates: Any, other_certificates: Any) -> None:
    ours, theirs = certificates.tls("edge-1", "edge"), other_certificates.tls("edge-1", "edge")
    await dial(1, TlsConfig(ca=ours.ca, cert=ours.cert, key=theirs.key), "private key does not belong")
    await dial(1, TlsConfig(ca=ours.ca, cert=theirs.cert, key=theirs.key), "not of the authority")


async def test_plain_and_tls_do_not_mix(loop: Loop, certificates: Any) -> None:
    _, port = loop.serve(certificates.tls("fog-1", "fog"))
    await dial(port, INSECURE, "speaks TLS")
    _, port = loop.serve(INSECURE)
    await dial(port, certificates.tls("edge-1", "edge"), "does not speak TLS")


async def test_nobody_listening_is_worth_a_retry(free_port: int, certificates: Any) -> None:
    for tls in (INSECURE, certificates.tls("edge-1", "edge")):
        await dial(free_port, tls, "is it running", UnavailableError)


async def test_a_server_with_too_many_connections_is_worth_a_retry(
    loop: Loop, certificates: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    limited = tuple((key, 1 if key == "grpc.max_allowed_incoming_connections" else v) for key, v in server.OPTIONS)
    monkeypatch.setattr(server, "OPTIONS", limited)
    for theirs, ours in (
        (INSECURE, INSECURE),
        (certificates.tls("fog-1", "fog"), certificates.tls("edge-1", "edge")),
    ):
        _, port = loop.serve(theirs)
        with connect(f"127.0.0.1:{port}", ours, meter=LinkMeter("x"), me=EDGE):
            await dial(port, ours, f"127.0.0.1:{port}", UnavailableError)


async def test_another_kind_of_server_is_worth_a_retry(certificates: Any) -> None:
    with listener(lambda peer: peer.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")) as port:
        await dial(port, INSECURE, "gRPC server", UnavailableError)


def test_a_peer_that_says_nothing_takes_no_longer_than_allowed(certificates: Any) -> None:
    with listener(lambda peer: peer.recv(1)) as port:
        for tls in (INSECURE, certificates.tls("edge-1", "edge")):
            with fails(UnavailableError, "127.0.0.1"):
                connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x"), me=EDGE, deadline_s=0.5)


@contextmanager
def listener(greet: Callable[[socket.socket], Any]) -> Iterator[int]:
    """A server that greets each caller its own way and waits for it to go."""
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def accept() -> None:
            while True:
                try:
                    peer, _ = listening.accept()
                except OSError:
                    return
                with peer:
                    peer.settimeout(5)
                    try:
                        greet(peer)
                        while peer.recv(4096):
                            pass
                    except OSError:
                        pass

        threading.Thread(target=accept, daemon=True).start()
        yield listening.getsockname()[1]
        listening.shutdown(socket.SHUT_RDWR)


@pytest.mark.parametrize("address", ["192.168.1.5:7400", "0.0.0.0:7400", "fog.example.org:7400"])
def test_insecure_stays_on_loopback(loop: Loop, address: str) -> None:
    with pytest.raises(ConfigError, match="loopback only"):
        connect(address, INSECURE, meter=LinkMeter("x"), me=EDGE)
    with pytest.raises(ConfigError, match="loopback only"):
        loop.serve(INSECURE, listen=address)


def test_insecure_is_logged(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    _, port = loop.serve(INSECURE)
    assert "neither encrypted nor authenticated" in caplog.text
    assert str(port)


def test_missing_files_and_settings_are_named(tmp_path: Path, certificates: Any) -> None:
    whole = certificates.tls("edge-1", "edge")
    for tls, words in (
        (TlsConfig(), "no certificates given"),
        (TlsConfig(ca=tmp_path / "none.pem", cert=whole.cert, key=whole.key), r"tls.ca .*none.pem: No such file"),
    ):
        with pytest.raises(ConfigError, match=words):
            connect("127.0.0.1:1", tls, meter=LinkMeter("x"))


def test_a_port_in_use_is_named(loop: Loop) -> None:
    _, port = loop.serve(INSECURE)
    with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use"):
        loop.serve(INSECURE, listen=f"127.0.0.1:{port}")


def test_an_address_of_another_host_is_named(loop: Loop, certificates: Any) -> None:
    with pytest.raises(ConfigError, match="address of this host"):
        loop.serve(certificates.tls("fog-1", "fog"), listen="192.0.2.1:7400")
