"""When a tensor session is over, and for whom."""

from __future__ import annotations

import socket
import time

import pytest
from rpc_helpers import Loop
from tensor_parts import Serving, send, tensor

from fogline.common.errors import CapacityError, FormatError, UnavailableError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.session_client import ClientSession


def test_a_broken_session_leaves_the_host_with_its_client(loop: Loop) -> None:
    serving = Serving(loop)
    client = serving.client()
    with pytest.raises(FormatError, match="it fell apart"):
        client.submit(pb.ScaleGradients(factor=666.0)).result(20)
    deadline = time.monotonic() + 20
    while not serving.host.hosted[0].closed:
        assert time.monotonic() < deadline, "a broken session is kept"
        time.sleep(0.01)
    assert serving.service.sessions == 0
    client.close()
    serving.stop()


def test_a_host_that_was_never_there_is_not_waited_for_long(loop: Loop) -> None:
    serving = Serving(loop)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    began = time.monotonic()
    client = serving.client(port, connect_s=0.5, give_up_s=600.0)
    with pytest.raises(UnavailableError):
        client.wait_open(60.0)
    assert time.monotonic() - began < 30
    client.close()
    serving.stop()


def test_a_checkpoint_has_room_behind_what_is_larger_than_the_log(loop: Loop) -> None:
    serving = Serving(loop)
    session = ClientSession(durable_answers=False, log_bytes=1000)
    with serving.client(session=session) as client:
        client.wait_open(20)
        send(client, bytes(5000)).result(20)
        with pytest.raises(CapacityError):
            client.submit(pb.Forward(), (tensor(b"1"),), (b"1",))
        client.submit(pb.Checkpoint()).result(20)
        send(client, bytes(10)).result(20)
    serving.stop()
