"""The modelled bytes of a connection against the kernel's counters of its socket."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable, Iterator
from typing import Any

import grpc
import pytest
from rpc_helpers import EDGE, INSECURE, Loop, kernel_bytes

from fogline.common.rpc.accounting import CONTROL, IMAGE, MODEL, RECORD, SHARED_STATE, LinkMeter, kind_of
from fogline.common.rpc.channel import aio_connect, connect
from fogline.common.rpc.gen import control_pb2, control_pb2_grpc, images_pb2, images_pb2_grpc, transfer_pb2
from fogline.common.wire.transfer import cut

TOLERANCE = 0.03
Work = Callable[[grpc.Channel], None]


def upload(sizes: list[int]) -> Work:
    """Images one after the other, on one stream, each offered, accepted, sent and stored."""

    def work(channel: grpc.Channel) -> None:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        answers: queue.Queue[Any] = queue.Queue()

        def requests() -> Iterator[Any]:
            for size in sizes:
                blob, content_id = os.urandom(size), os.urandom(32)
                yield images_pb2.UploadRequest(offer=images_pb2.ImageOffer(content_id=content_id, size=size))
                assert answers.get(timeout=10).accepted.content_id == content_id
                for piece in cut(blob):
                    chunk = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
                    yield images_pb2.UploadRequest(chunk=images_pb2.UploadChunk(content_id=content_id, chunk=chunk))
                assert answers.get(timeout=10).stored.content_id == content_id

        for answer in stub.Upload(requests()):
            answers.put(answer)

    return work


def fetch(count: int, size: int) -> Work:
    def work(channel: grpc.Channel) -> None:
        items = [images_pb2.FetchItem(cursor=i + 1, offset=size) for i in range(count)]
        stub = images_pb2_grpc.ImageServiceStub(channel)
        assert len(list(stub.Fetch(iter([images_pb2.FetchRequest(items=items)])))) == count

    return work


def heartbeats(channel: grpc.Channel) -> None:
    stub = control_pb2_grpc.FleetServiceStub(channel)
    for number in range(50):
        stub.Heartbeat(control_pb2.HeartbeatRequest(gauges={"queue": number}))


def notifications(channel: grpc.Channel) -> None:
    stub = images_pb2_grpc.ImageServiceStub(channel)
    assert len(list(stub.Subscribe(images_pb2.SubscribeRequest(cursor=200)))) == 200


def hour_in_short(channel: grpc.Channel) -> None:
    """Idle but for keepalive, then a heartbeat now and then."""
    stub = control_pb2_grpc.FleetServiceStub(channel)
    for pause in (45, 5, 5, 15, 1, 1, 1):
        stub.Heartbeat(control_pb2.HeartbeatRequest(gauges={"queue": 1.0}))
        time.sleep(pause)


CASES: dict[str, Work] = {
    "bulk upload": upload([20 << 20]),
    "bulk download": fetch(80, 250_000),
    "500 small records": fetch(500, 2500),
    "100 camera images": upload([30_000] * 100),
    "50 heartbeats": heartbeats,
    "notifications": notifications,
    "nothing": lambda channel: None,
}


def measure(loop: Loop, certificates: Any, tls: bool, work: Work) -> tuple[LinkMeter, LinkMeter, int, int]:
    """The client's and the server's meters, and what the kernel counted sent and received at the client's end."""
    ours, theirs = LinkMeter("edge-fog"), LinkMeter("edge-fog")
    _, port = loop.serve(certificates.tls("fog-1", "fog") if tls else INSECURE, meter=theirs)
    own = certificates.tls("edge-1", "edge") if tls else INSECURE
    with connect(f"127.0.0.1:{port}", own, meter=ours, me=EDGE) as channel:
        work(channel)
        sent, received = settled(port)
    return ours, theirs, sent, received


def settled(port: int) -> tuple[int, int]:
    """The counters once nothing moves any more: the last ping of a busy connection comes 0.1 s later."""
    counted, since = kernel_bytes(port), time.monotonic()
    while time.monotonic() - since < 0.35:
        time.sleep(0.02)
        now = kernel_bytes(port)
        if now != counted:
            counted, since = now, time.monotonic()
    return counted


