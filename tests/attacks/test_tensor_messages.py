"""What a hostile client sends a tail host, and a hostile host its client: a typed error, and nothing hangs."""

from __future__ import annotations

import json
import struct
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "common" / "rpc"))  # `rpc_helpers`, under importlib mode

from rpc_helpers import EDGE, INSECURE, Loop
from tensor_parts import Serving, chain, send

from fogline.common.errors import FoglineError, ProtocolError, UnavailableError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.status import translate
from fogline.common.rpc.tensor_client import TensorClient
from fogline.common.rpc.tensor_stream import SESSION, read_response
from fogline.common.wire.session_client import ClientSession
from fogline.common.wire.tensors import Chunk, Limits

CORPUS = Path(__file__).parent / "wire"
TO_HOST: dict[str, str | int] = json.loads((CORPUS / "session" / "expected.json").read_text())
TO_CLIENT: dict[str, str] = json.loads((CORPUS / "answers" / "expected.json").read_text())


def messages(path: Path) -> list[bytes]:
    data, made = path.read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<I", data)
        made.append(data[4 : 4 + length])
        data = data[4 + length :]
    return made


class Target:
    """A host, and a connection to it that sends whatever bytes it is given."""

    def __init__(self, loop: Loop) -> None:
        self.serving = Serving(loop, max_sessions=10_000, max_sessions_per_peer=10_000)
        self._raw = grpc.insecure_channel(f"127.0.0.1:{self.serving.port}")

    def stream(self, sent: list[bytes], answers: int | None = None) -> None:
        """Send and read: to the end, or until so many answers came whole."""
        done = threading.Event()

        def requests() -> Iterator[bytes]:
            yield from sent
            if answers is not None:
                done.wait(10)

        call: Any = self._raw.stream_stream(SESSION)(requests(), metadata=EDGE.metadata(), timeout=20)
        try:
            with translate():
                for data in call:
                    message = read_response(data)
                    last = message.crc32 if isinstance(message, Chunk) else message.answer.HasField("crc32")
                    if answers is not None and last and (answers := answers - 1) == 0:
                        return
        finally:
            done.set()
            call.cancel()

    def alive(self) -> None:
        with self.serving.client(session_id=bytes(8) + struct.pack("<d", time.monotonic())) as client:
            assert bytes(send(client, b"x").result(20).frame.parts[0]) == chain([b"x"])

    def close(self) -> None:
        self._raw.close()
        self.serving.stop()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    loop = Loop()
    made = Target(loop)
    yield made
    made.close()
    loop.close()


@pytest.mark.parametrize("name", TO_HOST)
def test_a_stream_that_breaks_the_contract(target: Target, name: str) -> None:
    sent, expected = messages(CORPUS / "session" / f"{name}.bin"), TO_HOST[name]
    before = len(target.serving.host.hosted)
    if isinstance(expected, int):
        target.stream(sent, expected)
        assert target.serving.host.hosted[-1].executed == expected
    else:
        with pytest.raises(ProtocolError, match=expected), translate():
            target.stream(sent)
    assert len(target.serving.host.hosted) <= before + 1
    target.alive()


def test_settings_without_end_are_refused(target: Target) -> None:
    opening = pb.OpenSession(session=bytes(16), protocol=1, setup=bytes((1 << 20) + 1))
    with pytest.raises(ProtocolError, match="begins with its opening, of at most"):
        target.stream([pb.SessionRequest(open=opening).SerializeToString()])


@settings(deadline=None, max_examples=60)
@given(st.lists(st.binary(max_size=100), max_size=5), st.randoms(use_true_random=False))
def test_any_stream_of_bytes_is_answered_or_a_typed_error(target: Target, noise: list[bytes], random: Any) -> None:
    opening = pb.OpenSession(session=random.randbytes(16), protocol=1, setup=b"{}")
    with suppress(ProtocolError, UnavailableError):  # the latter where the stream just ends
        target.stream([pb.SessionRequest(open=opening).SerializeToString(), *noise])


@pytest.fixture(scope="module")
def liar() -> Iterator[tuple[int, list[bytes]]]:
    """A host that answers with what is in the list, and then says no more."""
    said: list[bytes] = []
    free = threading.Event()

    class Liar(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            return grpc.stream_stream_rpc_method_handler(self.session)

        def session(self, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
            context.add_callback(free.set)
            free.clear()
            next(requests)
            yield said[0]
            next(requests)  # the operation
            yield from said[1:]
            free.wait(20)

    server = grpc.server(ThreadPoolExecutor(4), handlers=[Liar()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port, said
    free.set()
    server.stop(None).wait()


@pytest.mark.parametrize("name", TO_CLIENT)
def test_answers_that_break_the_contract(liar: tuple[int, list[bytes]], name: str) -> None:
    port, said = liar
    said[:] = messages(CORPUS / "answers" / f"{name}.bin")
    client = TensorClient(
        f"127.0.0.1:{port}",
        INSECURE,
        ClientSession(durable_answers=False, limits=Limits(max_frame_bytes=8 << 20)),
        session_id=bytes(16),
        mode=pb.SESSION_MODE_TRAINING,
        setup=b"{}",
        meter=LinkMeter("edge-fog"),
        me=EDGE,
        limits=Limits(max_frame_bytes=8 << 20),
        stall_s=10.0,
    )
    try:
        future = send(client, b"x")
        with pytest.raises(FoglineError, match=TO_CLIENT[name]) as caught:
            future.result(20)
        assert isinstance(caught.value, (ProtocolError, UnavailableError))
        with pytest.raises(FoglineError, match=TO_CLIENT[name]):
            send(client, b"y")
    finally:
        client.abandon()
