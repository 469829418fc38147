"""Calls over real connections: identity, errors, traces, deadlines, health, limits."""

from __future__ import annotations

import logging
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc
from rpc_helpers import ALL_ERRORS, EDGE, INSECURE, Images, Loop

from fogline.common import trace
from fogline.common.errors import (
    ConfigError,
    FoglineError,
    IdentityError,
    InternalError,
    ProtocolError,
    UnavailableError,
)
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import aio_connect, connect
from fogline.common.rpc.gen import control_pb2, control_pb2_grpc, images_pb2, images_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.status import MAX_DETAIL, to_status, translate

HELLO = images_pb2.HelloRequest(protocol=1)


def link(port: int, tls: Any = INSECURE, me: Peer | None = EDGE, **more: Any) -> grpc.Channel:
    return connect(f"127.0.0.1:{port}", tls, meter=LinkMeter("edge-fog"), me=me, **more)


def test_the_certificate_says_who_calls(loop: Loop, certificates: Any) -> None:
    images = Images()
    _, port = loop.serve(certificates.tls("fog-1", "fog"), images)
    with link(port, certificates.tls("cam-7", "edge"), me=Peer("somebody-else", "fog")) as channel:
        # Neither `me` nor metadata of one's own counts where there is a certificate.
        forged = (("x-fogline-name", "fog-9"), ("x-fogline-role", "fog"))
        images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO, metadata=forged)
    assert images.callers == [Peer("cam-7", "edge")]


def test_on_insecure_loopback_the_caller_says_it(loop: Loop) -> None:
    images = Images()
    _, port = loop.serve(INSECURE, images)
    with link(port) as channel:
        images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO)
    assert images.callers == [EDGE]
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(IdentityError, match="x-fogline-name"), translate():
            stub.Hello(HELLO)
        bad = (("x-fogline-name", "../../etc"), ("x-fogline-role", "edge"))
        with pytest.raises(IdentityError, match="a-z 0-9"), translate():
            stub.Hello(HELLO, metadata=bad)
    with pytest.raises(ConfigError, match="`me`"):
        link(port, me=None)


@pytest.mark.parametrize("error", ALL_ERRORS, ids=lambda cls: cls.__name__)
async def test_every_error_arrives_as_itself(loop: Loop, error: type[FoglineError]) -> None:
    images = Images()
    images.fail = error("the disk /data is full (100 %): make room — ünïcode")
    _, port = loop.serve(INSECURE, images)
    with link(port) as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        for call in (
            lambda: stub.Hello(HELLO),
            lambda: list(stub.Subscribe(images_pb2.SubscribeRequest(cursor=1))),
            lambda: list(stub.Fetch(iter([]))),
        ):
            with pytest.raises(error) as raised, translate("fog-1"):
                call()
            assert type(raised.value) is error
            assert str(raised.value) == f"fog-1: {images.fail}"
    async with await aio_connect(f"127.0.0.1:{port}", INSECURE, meter=LinkMeter("x"), me=EDGE) as aio:
        aio_stub: Any = images_pb2_grpc.ImageServiceStub(aio)
        with pytest.raises(error), translate():
            await aio_stub.Hello(HELLO)
        with pytest.raises(error), translate():
            async for _ in aio_stub.Subscribe(images_pb2.SubscribeRequest()):
                pass


def test_a_mistake_of_ours_tells_the_trace_and_no_more(loop: Loop, caplog: pytest.LogCaptureFixture) -> None:
    images = Images()
    images.fail = KeyError("a secret")
    _, port = loop.serve(INSECURE, images)
    expected = pytest.raises(InternalError, match=r"trace [0-9a-f]{16}")
    with caplog.at_level(logging.ERROR), link(port) as channel, expected as raised, translate():
        images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO)
    assert "secret" not in str(raised.value)
    assert "secret" in caplog.text


def test_a_long_message_is_cut() -> None:
    assert len(to_status(ProtocolError("x" * 5000))[1]) == MAX_DETAIL


