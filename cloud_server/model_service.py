"""ModelService over gRPC: models come in and go out in checked chunks that resume at any offset."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from fogline.cloud_server.messages import model_version
from fogline.cloud_server.models import ModelStore, Version
from fogline.common.clock import now_us
from fogline.common.errors import InputError, ProtocolError, UnavailableError
from fogline.common.rpc.gen import control_pb2 as pb
from fogline.common.rpc.gen import control_pb2_grpc, transfer_pb2
from fogline.common.rpc.peer import peer

CHUNK_BYTES = 256 << 10


@dataclass
class _Upload:
    """One model on its way in, on one stream."""

    name: str
    digest: bytes
    size: int
    offset: int


class ModelService(control_pb2_grpc.ModelServiceServicer):
    """The model registry's calls. Disk work runs in threads: an fsync must not hold up heartbeats."""

    def __init__(self, models: ModelStore) -> None:
        self._models = models
        # The newest stream that offers a digest owns it: a publisher that reconnects must not wait for its dead stream.
        self._owners: dict[bytes, _Upload] = {}

    async def PublishModel(
        self, request_iterator: AsyncIterator[pb.PublishModelRequest], context: Any
    ) -> AsyncIterator[pb.PublishModelResponse]:
        """Take in models, one after another on a stream."""
        who = peer(context)
        upload: _Upload | None = None
        try:
            async for request in request_iterator:
                if request.WhichOneof("message") == "offer":
                    if upload is not None:
                        raise ProtocolError(
                            f"model {upload.name}: another offer at {upload.offset} of {upload.size} bytes"
                        )
                    offer = request.offer
                    found = await asyncio.to_thread(
                        self._models.begin, offer.name, offer.digest, offer.size, who.tenant
                    )
                    if isinstance(found, Version):
                        yield pb.PublishModelResponse(stored=model_version(found))
                        continue
                    upload = _Upload(offer.name, offer.digest, offer.size, found)
                    self._owners[upload.digest] = upload
                    yield pb.PublishModelResponse(accepted=pb.ModelAccepted(offset=found))
                elif request.WhichOneof("message") == "chunk":
                    await self._append(upload, request.chunk)
                else:
                    raise ProtocolError("a publication message is empty; it holds an offer or a chunk")
                if upload is not None and upload.offset == upload.size:
                    made = (upload.name, upload.digest, who.name, now_us(), who.tenant)
                    stored = await asyncio.to_thread(self._models.finish, *made)
                    self._release(upload)
                    upload = None
                    yield pb.PublishModelResponse(stored=model_version(stored))
        finally:
            if upload is not None:
                self._release(upload)

    async def LatestModel(self, request: pb.LatestModelRequest, context: Any) -> pb.LatestModelResponse:
        """Answer with the newest version of a model, if there is one."""
        found = await asyncio.to_thread(self._models.latest, request.name, peer(context).tenant)
        return pb.LatestModelResponse(model=model_version(found) if found else None)

    async def FetchModel(self, request: pb.FetchModelRequest, context: Any) -> AsyncIterator[pb.FetchModelResponse]:
        """Send a model's bytes from an offset on."""
        path, size = await asyncio.to_thread(self._models.open_for_reading, request.digest, peer(context).tenant)
        if request.offset > size:
            raise InputError(f"model {request.digest.hex()} has {size} bytes; {request.offset} is past its end")
        offset = request.offset
        try:
            opened = path.open("rb")
        except FileNotFoundError:
            raise InputError(f"model {request.digest.hex()} was just replaced; ask for the latest") from None
        with opened as file:  # open for the whole transfer: a version dropped meanwhile still arrives
            file.seek(offset)
            while data := await asyncio.to_thread(file.read, CHUNK_BYTES):
                chunk = transfer_pb2.Chunk(offset=offset, data=data, crc32=zlib.crc32(data))
                yield pb.FetchModelResponse(chunk=chunk)
                offset += len(data)

    async def _append(self, upload: _Upload | None, chunk: transfer_pb2.Chunk) -> None:
        if upload is None:
            raise ProtocolError(f"a chunk of {len(chunk.data)} bytes without an offer before it")
        if self._owners.get(upload.digest) is not upload:
            raise UnavailableError(
                f"model {upload.name}: the same bytes began to arrive on a newer stream; offer it again"
            )
        if not chunk.data:
            raise ProtocolError(f"model {upload.name}: an empty chunk at {chunk.offset}")
        if zlib.crc32(chunk.data) != chunk.crc32:
            raise ProtocolError(
                f"model {upload.name}: the chunk at {chunk.offset} was damaged on its way; send it again"
            )
        await asyncio.to_thread(self._models.append, upload.digest, chunk.offset, chunk.data, upload.size)
        upload.offset = chunk.offset + len(chunk.data)

    def _release(self, upload: _Upload) -> None:
        if self._owners.get(upload.digest) is upload:
            del self._owners[upload.digest]
