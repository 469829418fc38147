"""Calls that run are ended when their caller is not let in any more: every kind of call, and with the reason."""

from __future__ import annotations

import asyncio
import queue
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest
from cryptography import x509
from rpc_helpers import Loop
from tensor_parts import Serving, send

from fogline.common.config import TlsConfig
from fogline.common.errors import IdentityError, UnavailableError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import control_pb2, control_pb2_grpc, images_pb2, images_pb2_grpc
from fogline.common.rpc.guard import Guard, _Certificate
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.server import RpcServer
from fogline.common.rpc.status import translate


def revoke(loop: Loop, server: RpcServer, certificates: Any, tls: TlsConfig) -> None:
    """As the keeper does when a list comes; then the calls are looked at."""
    number = x509.load_pem_x509_certificate(tls.files()[1].read_bytes()).serial_number
    now = datetime.now(timezone.utc)
    signed = certificates.authority.revocation_list([(number, now)], 5, now, timedelta(days=1))

    async def run() -> None:
        server._guard.revocations.update([signed], [certificates.authority.certificate])
        server._guard.sweep()

    loop.run(run())


def test_streams_and_calls_of_a_revoked_device_end(loop: Loop, certificates: Any) -> None:
    server, port = loop.serve(certificates.tls("gate", "fog"))
    tls, good = certificates.tls("cam", "edge"), certificates.tls("other", "edge")
    with (
        connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("x")) as channel,
        connect(f"127.0.0.1:{port}", good, meter=LinkMeter("x")) as other,
    ):
        images = images_pb2_grpc.ImageServiceStub(channel)
        outgoing: queue.SimpleQueue[Any] = queue.SimpleQueue()
        offer = images_pb2.ImageOffer(content_id=bytes(32), size=100)
        outgoing.put(images_pb2.UploadRequest(offer=offer))
        upload = images.Upload(iter(outgoing.get, None))
        assert next(upload).WhichOneof("message") == "accepted"
        waiting = control_pb2_grpc.FleetServiceStub(channel).Leave.future(control_pb2.LeaveRequest(), timeout=30)
        theirs = images_pb2_grpc.ImageServiceStub(other).Subscribe(images_pb2.SubscribeRequest(cursor=10**6))
        next(theirs)
        revoke(loop, server, certificates, tls)
        with pytest.raises(IdentityError, match="of cam was revoked"), translate():
            next(upload)
        with pytest.raises(IdentityError, match="was revoked"), translate():
            waiting.result(20)
        with pytest.raises(IdentityError, match="was revoked"), translate():
            images.Hello(images_pb2.HelloRequest(protocol=1))
        assert next(theirs).published
        outgoing.put(None)
        theirs.cancel()


def test_a_session_of_a_split_model_ends_too(loop: Loop, certificates: Any) -> None:
    serving = Serving(loop, certificates.tls("gate", "fog"))
    tls = certificates.tls("cam", "edge")
    try:
        with serving.client(tls=tls) as client:
            send(client, b"one").result(20)
            revoke(loop, serving.server, certificates, tls)
            with pytest.raises(IdentityError, match="was revoked"):
                send(client, b"two").result(20)
    finally:
        serving.stop()


async def test_a_certificate_that_ends_under_a_call_asks_for_a_new_connection() -> None:
    now = 1000.0
    guard = Guard(clock=lambda: now)
    reasons = []

    async def call() -> None:
        with guard.call() as mine:
            mine.peer, mine.certificate = Peer("cam", "edge"), _Certificate(7, 1001.0)
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                reasons.append(mine.ended)

    running = asyncio.create_task(call())
    await asyncio.sleep(0)
    guard.sweep()
    await asyncio.sleep(0)
    assert not reasons
    now = 1001.0
    guard.sweep()
    await running
    assert isinstance(reasons[0], UnavailableError)
    assert "connect again" in str(reasons[0])
