"""Taking images in: what is accepted, when it is durable, and who is a source of it. Knows no gRPC.

Devices may send the same image at the same time; everything that touches its bytes is done under the image's own lock.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass

from fogline.common.boxes import Box, check_boxes
from fogline.common.errors import CapacityError, FormatError, FormError, InputError, ProtocolError
from fogline.common.images.container import MAX_CAMERA_BYTES, MAX_CODED_PIXELS, MAX_TIME_US
from fogline.common.images.forms import Form
from fogline.common.images.uplink import decode
from fogline.common.trace import trace_id
from fogline.common.wire.transfer import Piece
from fogline.fog_node.config import Limits
from fogline.fog_node.encode_queue import size_of
from fogline.fog_node.store import CodedUpload, HeldImage, NewImage, QueuedImage, Store

PARTIAL_IDLE_S = 3600.0  # a device that returns later sends such an image from its first byte
DECODES = 2  # at once: a 50-megapixel image takes half a gigabyte while it is looked at


@dataclass(frozen=True)
class Claim:
    """What a device says of an image that it offers."""

    content_id: bytes
    size: int  # bytes of what is sent
    camera: str
    capture_time_us: int
    boxes: tuple[Box, ...]
    form: Form = Form.ORIGINAL
    coded_digest: bytes = b""  # SHA-256 of what is sent in a coded form
    tenant: str = ""  # of the device

    @property
    def digest(self) -> bytes:
        """SHA-256 of what is sent, its name in the blob store."""
        return self.coded_digest or self.content_id

    def check(self) -> None:
        """Refuse what can be judged without the pixels. Raises InputError."""
        if not 1 <= len(self.camera.encode()) <= MAX_CAMERA_BYTES or not self.camera.isprintable():
            raise InputError(f"camera name {self.camera[:80]!r}: use 1 to {MAX_CAMERA_BYTES} printable bytes")
        if self.capture_time_us > MAX_TIME_US:
            raise InputError(f"capture time {self.capture_time_us} µs is beyond the calendar; check the edge's clock")


class Ingest:
    """The way of every image into the store."""

    def __init__(
        self,
        store: Store,
        limits: Limits,
        width: int,
        on_stored: Callable[[Sequence[QueuedImage]], None],
        forms: Sequence[Form] = tuple(Form),
    ) -> None:
        self._store = store
        self.limits = limits
        self.forms = forms  # that are taken
        self._width = width
        self._on_stored = on_stored
        self._locks: dict[bytes, tuple[asyncio.Lock, int]] = {}  # and how many hold or want each
        self._decodes = asyncio.Semaphore(DECODES)
        self._promised: dict[object, Claim] = {}
        self._promising = asyncio.Lock()

    async def known(self, claim: Claim, device: str) -> HeldImage | None:
        """What became of an image that is held; `device` is one of its sources then."""
        held = await self._store.offered(claim.content_id, device, claim.tenant)
        if held is not None and (await asyncio.to_thread(self._held, claim)) > 0:
            # Perhaps what it sent in another form before, when there was no room to make that durable.
            async with self._promising:
                if all(other.digest != claim.digest for other in self._promised.values()):
                    await self._store.discard(claim.digest)
        return held

    async def promise(self, claim: Claim, ticket: object) -> int:
        """Make room for an image and return how many of its bytes are held already.

        The room and the digest are kept for `ticket` until `release`, when nothing may be under way for them any more.
        Raises CapacityError, and InputError for a digest of other bytes that are held: who offers a blob of another
        image, or a record, must not get at it.
        """
        async with self._promising:  # one at a time: room that is being made must not be missed, nor given twice
            others = self._promised.values()
            if any(
                o.digest == claim.digest and (o.content_id, o.tenant) != (claim.content_id, claim.tenant)
                for o in others
            ):
                raise CapacityError(f"digest {claim.digest.hex()[:16]}… is arriving as another image; try again later")
            if await self._store.names(claim.digest, claim.content_id):  # last: what is stored is named, then released
                kind = InputError if claim.form is Form.ORIGINAL else FormError
                raise kind(f"digest {claim.digest.hex()[:16]}… is of something else that this fog node holds")
            arriving = {claim.digest, *(other.digest for other in others)}
            await self._store.make_room(sum(other.size for other in others) + claim.size, arriving)
            if not await self._store.arriving(claim.digest, claim.tenant):
                await self._store.discard(claim.digest)  # what another tenant sent of it is no help to this one
            self._promised[ticket] = claim
        try:
            async with self._alone(claim.content_id):
                return await asyncio.to_thread(self._held, claim)
        except BaseException:
            self.release(ticket)
            raise

    def release(self, ticket: object) -> None:
        """The image of `ticket` is stored or given up."""
        self._promised.pop(ticket, None)

    async def forget(self, claim: Claim) -> None:
        """Drop the bytes of an unfinished image: they are not what is coming."""
        async with self._alone(claim.content_id):
            await asyncio.to_thread(self._store.blobs.drop_partial, claim.digest)

    async def append(self, claim: Claim, piece: Piece) -> None:
        """Keep the next bytes of an image. Raises CapacityError; ProtocolError when what came before is gone."""
        async with self._alone(claim.content_id):
            writing = asyncio.ensure_future(asyncio.to_thread(self._append, claim, piece))
            try:
                await asyncio.shield(writing)
            except asyncio.CancelledError:
                await asyncio.wait({writing})  # a thread can't be cancelled: until it returns the image isn't free
                raise

    async def finish(self, claim: Claim, device: str) -> bool:
        """Verify a complete image and make it durable; False when another device brought it meanwhile.

        Raises ProtocolError when the bytes don't match their digest, InputError when they are no acceptable image,
        and CapacityError.
        """
        async with self._alone(claim.content_id):
            if await self._store.offered(claim.content_id, device, claim.tenant) is not None:
                await self._store.discard(claim.digest)
                return False
            await asyncio.to_thread(self._store.blobs.commit, claim.digest)
            try:
                async with self._decodes:
                    width, height, boxes, upload = await asyncio.to_thread(self._look, claim)
            except (InputError, FormatError) as error:
                await self._store.discard(claim.digest)
                if isinstance(error, FormatError):
                    raise ProtocolError(f"{error}; send them again") from error
                raise
            what = (claim.content_id, claim.camera, claim.capture_time_us, width, height)
            await self._store.add(NewImage(*what, claim.size, boxes, upload, claim.tenant), device)
        queued = QueuedImage(*what, boxes, trace_id.get(), upload, claim.size, claim.tenant)
        self._on_stored([queued])
        return True

    async def sweep(self) -> None:
        """Drop what unfinished uploads left behind whose devices don't come back: it takes up room."""
        await asyncio.to_thread(self._store.blobs.drop_partials, PARTIAL_IDLE_S)
        await self._store.forget_arriving(PARTIAL_IDLE_S)

    async def expire(self, before_us: int) -> None:
        """Delete every record that was published before a time, a few at once, so that uploads need not wait."""
        deleted = 1
        while deleted:
            async with self._promising:
                arriving = {claim.digest for claim in self._promised.values()}
                deleted = await self._store.expire(before_us, arriving)

    def _held(self, claim: Claim) -> int:
        # A whole blob without a row: we were killed, or ran out of disk, between the two.
        if self._store.blobs.has(claim.digest):
            return self._store.blobs.size(claim.digest)
        return self._store.blobs.partial_offset(claim.digest)

    def _append(self, claim: Claim, piece: Piece) -> None:
        blobs = self._store.blobs
        if blobs.has(claim.digest):
            return
        held = blobs.partial_offset(claim.digest)
        if held < piece.offset:
            raise ProtocolError(f"the first {piece.offset} bytes were dropped since they came damaged; send them again")
        # Another device may be ahead with the same image: take what is new.
        blobs.append(claim.digest, held, memoryview(piece.data)[held - piece.offset :], claim.size)

    def _look(self, claim: Claim) -> tuple[int, int, tuple[Box, ...], CodedUpload | None]:
        data = self._store.blobs.get(claim.digest)
        limits = self.limits
        found = decode(
            claim.form,
            data,
            claim.content_id,
            max_bytes=limits.max_image_bytes,
            max_pixels=limits.max_image_pixels,
        )
        width, height = found.source_size
        boxes = check_boxes(claim.boxes, width, height, where=f"image {claim.content_id.hex()[:16]}…")
        upload = None
        if claim.form is not Form.ORIGINAL:
            upload = CodedUpload(claim.digest, claim.form, found.pixels.shape[1])
        image = QueuedImage(claim.content_id, "", 0, width, height, boxes, upload=upload)
        _check_coded(boxes, (width, height), size_of(image, self._width))
        return width, height, boxes, upload

    @asynccontextmanager
    async def _alone(self, content_id: bytes) -> AsyncIterator[None]:
        lock, users = self._locks.get(content_id, (asyncio.Lock(), 0))
        self._locks[content_id] = (lock, users + 1)
        try:
            async with lock:
                yield
        finally:
            lock, users = self._locks.pop(content_id)
            if users > 1:
                self._locks[content_id] = (lock, users - 1)


def _check_coded(boxes: Sequence[Box], size: tuple[int, int], coded: tuple[int, int]) -> None:
    """Refuse boxes whose layers no reader of the record would take."""
    sx, sy = coded[0] / size[0], coded[1] / size[1]
    pixels = coded[0] * coded[1] + sum(math.ceil(b.w * sx + 2) * math.ceil(b.h * sy + 2) for b in boxes)
    if pixels > MAX_CODED_PIXELS:
        raise InputError(f"{len(boxes)} boxes cover {pixels} coded pixels, at most {MAX_CODED_PIXELS}; drop some boxes")