def test_the_trace_id_goes_along(loop: Loop) -> None:
    images = Images()
    _, port = loop.serve(INSECURE, images)
    with link(port) as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        begun = trace.new_trace()
        stub.Hello(HELLO)
    with grpc.insecure_channel(f"127.0.0.1:{port}") as channel:
        forged = (*EDGE.metadata(), (trace.HEADER, 'x" level="error'))
        images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO, metadata=forged)
    assert images.traces[0] == begun
    assert len(images.traces[1]) == 16


def test_no_unary_call_waits_for_ever(loop: Loop) -> None:
    _, port = loop.serve(INSECURE)
    with link(port, deadline_s=0.3) as channel, pytest.raises(UnavailableError, match="Deadline"), translate():
        control_pb2_grpc.FleetServiceStub(channel).Leave(control_pb2.LeaveRequest())


def test_a_stub_of_a_closed_channel_refuses_calls(loop: Loop) -> None:
    _, port = loop.serve(INSECURE, Images())
    channel = link(port)
    channel.close()
    with pytest.raises(ValueError, match="closed channel"):
        images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO)

    async def later() -> None:
        channel = await aio_connect(f"127.0.0.1:{port}", INSECURE, meter=LinkMeter("edge-fog"), me=EDGE)
        await channel.close()
        with pytest.raises(grpc.aio.UsageError, match="closed"):
            await images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO)

    loop.run(later())


def test_health_follows_readiness(loop: Loop) -> None:
    server, port = loop.serve(INSECURE)
    status = health_pb2.HealthCheckResponse
    with link(port) as channel:
        stub = health_pb2_grpc.HealthStub(channel)

        def ask(service: str) -> Any:
            return stub.Check(health_pb2.HealthCheckRequest(service=service)).status

        names = ("", "fogline.v1.ImageService", "fogline.v1.FleetService")
        assert [ask(name) for name in names] == [status.NOT_SERVING] * 3
        loop.run(server.set_ready(True))
        assert [ask(name) for name in names] == [status.SERVING] * 3
        loop.run(server.set_ready(False, "fogline.v1.FleetService"))
        assert [ask(name) for name in names] == [status.SERVING, status.SERVING, status.NOT_SERVING]
        with pytest.raises(grpc.RpcError):
            ask("fogline.v1.NoService")


def test_an_unknown_method_is_another_version(loop: Loop) -> None:
    _, port = loop.serve(INSECURE)
    with link(port) as channel, pytest.raises(ProtocolError, match="different versions"), translate():
        control_pb2_grpc.ModelServiceStub(channel).LatestModel(control_pb2.LatestModelRequest(name="x"))


def test_an_oversized_message_is_the_senders_fault_and_leaves_the_connection_alive(loop: Loop) -> None:
    _, port = loop.serve(INSECURE)
    with grpc.insecure_channel(f"127.0.0.1:{port}", (("grpc.max_send_message_length", -1),)) as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(ProtocolError, match="larger than max"), translate():
            stub.Hello(images_pb2.HelloRequest.FromString(b"\x1a\x80\x80\x80\x04" + bytes(8 << 20)))
        stub.Hello(HELLO, metadata=EDGE.metadata())


def test_a_stopped_server_is_unavailable_and_a_new_one_is_found(loop: Loop) -> None:
    server, port = loop.serve(INSECURE)
    with link(port) as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        stub.Hello(HELLO)
        loop.run(server.stop(0))
        with pytest.raises(UnavailableError), translate():
            stub.Hello(HELLO)
    with pytest.raises(UnavailableError, match="is it running"):
        link(port)
    loop.serve(INSECURE, listen=f"127.0.0.1:{port}")
    with link(port) as channel:
        images_pb2_grpc.ImageServiceStub(channel).Hello(HELLO)


def test_a_running_stream_gets_its_grace(loop: Loop) -> None:
    server, port = loop.serve(INSECURE)
    with link(port) as channel:
        answers = images_pb2_grpc.ImageServiceStub(channel).Subscribe(images_pb2.SubscribeRequest(cursor=40))
        next(answers)
        loop.run(server.stop(10))
        assert len(list(answers)) == 39
