"""A fog node on the real gRPC stack whose answers a test scripts: honest by default, as bad as it is told."""

from __future__ import annotations

import asyncio
import hashlib
import threading
import zlib
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from typing import Any

from fogline.common.clock import now_us
from fogline.common.config import TlsConfig
from fogline.common.images.container import to_bytes
from fogline.common.images.record import ImageRecord
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen import images_pb2_grpc, transfer_pb2
from fogline.common.rpc.server import aio_server

CHUNK = 64 << 10
Chunks = list[pb.FetchedChunk]


class ScriptedFog(images_pb2_grpc.ImageServiceServicer):
    """State is public: tests read and change it."""

    def __init__(self) -> None:
        self.port = 0
        self.store_id = b"s" * 16
        self.clock: Callable[[], int] = now_us
        self.hellos: list[pb.HelloRequest] = []
        self.hello: dict[str, Any] = {}  # fields to answer otherwise
        # Upload
        self.offers: list[pb.ImageOffer] = []
        self.parts: dict[bytes, bytearray] = {}
        self.stored: dict[bytes, bytes] = {}  # what came, by content id
        self.resumed_at: list[int] = []
        self.on_offer: Callable[[pb.ImageOffer], pb.UploadResponse | None] = lambda offer: None
        self.break_after: int | None = None  # chunks until the connection breaks, once
        # Subscribe and Fetch
        self.log: list[pb.Published] = []
        self.blobs: dict[int | bytes, bytes] = {}
        self.subscriptions: list[pb.SubscribeRequest] = []
        self.fetched: list[pb.FetchItem] = []
        self.on_fetch: Callable[[Chunks], Chunks] = lambda chunks: chunks

    def publish(self, record: ImageRecord | bytes, shared: tuple[bytes, ...] = (), digest: bytes | None = None) -> int:
        """Publish a record (or bytes that pose as one); returns its cursor."""
        data = record if isinstance(record, bytes) else to_bytes(record)
        cursor = len(self.log) + 1
        states = [pb.SharedState(digest=hashlib.sha256(blob).digest(), size=len(blob)) for blob in shared]
        self.blobs[cursor] = data
        self.blobs.update({state.digest: blob for state, blob in zip(states, shared, strict=True)})
        digest = digest or hashlib.sha256(data).digest()
        self.log.append(pb.Published(cursor=cursor, size=len(data), digest=digest, shared=states))
        return cursor

    async def Hello(self, request: pb.HelloRequest, context: Any) -> pb.HelloResponse:
        self.hellos.append(request)
        fields: dict[str, Any] = {
            "protocol": 1, "server_time_us": self.clock(), "max_image_bytes": 32 << 20, "max_image_pixels": 50_000_000,
            "max_boxes": 1024, "max_chunk_bytes": CHUNK, "store_id": self.store_id,
        }  # fmt: skip
        return pb.HelloResponse(**(fields | self.hello))

    async def Upload(self, requests: AsyncIterator[pb.UploadRequest], context: Any) -> AsyncIterator[pb.UploadResponse]:
        offers: dict[bytes, pb.ImageOffer] = {}
        async for request in requests:
            if request.WhichOneof("message") == "offer":
                offer = request.offer
                self.offers.append(offer)
                offers[offer.content_id] = offer
                scripted = self.on_offer(offer)
                if scripted is not None:
                    yield scripted
                    continue
                if offer.content_id in self.stored:
                    yield pb.UploadResponse(stored=pb.UploadStored(content_id=offer.content_id, duplicate=True))
                    continue
                held = len(self.parts.setdefault(offer.digest or offer.content_id, bytearray()))
                self.resumed_at.append(held)
                yield pb.UploadResponse(accepted=pb.UploadAccepted(content_id=offer.content_id, offset=held))
                continue
            content_id, chunk = request.chunk.content_id, request.chunk.chunk
            offer = offers[content_id]
            digest = offer.digest or content_id
            part = self.parts[digest]
            assert chunk.offset == len(part)
            assert zlib.crc32(chunk.data) == chunk.crc32
            part += chunk.data
            if self.break_after is not None:
                self.break_after -= 1
                if self.break_after == 0:
                    self.break_after = None
                    await context.abort(grpc_unavailable(), "scripted break")
            if len(part) == offer.size:
                assert hashlib.sha256(part).digest() == digest
                self.stored[content_id] = bytes(self.parts.pop(digest))
                yield pb.UploadResponse(stored=pb.UploadStored(content_id=content_id))

    async def Subscribe(self, request: pb.SubscribeRequest, context: Any) -> AsyncIterator[pb.SubscribeResponse]:
        self.subscriptions.append(request)
        told = request.cursor
        while True:
            new = [p for p in self.log if p.cursor > told]
            if new:
                told = new[-1].cursor
                yield pb.SubscribeResponse(published=new, head=told)
            await asyncio.sleep(0.01)

    async def Fetch(self, requests: AsyncIterator[pb.FetchRequest], context: Any) -> AsyncIterator[pb.FetchResponse]:
        async for request in requests:
            for item in request.items:
                self.fetched.append(item)
                for message in self.on_fetch(self._chunks(item)):
                    yield pb.FetchResponse(chunks=[message])

    def _chunks(self, item: pb.FetchItem) -> Chunks:
        key: int | bytes = item.cursor if item.WhichOneof("what") == "cursor" else item.shared_digest
        name = {"cursor": key} if isinstance(key, int) else {"shared_digest": key}
        data = self.blobs.get(key)
        if data is None:
            return [pb.FetchedChunk(**name, gone=True)]
        return [
            pb.FetchedChunk(**name, chunk=piece(at, data[at : at + CHUNK]))
            for at in range(item.offset, len(data), CHUNK)
        ]


def piece(offset: int, data: bytes) -> transfer_pb2.Chunk:
    """A chunk with its checksum."""
    return transfer_pb2.Chunk(offset=offset, data=data, crc32=zlib.crc32(data))


def grpc_unavailable() -> Any:
    import grpc

    return grpc.StatusCode.UNAVAILABLE


class Serving:
    """The server of a scripted fog; `restart` closes every connection and listens on the same port again."""

    def __init__(self, fog: ScriptedFog) -> None:
        self.fog = fog
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, daemon=True)
        self._thread.start()
        self._server: Any = None

    def start(self) -> None:
        """Listen."""
        asyncio.run_coroutine_threadsafe(self._start(), self._loop).result(10)

    def stop(self) -> None:
        """Drop every connection."""
        asyncio.run_coroutine_threadsafe(self._server.stop(0), self._loop).result(10)

    def close(self) -> None:
        """End."""
        self.stop()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _start(self) -> None:
        listen = f"127.0.0.1:{self.fog.port}"
        add = images_pb2_grpc.add_ImageServiceServicer_to_server
        self._server, self.fog.port = await aio_server(
            listen, TlsConfig(insecure=True), LinkMeter("edge-fog"), [(add, self.fog)]
        )


@contextmanager
def serving(fog: ScriptedFog) -> Iterator[Serving]:
    """Serve it."""
    server = Serving(fog)
    server.start()
    try:
        yield server
    finally:
        server.close()
