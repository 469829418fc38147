"""How much of a stream a server takes whose handler does not read it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from rpc_helpers import EDGE, INSECURE, Loop

from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.channel import connect
from fogline.common.rpc.gen import images_pb2, images_pb2_grpc, transfer_pb2
from fogline.common.rpc.server import aio_server

CHUNK = 256 << 10


class Deaf(images_pb2_grpc.ImageServiceServicer):
    async def Upload(self, requests: Any, context: Any) -> None:  # type: ignore[override]
        await asyncio.Event().wait()


@pytest.mark.parametrize("read_ahead", [1 << 20, 8 << 20])
def test_no_more_than_the_read_ahead_is_taken(loop: Loop, read_ahead: int) -> None:
    made = aio_server(
        "127.0.0.1:0",
        INSECURE,
        LinkMeter("edge-fog"),
        [(images_pb2_grpc.add_ImageServiceServicer_to_server, Deaf())],
        read_ahead=read_ahead,
    )
    server, port = loop.run(made)
    taken, moved = 0, threading.Event()
    message = images_pb2.UploadRequest(
        chunk=images_pb2.UploadChunk(chunk=transfer_pb2.Chunk(data=bytes(CHUNK)))  # nobody looks into it
    )

    def messages() -> Iterator[images_pb2.UploadRequest]:
        nonlocal taken
        while True:
            yield message
            taken += CHUNK
            moved.set()

    with connect(f"127.0.0.1:{port}", INSECURE, meter=LinkMeter("edge-fog"), me=EDGE) as channel:
        call: Any = images_pb2_grpc.ImageServiceStub(channel).Upload(messages())
        while moved.wait(1.0):
            moved.clear()
        call.cancel()
        with pytest.raises(grpc.RpcError):
            next(call)
    loop.run(server.stop(0))
    assert read_ahead / 2 <= taken <= read_ahead + (3 << 20)
