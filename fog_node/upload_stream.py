"""One Upload stream: drives the receiver's state machine, the ingest and the answers."""

from __future__ import annotations

import asyncio
import logging
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Coroutine, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import grpc

from fogline.common.boxes import Box
from fogline.common.errors import CapacityError, FormError, InputError, ProtocolError
from fogline.common.images.forms import Form
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.transfer import Piece
from fogline.common.wire.upload import DIGEST_BYTES, Reason, UploadReceiver
from fogline.fog_node.audience import Audience
from fogline.fog_node.ingest import Claim, Ingest
from fogline.fog_node.tenants import Viewer

log = logging.getLogger(__name__)

Write = Callable[[pb.UploadResponse], Awaitable[None]]

MAX_TASKS = 256  # lookups and verifications under way; an edge that never reads its answers can't pile up more


class UploadStream:
    """Takes images from one device until its stream ends.

    Chunks are kept in order, with gRPC's flow control as back-pressure; offers are looked up and complete images
    verified beside that, so that one fsync serves many images.
    """

    def __init__(self, ingest: Ingest, audience: Audience, device: Viewer, write: Write, max_chunk_bytes: int) -> None:
        self._ingest = ingest
        self._audience = audience
        self._device, self._tenant = device.device, device.tenant
        self._write = write
        self._writing = asyncio.Lock()  # gRPC takes one write at a time
        self._receiver = UploadReceiver(max_image_bytes=ingest.limits.max_image_bytes, max_chunk_bytes=max_chunk_bytes)
        self._claims: dict[bytes, Claim] = {}
        self._coming: set[bytes] = set()  # claims of which bytes are on the way
        self._at_work: Counter[bytes] = Counter()  # what is being done for claims; they outlast the stream until then
        self._tasks: set[asyncio.Task[None]] = set()
        self._broken: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    async def serve(self, requests: AsyncIterator[pb.UploadRequest]) -> None:
        """Until the device ends the stream and everything complete is answered. Raises ProtocolError, UnavailableError.

        When the stream breaks, images that came whole are still made durable.
        """
        reader = asyncio.ensure_future(self._read(requests))
        reader.add_done_callback(_seen)
        self._broken.add_done_callback(_seen)
        try:
            await asyncio.wait({reader, self._broken}, return_when=asyncio.FIRST_COMPLETED)
            if reader.done():
                await reader
                while self._tasks and not self._broken.done():
                    await asyncio.wait({*self._tasks, self._broken}, return_when=asyncio.FIRST_COMPLETED)
            if self._broken.done():
                await self._broken
        finally:
            reader.cancel()
            self._broken.cancel()
            for content_id in list(self._claims):
                self._leave(content_id)
            async with self._writing:  # gRPC hangs when a call is aborted while a write of it is under way
                pass

    async def _read(self, requests: AsyncIterator[pb.UploadRequest]) -> None:
        async for request in requests:
            while len(self._tasks) >= MAX_TASKS:
                await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            kind = request.WhichOneof("message")
            if kind == "offer":
                await self._offer(request.offer)
            elif kind == "chunk":
                await self._chunk(request.chunk)
            else:
                raise ProtocolError("an upload request that is neither an offer nor a chunk; update the older end")

    async def _offer(self, offer: pb.ImageOffer) -> None:
        form = _form(offer, self._ingest.forms)
        refused = self._receiver.offer(offer.content_id, offer.size)
        if refused is not None:
            await self._answer(_rejected(refused.content_id, refused.reason, refused.detail, form=False))
            return
        # Chunks of it can't come before it was accepted, so the lookup need not hold up the stream.
        self._start(self._decide(offer, form))

    async def _decide(self, offer: pb.ImageOffer, form: Form) -> None:
        content_id = offer.content_id
        try:
            claim = _claim(offer, form, self._ingest, self._tenant)
            held = await self._ingest.known(claim, self._device)
            if held is not None and held.state == "bad":
                raise InputError(f"it was set aside: {held.reason}")
            if held is not None:
                self._receiver.duplicate(content_id)
                await self._answer(pb.UploadResponse(stored=pb.UploadStored(content_id=content_id, duplicate=True)))
                return
            bytes_held = await self._ingest.promise(claim, (self, content_id))
        except InputError as error:
            await self._reject(content_id, Reason.INVALID, error)
            return
        except CapacityError as error:
            await self._reject(content_id, Reason.NO_SPACE, error)
            return
        with self._working(content_id):
            self._claims[content_id] = claim
            self._coming.add(content_id)
            self._audience.expecting()
            if self._broken.done():
                return
            accept = self._receiver.accept(content_id, bytes_held)
            if accept.restart:
                await self._ingest.forget(claim)
            message = pb.UploadAccepted(content_id=content_id, offset=accept.offset)
            await self._answer(pb.UploadResponse(accepted=message))
            if accept.complete:
                await self._finish(claim)

    async def _chunk(self, message: pb.UploadChunk) -> None:
        content_id = message.content_id
        piece = Piece(message.chunk.offset, message.chunk.data, message.chunk.crc32)
        append = self._receiver.chunk(content_id, piece)
        if append is None:
            return
        claim = self._claims[content_id]
        with self._working(content_id):
            try:
                await self._ingest.append(claim, piece)
            except ProtocolError as error:
                await self._reject(content_id, Reason.CORRUPT, error)
            except CapacityError as error:
                await self._reject(content_id, Reason.NO_SPACE, error)
            else:
                self._audience.received(len(piece.data))
                if append.last:
                    self._landed(content_id)
                    self._at_work[content_id] += 1  # at once: the stream may break before the task begins
                    self._start(self._finish_last(claim))

    async def _finish_last(self, claim: Claim) -> None:
        try:
            await self._finish(claim)
        finally:
            self._worked(claim.content_id)

    async def _finish(self, claim: Claim) -> None:
        content_id = claim.content_id
        try:
            new = await self._ingest.finish(claim, self._device)
        except ProtocolError as error:
            await self._reject(content_id, Reason.CORRUPT, error)
        except InputError as error:
            await self._reject(content_id, Reason.INVALID, error)
        except CapacityError as error:
            await self._reject(content_id, Reason.NO_SPACE, error)
        else:
            self._receiver.stored(content_id)
            self._forget(content_id)
            log.debug("image stored", extra={"device": self._device, "content_id": content_id.hex(), "new": new})
            await self._answer(pb.UploadResponse(stored=pb.UploadStored(content_id=content_id, duplicate=not new)))

    async def _reject(self, content_id: bytes, reason: Reason, error: Exception) -> None:
        log.warning(
            "image refused: %s",
            error,
            extra={"device": self._device, "content_id": content_id.hex(), "reason": reason.name},
        )
        self._receiver.reject(content_id, reason, str(error))
        self._forget(content_id)
        await self._answer(_rejected(content_id, reason, str(error), form=isinstance(error, FormError)))

    @contextmanager
    def _working(self, content_id: bytes) -> Iterator[None]:
        self._at_work[content_id] += 1
        try:
            yield
        finally:
            self._worked(content_id)

    def _worked(self, content_id: bytes) -> None:
        self._at_work[content_id] -= 1
        if not self._at_work[content_id]:
            del self._at_work[content_id]
        if self._broken.done():  # whoever ended the stream left the claim to us
            self._leave(content_id)

    def _leave(self, content_id: bytes) -> None:
        """Give a claim up once nothing is under way for it: what another brings meanwhile must not meet it."""
        if not self._at_work[content_id]:
            self._forget(content_id)

    def _forget(self, content_id: bytes) -> None:
        self._claims.pop(content_id, None)
        self._landed(content_id)
        self._ingest.release((self, content_id))

    def _landed(self, content_id: bytes) -> None:
        if content_id in self._coming:
            self._coming.remove(content_id)
            self._audience.arrived()

    async def _answer(self, response: pb.UploadResponse) -> None:
        async with self._writing:
            if self._broken.done():
                return  # nobody listens any more; what is durable will be answered as a duplicate next time
            with suppress(grpc.aio.UsageError, asyncio.InvalidStateError):  # the call ended meanwhile
                await self._write(response)

    def _start(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.ensure_future(work)
        self._tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._tasks.discard(task)
        if task.cancelled():
            return
        error = task.exception()
        if error is not None and not self._broken.done():
            self._broken.set_exception(error)


def _seen(future: asyncio.Future[None]) -> None:
    """Keep asyncio from complaining of an error that came when another had already ended the stream."""
    if not future.cancelled():
        future.exception()


def _form(offer: pb.ImageOffer, accepted: Collection[Form]) -> Form:
    """What is sent. Raises ProtocolError for a form that Hello did not offer, or a digest that does not belong."""
    number = offer.form or Form.ORIGINAL.value
    form = next((form for form in accepted if form.value == number), None)
    if form is None:
        known = ", ".join(form.text for form in accepted)
        raise ProtocolError(f"upload: form {number} of an image; this fog node takes {known}: say Hello again")
    if len(offer.digest) != (0 if form is Form.ORIGINAL else DIGEST_BYTES):
        raise ProtocolError(f"upload: a digest of {len(offer.digest)} bytes with form {form.text}; update the edge")
    return form


def _claim(offer: pb.ImageOffer, form: Form, ingest: Ingest, tenant: str) -> Claim:
    if len(offer.boxes) > ingest.limits.max_boxes:
        raise InputError(f"{len(offer.boxes)} boxes; this fog node takes up to {ingest.limits.max_boxes}: drop some")
    boxes = tuple(Box(box.x, box.y, box.width, box.height, box.label or "object") for box in offer.boxes)
    claim = Claim(offer.content_id, offer.size, offer.camera, offer.capture_time_us, boxes, form, offer.digest, tenant)
    claim.check()
    return claim


def _rejected(content_id: bytes, reason: Reason, detail: str, form: bool) -> pb.UploadResponse:
    number = pb.RejectReason.ValueType(reason.value)
    rejected = pb.UploadRejected(content_id=content_id, reason=number, detail=detail[:1024], form=form)
    return pb.UploadResponse(rejected=rejected)
