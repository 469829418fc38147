"""Messages that break the contract, in valid gRPC: a typed error for that call, and the connection goes on."""

from __future__ import annotations

import hashlib
import json
import struct
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

sys.path.insert(0, str(Path(__file__).parent.parent / "common" / "rpc"))  # `rpc_helpers`, under importlib mode

from rpc_helpers import EDGE, INSECURE, Images, Loop

from fogline.common.errors import FoglineError, ProtocolError
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import aio_connect, connect
from fogline.common.rpc.gen import images_pb2, images_pb2_grpc
from fogline.common.rpc.status import translate

CORPUS = Path(__file__).parent / "wire"
EXPECTED: dict[str, str | None] = json.loads((CORPUS / "upload" / "expected.json").read_text())


class Target:
    """A server and a connection to it that sends whatever bytes it is given."""

    def __init__(self, loop: Loop) -> None:
        self.images = Images()
        _, self.port = loop.serve(INSECURE, self.images)
        self.channel = connect(f"127.0.0.1:{self.port}", INSECURE, meter=LinkMeter("x"), me=EDGE)
        # Straight to gRPC: these bytes are no messages that could be counted by kind.
        self._raw = grpc.insecure_channel(f"127.0.0.1:{self.port}")

    def hello(self, data: bytes) -> bytes:
        call = self._raw.unary_unary("/fogline.v1.ImageService/Hello")
        answer: bytes = call(data, metadata=EDGE.metadata(), timeout=10)
        return answer

    def upload(self, messages: list[bytes]) -> list[bytes]:
        call = self._raw.stream_stream("/fogline.v1.ImageService/Upload")
        return list(call(iter(messages), metadata=EDGE.metadata(), timeout=10))

    def alive(self) -> None:
        images_pb2_grpc.ImageServiceStub(self.channel).Hello(images_pb2.HelloRequest(protocol=1))

    def close(self) -> None:
        self.channel.close()
        self._raw.close()


@pytest.fixture(scope="module")
def target() -> Iterator[Target]:
    loop = Loop()
    made = Target(loop)
    yield made
    made.close()
    loop.close()


@pytest.fixture
def fresh(target: Target) -> Target:
    target.images.stored.clear()
    target.images.partial.clear()
    return target


@pytest.mark.parametrize("attack", sorted((CORPUS / "hello").glob("*.bin")), ids=lambda path: path.stem)
def test_a_unary_request_that_is_none(fresh: Target, attack: Path) -> None:
    with pytest.raises(ProtocolError, match="not a request"), translate():
        fresh.hello(attack.read_bytes())
    fresh.alive()


@pytest.mark.parametrize("name", EXPECTED)
def test_an_upload_that_breaks_the_contract(fresh: Target, name: str) -> None:
    data, messages = (CORPUS / "upload" / f"{name}.bin").read_bytes(), []
    while data:
        (length,) = struct.unpack_from("<I", data)
        messages.append(data[4 : 4 + length])
        data = data[4 + length :]
    if EXPECTED[name] is None:
        fresh.upload(messages)
        assert fresh.images.stored
    else:
        with pytest.raises(ProtocolError, match=EXPECTED[name]), translate():
            fresh.upload(messages)
    for content_id, image in fresh.images.stored.items():
        assert hashlib.sha256(image).digest() == content_id
    fresh.alive()


@given(st.binary(max_size=200))
def test_any_bytes_are_a_request_or_a_typed_error(target: Target, data: bytes) -> None:
    try:
        with translate():
            images_pb2.HelloResponse.FromString(target.hello(data))
    except ProtocolError:
        pass


@given(st.lists(st.binary(max_size=100), max_size=5))
def test_any_stream_of_bytes_is_answered_or_a_typed_error(target: Target, messages: list[bytes]) -> None:
    try:
        with translate():
            target.upload(messages)
    except ProtocolError:
        pass


def test_a_message_beyond_the_limit(fresh: Target) -> None:
    with pytest.raises(ProtocolError, match="larger than max"), translate():
        fresh.upload([bytes(5 << 20)])
    fresh.alive()


def test_metadata_beyond_the_limit(fresh: Target) -> None:
    with grpc.insecure_channel(f"127.0.0.1:{fresh.port}", (("grpc.max_metadata_size", 1 << 20),)) as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(FoglineError), translate():
            stub.Hello(images_pb2.HelloRequest(), metadata=(*EDGE.metadata(), ("x-filler", "x" * 60_000)))
    fresh.alive()


async def test_an_answer_that_is_none_is_an_error_here_too(loop_with_liar: int) -> None:
    with connect(f"127.0.0.1:{loop_with_liar}", INSECURE, meter=LinkMeter("x"), me=EDGE) as channel:
        stub = images_pb2_grpc.ImageServiceStub(channel)
        with pytest.raises(ProtocolError, match="not an answer"), translate():
            stub.Hello(images_pb2.HelloRequest()).protocol  # noqa: B018
        with pytest.raises(ProtocolError, match="not an answer"), translate():
            [answer.head for answer in stub.Subscribe(images_pb2.SubscribeRequest())]
    async with await aio_connect(f"127.0.0.1:{loop_with_liar}", INSECURE, meter=LinkMeter("x"), me=EDGE) as aio:
        aio_stub: Any = images_pb2_grpc.ImageServiceStub(aio)
        with pytest.raises(ProtocolError, match="not an answer"), translate():
            (await aio_stub.Hello(images_pb2.HelloRequest())).protocol  # noqa: B018
        with pytest.raises(ProtocolError, match="not an answer"), translate():
            [answer.head async for answer in aio_stub.Subscribe(images_pb2.SubscribeRequest())]


@pytest.fixture
def loop_with_liar() -> Iterator[int]:
    """A server that answers anything with noise."""
    from concurrent.futures import ThreadPoolExecutor

    class Liar(grpc.GenericRpcHandler):
        def service(self, details: Any) -> Any:
            if details.method.endswith("Subscribe"):
                return grpc.unary_stream_rpc_method_handler(lambda request, context: iter([b"\xff" * 9]))
            return grpc.unary_unary_rpc_method_handler(lambda request, context: b"\xff" * 9)

    server = grpc.server(ThreadPoolExecutor(2), handlers=[Liar()])
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    yield port
    server.stop(None).wait()
