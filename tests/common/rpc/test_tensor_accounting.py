"""The modelled bytes of a session against the kernel's counters of its socket."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from rpc_helpers import INSECURE, Loop, kernel_bytes
from tensor_parts import Serving, send

from fogline.common.metrics import KINDS
from fogline.common.rpc.accounting import CONTROL, TENSOR, LinkMeter, kind_of
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.session_client import Ack, ClientSession, Step
from fogline.common.wire.session_host import Reply
from fogline.common.wire.tensors import Chunk, Start

TOLERANCE = 0.03


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
@pytest.mark.parametrize(("count", "size"), [(3, 4 << 20), (100, 100_000), (300, 100)])
def test_a_session_agrees_with_the_kernel(loop: Loop, certificates: Any, tls: bool, count: int, size: int) -> None:
    serving = Serving(loop, certificates.tls("fog-1", "fog") if tls else INSECURE)
    meter, own = LinkMeter("edge-fog"), certificates.tls("edge-1", "edge") if tls else INSECURE
    try:
        session, payload = ClientSession(durable_answers=False), os.urandom(size)
        with serving.client(tls=own, meter=meter, session=session) as client:
            for _ in range(count):
                send(client, payload).result(20)
            sent, received = settled(serving.port)
            counted = meter.totals()
    finally:
        serving.stop()
    for way, kernel in (("sent", sent), ("received", received)):
        total = sum(n for (direction, _), n in counted.items() if direction == way)
        assert total == pytest.approx(kernel, rel=TOLERANCE)
        # Both ways the payload and its headers, and nothing else, is of the tensors' kind.
        assert counted[way, TENSOR] == pytest.approx(count * size, rel=0.02, abs=count * 140 + 400)


def test_all_of_a_session_is_of_the_tensors_kind() -> None:
    start = Start(1, pb.ZeroGrad())
    for item in (start, pb.ProbeRequest(), pb.DescribeResponse()):
        assert kind_of(item) == CONTROL
    for item in (Step(start, 0), Reply(start, 0), Ack(1), Chunk(1, 0, b"x"), pb.SessionRequest(), pb.SessionResponse()):
        assert kind_of(item) == TENSOR
    assert TENSOR in KINDS
