"""A real server with small real services on a thread of its own, and the kernel's view of a client's connection."""

from __future__ import annotations

import asyncio
import os
import socket
import stat
import struct
import threading
from collections.abc import AsyncIterator, Awaitable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc

from fogline.common import errors, trace
from fogline.common.config import TlsConfig
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import control_pb2, control_pb2_grpc, images_pb2, images_pb2_grpc, transfer_pb2
from fogline.common.rpc.peer import Peer, peer
from fogline.common.rpc.server import RpcServer, aio_server
from fogline.common.wire.transfer import Piece
from fogline.common.wire.upload import Accept, UploadReceiver

INSECURE = TlsConfig(insecure=True)
EDGE = Peer("edge-1", "edge")
MAX_IMAGE = 32 << 20


class Images(images_pb2_grpc.ImageServiceServicer):
    """Stores uploads in memory, and serves made-up records and notifications."""

    def __init__(self) -> None:
        self.stored: dict[bytes, bytes] = {}
        self.partial: dict[bytes, bytes] = {}
        self.traces: list[str] = []
        self.callers: list[Peer] = []
        self.fail: Exception | None = None

    async def Hello(self, request: Any, context: Any) -> Any:
        self.traces.append(trace.trace_id.get())
        self.callers.append(peer(context))
        if self.fail is not None:
            raise self.fail
        return images_pb2.HelloResponse(protocol=1)

    async def Upload(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        machine = UploadReceiver(max_image_bytes=MAX_IMAGE)
        async for request in requests:
            if request.WhichOneof("message") == "offer":
                content_id = request.offer.content_id
                if machine.offer(content_id, request.offer.size) is not None:
                    rejected = images_pb2.UploadRejected(content_id=content_id, reason=1)
                    yield images_pb2.UploadResponse(rejected=rejected)
                    continue
                answer: Accept = machine.accept(content_id, len(self.partial.get(content_id, b"")))
                accepted = images_pb2.UploadAccepted(content_id=content_id, offset=answer.offset)
                yield images_pb2.UploadResponse(accepted=accepted)
                continue
            chunk = request.chunk.chunk
            step = machine.chunk(request.chunk.content_id, Piece(chunk.offset, chunk.data, chunk.crc32))
            assert step is not None
            self.partial[step.content_id] = self.partial.get(step.content_id, b"") + step.piece.data
            if step.last:
                self.stored[step.content_id] = self.partial.pop(step.content_id)
                machine.stored(step.content_id)
                yield images_pb2.UploadResponse(stored=images_pb2.UploadStored(content_id=step.content_id))

    async def Subscribe(self, request: Any, context: Any) -> AsyncIterator[Any]:
        for cursor in range(request.cursor):
            await asyncio.sleep(0.002)
            published = images_pb2.Published(cursor=cursor, size=2500, digest=bytes(32))
            yield images_pb2.SubscribeResponse(published=[published], head=cursor)
        if self.fail is not None:
            raise self.fail

    async def Fetch(self, requests: AsyncIterator[Any], context: Any) -> AsyncIterator[Any]:
        async for request in requests:
            for item in request.items:
                size = item.offset or 2500
                chunk = transfer_pb2.Chunk(data=os.urandom(size), crc32=1)
                if item.WhichOneof("what") == "cursor":
                    fetched = images_pb2.FetchedChunk(cursor=item.cursor, chunk=chunk)
                else:
                    fetched = images_pb2.FetchedChunk(shared_digest=item.shared_digest, chunk=chunk)
                yield images_pb2.FetchResponse(chunks=[fetched])
        if self.fail is not None:
            raise self.fail


class Fleet(control_pb2_grpc.FleetServiceServicer):
    async def Heartbeat(self, request: Any, context: Any) -> Any:
        return control_pb2.HeartbeatResponse()

    async def Leave(self, request: Any, context: Any) -> Any:
        await asyncio.sleep(3600)


class Loop:
    """An event loop on a thread."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._servers: list[RpcServer] = []

    def run(self, work: Awaitable[Any], timeout_s: float = 30.0) -> Any:
        async def whole() -> Any:
            return await work

        return asyncio.run_coroutine_threadsafe(whole(), self._loop).result(timeout_s)

    def serve(
        self, tls: TlsConfig, images: Images | None = None, meter: LinkMeter | None = None, listen: str = "127.0.0.1:0"
    ) -> tuple[RpcServer, int]:
        services: Sequence[Any] = (
            (images_pb2_grpc.add_ImageServiceServicer_to_server, images or Images()),
            (control_pb2_grpc.add_FleetServiceServicer_to_server, Fleet()),
        )
        server, port = self.run(aio_server(listen, tls, meter or LinkMeter("edge-fog"), services))
        self._servers.append(server)
        return server, port

    def close(self) -> None:
        for server in self._servers:
            self.run(server.stop(0))
        self.run(_settle())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(10)
        self._loop.close()


async def _settle() -> None:
    others = [task for task in asyncio.all_tasks() if task is not asyncio.current_task()]
    if others:
        _, pending = await asyncio.wait(others, timeout=5)
        assert not pending, f"left behind: {pending}"


def raw_tls_server(certificate: TlsConfig, root: TlsConfig) -> tuple[grpc.Server, int]:
    """A gRPC server that does not look at its own certificate first; it trusts the authority of `root`."""
    _, cert, key = (path.read_bytes() for path in certificate.files())
    server = grpc.server(ThreadPoolExecutor(1))
    credentials = grpc.ssl_server_credentials([(key, cert)], root.files()[0].read_bytes(), require_client_auth=True)
    port = server.add_secure_port("127.0.0.1:0", credentials)
    server.start()
    return server, port


def kernel_bytes(port: int) -> tuple[int, int]:
    """(sent, received) of this process's one client socket to `port`: TCP payload, from the kernel's `tcp_info`."""
    found = []
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not stat.S_ISSOCK(os.stat(f"/proc/self/fd/{entry}").st_mode):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as copy:
                if copy.family not in (socket.AF_INET, socket.AF_INET6) or copy.getpeername()[1] != port:
                    continue
                info = copy.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:
            continue  # closed meanwhile, or not connected
        acked, received = struct.unpack_from("<QQ", info, 120)  # tcpi_bytes_acked, tcpi_bytes_received
        found.append((acked - 1, received))  # the handshake's SYN counts as one acknowledged byte
    assert len(found) == 1, f"{len(found)} sockets to port {port}"
    return found[0]


# A class with no exit code of its own arrives as the one that it is a kind of.
ALL_ERRORS = tuple(
    cls
    for cls in vars(errors).values()
    if isinstance(cls, type) and issubclass(cls, errors.FoglineError) and "exit_code" in vars(cls)
)[1:]