@pytest.mark.parametrize("tls", [False, True], ids=["insecure", "mtls"])
@pytest.mark.parametrize("case", CASES)
def test_every_connection_agrees_with_the_kernel(loop: Loop, certificates: Any, tls: bool, case: str) -> None:
    meter, _, sent, received = measure(loop, certificates, tls, CASES[case])
    modelled = meter.total("sent"), meter.total("received")
    assert sum(modelled) == pytest.approx(sent + received, rel=TOLERANCE)
    # Each direction by itself, too. The one that only acknowledges is a few hundred bytes, and its number of pings and
    # window updates depends on the scheduler: it may be off by three pings, or a thousandth of what it acknowledges.
    for way, counted, other in ((modelled[0], sent, received), (modelled[1], received, sent)):
        assert way == pytest.approx(counted, abs=max(TOLERANCE * counted, 120, 0.001 * other))


@pytest.mark.slow
@pytest.mark.parametrize("tls", [False, True], ids=["insecure", "mtls"])
def test_an_idle_connection_agrees_with_the_kernel(loop: Loop, certificates: Any, tls: bool) -> None:
    meter, _, sent, received = measure(loop, certificates, tls, hour_in_short)
    assert meter.total("sent") == pytest.approx(sent, rel=TOLERANCE)
    assert meter.total("received") == pytest.approx(received, rel=TOLERANCE)


@pytest.mark.parametrize("case", ["50 heartbeats", "500 small records", "100 camera images"])
def test_the_server_counts_the_same_from_its_side(loop: Loop, certificates: Any, case: str) -> None:
    _, theirs, sent, received = measure(loop, certificates, True, CASES[case])
    assert theirs.total("received") + theirs.total("sent") == pytest.approx(sent + received, rel=TOLERANCE)


async def test_an_aio_channel_counts_as_well(loop: Loop, certificates: Any) -> None:
    meter = LinkMeter("fog-cloud")
    _, port = loop.serve(certificates.tls("cloud", "cloud"))
    own = certificates.tls("fog-1", "fog")
    async with await aio_connect(f"127.0.0.1:{port}", own, meter=meter) as channel:
        stub: Any = control_pb2_grpc.FleetServiceStub(channel)
        for _ in range(50):
            await stub.Heartbeat(control_pb2.HeartbeatRequest(gauges={"queue": 1.0}))
        sent, received = settled(port)
    assert meter.total("sent") == pytest.approx(sent, rel=TOLERANCE)
    assert meter.total("received") == pytest.approx(received, rel=TOLERANCE)


def test_bytes_are_booked_by_kind(loop: Loop, certificates: Any) -> None:
    meter, _, _, _ = measure(loop, certificates, True, upload([100_000]))
    totals = meter.totals()
    assert set(totals) == {("sent", IMAGE), ("sent", CONTROL), ("received", CONTROL)}
    assert totals["sent", IMAGE] == pytest.approx(100_000, rel=0.01)

    def both(channel: grpc.Channel) -> None:
        items = [images_pb2.FetchItem(cursor=1, offset=7000), images_pb2.FetchItem(shared_digest=b"x", offset=9000)]
        list(images_pb2_grpc.ImageServiceStub(channel).Fetch(iter([images_pb2.FetchRequest(items=items)])))

    totals = measure(loop, certificates, False, both)[0].totals()
    assert totals["received", RECORD] == pytest.approx(7000, rel=0.01)
    assert totals["received", SHARED_STATE] == pytest.approx(9000, rel=0.01)


def test_models_are_a_kind_and_their_announcements_are_not() -> None:
    chunk = transfer_pb2.Chunk(data=b"x")
    assert kind_of(control_pb2.FetchModelResponse(chunk=chunk)) == MODEL
    assert kind_of(control_pb2.PublishModelRequest(chunk=chunk)) == MODEL
    assert kind_of(control_pb2.PublishModelRequest(offer=control_pb2.ModelOffer(size=1))) == CONTROL
    assert kind_of(images_pb2.FetchResponse()) == CONTROL


def test_the_counter_of_the_metrics_gets_every_byte(loop: Loop) -> None:
    from fogline.common.metrics import Metrics

    metrics = Metrics()
    meter = LinkMeter("edge-fog", metrics.link_bytes)
    _, port = loop.serve(INSECURE)
    with connect(f"127.0.0.1:{port}", INSECURE, meter=meter, me=EDGE) as channel:
        heartbeats(channel)
    samples = [s for m in metrics.registry.collect() for s in m.samples if s.name == "fogline_link_bytes_total"]
    counted = {(s.labels["direction"], s.labels["kind"]): s.value for s in samples if s.value}
    assert counted == meter.totals()
