"""Two agents with one identity."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rpc_helpers import INSECURE, Images, Loop

from fogline.common.errors import UnavailableError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import images_pb2, images_pb2_grpc
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.presence import TOLD_S, Presence
from fogline.common.rpc.status import translate

HELLO = images_pb2.HelloRequest(protocol=1)


def test_the_first_goes_on_and_the_second_is_told() -> None:
    presence = Presence(hold_s=5.0)
    assert presence.claim("cam", "a", "10.0.0.1", 0.0) is None
    presence.release("cam", "a", 1.0)
    conflict = presence.claim("cam", "b", "10.0.0.2", 5.9)
    assert conflict is not None
    assert (conflict.holder, conflict.refused, conflict.new) == ("10.0.0.1", "10.0.0.2", True)
    again = presence.claim("cam", "b", "10.0.0.2", 5.95)
    assert again is not None
    assert not again.new
    assert "10.0.0.2" in presence.notice("cam", 6.0)
    assert presence.notice("cam", 6.0 + TOLD_S) == presence.notice("other", 6.0) == ""
    assert presence.claim("other", "b", "10.0.0.2", 6.0) is None
    assert presence.claim("cam", "b", "10.0.0.2", 6.1) is None  # the first has been silent for long enough
    assert presence.claim("cam", "a", "10.0.0.1", 99.0) is not None  # a call of the second runs, however long


@given(st.lists(st.tuples(st.sampled_from("ab"), st.sampled_from(["claim", "release", "wait"])), max_size=40))
def test_never_do_two_run_at_once(steps: list[tuple[str, str]]) -> None:
    presence, now = Presence(hold_s=3.0), 0.0
    running = {"a": 0, "b": 0}
    for instance, step in steps:
        now += 4.0 if step == "wait" else 0.1
        if step == "claim" and presence.claim("cam", instance, instance, now) is None:
            running[instance] += 1
        elif step == "release" and running[instance]:
            presence.release("cam", instance, now)
            running[instance] -= 1
        assert not (running["a"] and running["b"])


def test_over_a_connection(loop: Loop, certificates: Any, caplog: pytest.LogCaptureFixture) -> None:
    tls = certificates.tls("cam", "edge")
    for settings in (tls, INSECURE):
        images = Images()
        _, port = loop.serve(certificates.tls("gate", "fog") if settings is tls else INSECURE, images)

        def link(instance: str, port: int = port, settings: Any = settings) -> Any:
            me = Peer("cam", "edge", instance=instance)
            return connect(f"127.0.0.1:{port}", settings, meter=LinkMeter("edge-fog"), me=me)

        with link("one") as first, link("two") as second, link("one") as restarted:
            stream = images_pb2_grpc.ImageServiceStub(first).Subscribe(images_pb2.SubscribeRequest(cursor=10**6))
            next(stream)
            with pytest.raises(UnavailableError, match=r"identity cam is connected from .*127.0.0.1"), translate():
                images_pb2_grpc.ImageServiceStub(second).Hello(HELLO)
            images_pb2_grpc.ImageServiceStub(restarted).Hello(HELLO)
            stream.cancel()
            deadline = time.monotonic() + 10
            while True:  # the first has gone: after a while the second may have its place
                try:
                    with translate():
                        images_pb2_grpc.ImageServiceStub(second).Hello(HELLO)
                    break
                except UnavailableError:
                    assert time.monotonic() < deadline
                    time.sleep(0.1)
    assert caplog.text.count("two agents have the identity cam") == 2
