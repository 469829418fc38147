"""The Upload stream, both ends, as state machines without I/O.

For each image: offer → accepted(offset) → chunks from there → stored. Or, at any point, rejected. An image leaves the
sender's outbox on stored or on a final rejection, never before; a receiver says stored only of what it holds durably.
A stream may break at any point: the sender offers all that was not answered again, and goes on from the offset that the
receiver then holds. State here lives as long as one stream; what lasts is in the outbox and in the store. Neither class
locks: a caller with a reading and a writing thread holds one lock around every call.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from dataclasses import dataclass
from enum import Enum

from fogline.common.errors import ProtocolError
from fogline.common.wire.transfer import CHUNK_BYTES, MAX_CHUNK_BYTES, Piece, Receiver

DIGEST_BYTES = 32
WINDOW_IMAGES = 32
WINDOW_BYTES = 8 << 20
CORRUPT_TRIES = 3


class Reason(Enum):
    """Why an image was rejected; the numbers are the contract's RejectReason."""

    INVALID = 1
    NO_SPACE = 2
    CORRUPT = 3


@dataclass(frozen=True)
class Offer:
    """An image to send."""

    content_id: bytes
    size: int  # bytes


@dataclass(frozen=True)
class SendOffer:
    """Write an offer."""

    content_id: bytes


@dataclass(frozen=True)
class SendChunk:
    """Write the `length` bytes at `offset` of an image."""

    content_id: bytes
    offset: int
    length: int


@dataclass(frozen=True)
class MarkStored:
    """Take the image out of the outbox: the receiver holds it durably."""

    content_id: bytes
    duplicate: bool


@dataclass(frozen=True)
class Drop:
    """Take the image out of the outbox and report `detail`: the receiver will never take it."""

    content_id: bytes
    detail: str
    reason: Reason = Reason.INVALID


@dataclass(frozen=True)
class RetryLater:
    """Keep the image, back off, and offer it again: the receiver has no room now."""

    content_id: bytes
    detail: str


@dataclass(frozen=True)
class Resend:
    """Nothing to do: the image came damaged and is offered again from its first byte."""

    content_id: bytes
    detail: str


class _Sending:
    def __init__(self, offer: Offer) -> None:
        self.offer = offer
        self.offset: int | None = None  # next byte to write; None: offered, not yet accepted
        self.corrupt = 0


class UploadSender:
    """The edge's end of one stream. Raises ProtocolError for answers that make no sense; the stream is then dropped."""

    def __init__(
        self, *, max_images: int = WINDOW_IMAGES, max_bytes: int = WINDOW_BYTES, chunk_bytes: int = CHUNK_BYTES
    ) -> None:
        self._max_images, self._max_bytes, self._chunk = max_images, max_bytes, chunk_bytes
        self._flying: OrderedDict[bytes, _Sending] = OrderedDict()
        self._bytes = 0
        self._offers: deque[bytes] = deque()
        self._accepted: deque[bytes] = deque()

    @property
    def in_flight(self) -> tuple[bytes, ...]:
        """Content ids that were offered and not finally answered, oldest first: what a new stream must offer again."""
        return tuple(self._flying)

    def room(self, size: int) -> bool:
        """Whether the window takes another image of `size` bytes; an empty window takes any."""
        if not self._flying:
            return True
        return len(self._flying) < self._max_images and self._bytes + size <= self._max_bytes

    def offer(self, offer: Offer) -> None:
        """Put an image into the window; nothing happens when it is there already."""
        if offer.content_id in self._flying:
            return
        self._flying[offer.content_id] = _Sending(offer)
        self._bytes += offer.size
        self._offers.append(offer.content_id)

    def pull(self) -> SendOffer | SendChunk | None:
        """The next message to write. None: nothing until something is offered or answered."""
        if self._offers:  # offers first: their answers travel while chunks do
            return SendOffer(self._offers.popleft())
        while self._accepted:
            content_id = self._accepted[0]
            sending = self._flying.get(content_id)
            if sending is None or sending.offset is None or sending.offset == sending.offer.size:
                self._accepted.popleft()
                continue
            start = sending.offset
            sending.offset = min(sending.offer.size, start + self._chunk)
            return SendChunk(content_id, start, sending.offset - start)
        return None

    def accepted(self, content_id: bytes, offset: int) -> None:
        """The receiver wants the bytes from `offset` on."""
        sending = self._known(content_id, "accepted")
        if sending.offset is not None:
            raise ProtocolError(f"upload: {_short(content_id)} was accepted twice; reconnect")
        if not 0 <= offset <= sending.offer.size:
            raise ProtocolError(
                f"upload: {_short(content_id)} was accepted from byte {offset} of {sending.offer.size}; reconnect"
            )
        sending.offset = offset
        self._accepted.append(content_id)

    def stored(self, content_id: bytes, duplicate: bool) -> MarkStored:
        """The receiver holds the image durably."""
        sending = self._known(content_id, "stored")
        if not duplicate and sending.offset != sending.offer.size:
            raise ProtocolError(
                f"upload: {_short(content_id)} is said to be stored, but only {sending.offset or 0} of "
                f"{sending.offer.size} bytes were sent; reconnect"
            )
        self._remove(content_id)
        return MarkStored(content_id, duplicate)

    def rejected(self, content_id: bytes, reason: Reason, detail: str) -> Drop | RetryLater | Resend:
        """The receiver does not take the image, or not now."""
        sending = self._known(content_id, "rejected")
        if reason is Reason.CORRUPT:
            sending.corrupt += 1
            if sending.corrupt < CORRUPT_TRIES:
                sending.offset = None
                self._offers.append(content_id)
                return Resend(content_id, detail)
            # What we hold is damaged: another try would not end differently.
            detail = f"damaged in {CORRUPT_TRIES} transfers: {detail}"
        self._remove(content_id)
        return RetryLater(content_id, detail) if reason is Reason.NO_SPACE else Drop(content_id, detail, reason)

    def _known(self, content_id: bytes, event: str) -> _Sending:
        sending = self._flying.get(content_id)
        if sending is None or content_id in self._offers:
            raise ProtocolError(f"upload: {_short(content_id)} is {event}, but was not offered; reconnect")
        return sending

    def _remove(self, content_id: bytes) -> None:
        self._bytes -= self._flying.pop(content_id).offer.size


@dataclass(frozen=True)
class Accept:
    """Answer accepted(offset); `restart`: first drop what is held, which is longer than the image."""

    content_id: bytes
    offset: int
    restart: bool
    complete: bool  # nothing is to come: verify at once


@dataclass(frozen=True)
class Append:
    """Write the chunk to the partial image; `last`: then verify, store durably, and report `stored` or `reject`."""

    content_id: bytes
    piece: Piece
    last: bool


@dataclass(frozen=True)
class Reject:
    """Answer rejected."""

    content_id: bytes
    reason: Reason
    detail: str


class UploadReceiver:
    """The fog node's end of one stream. Raises ProtocolError for what breaks the contract; the stream is then aborted.

    After `offer` returned None, look the image up and call one of `duplicate`, `accept` and `reject`, any time later.
    """

    def __init__(
        self,
        *,
        max_image_bytes: int,
        max_chunk_bytes: int = MAX_CHUNK_BYTES,
        max_offers: int = 4 * WINDOW_IMAGES,
    ) -> None:
        self._max_image, self._max_chunk, self._max_offers = max_image_bytes, max_chunk_bytes, max_offers
        self._open: dict[bytes, tuple[int, Receiver | None]] = {}  # size, and the transfer once accepted
        self._rejected: OrderedDict[bytes, None] = OrderedDict()  # their chunks may still be on the way

    @property
    def unfinished(self) -> tuple[bytes, ...]:
        """Content ids that were offered and not answered finally."""
        return tuple(self._open)

    def offer(self, content_id: bytes, size: int) -> Reject | None:
        """The sender offers an image."""
        if len(content_id) != DIGEST_BYTES:
            raise ProtocolError(f"upload: a content id of {len(content_id)} bytes; it is the SHA-256 of the image, 32")
        if content_id in self._open:
            raise ProtocolError(f"upload: {_short(content_id)} was offered twice on one stream")
        if len(self._open) >= self._max_offers:
            raise ProtocolError(f"upload: more than {self._max_offers} images are offered at once; wait for answers")
        if not 1 <= size <= self._max_image:
            detail = f"{size} bytes; this fog node takes images of 1 to {self._max_image}: lower the camera's quality"
            return Reject(content_id, Reason.INVALID, detail)
        self._open[content_id] = (size, None)
        self._rejected.pop(content_id, None)
        return None

    def duplicate(self, content_id: bytes) -> MarkStored:
        """The image is held durably already."""
        self._close(content_id)
        return MarkStored(content_id, duplicate=True)

    def accept(self, content_id: bytes, held: int) -> Accept:
        """The image is wanted; `held` of its first bytes are there already."""
        size, transfer = self._open[content_id]
        if transfer is not None:
            raise ValueError(f"{_short(content_id)} was accepted already")
        restart = held > size
        offset = 0 if restart else held
        receiver = Receiver(size, max_size=self._max_image, offset=offset, max_chunk_bytes=self._max_chunk)
        self._open[content_id] = (size, receiver)
        return Accept(content_id, offset, restart, receiver.complete)

    def chunk(self, content_id: bytes, piece: Piece) -> Append | None:
        """The sender sent a chunk. None: of an image that was rejected meanwhile; forget it."""
        _, receiver = self._open.get(content_id, (0, None))
        if content_id in self._rejected:
            return None
        if receiver is None:
            raise ProtocolError(f"upload: a chunk of {_short(content_id)}, which was not accepted on this stream")
        receiver.accept(piece)
        return Append(content_id, piece, receiver.complete)

    def stored(self, content_id: bytes) -> MarkStored:
        """The whole image was verified and is held durably."""
        _, receiver = self._open[content_id]
        if receiver is None or not receiver.complete:
            raise ValueError(f"{_short(content_id)} is not complete")
        self._close(content_id)
        return MarkStored(content_id, duplicate=False)

    def reject(self, content_id: bytes, reason: Reason, detail: str) -> Reject:
        """The image can't be taken."""
        self._close(content_id)
        self._rejected[content_id] = None
        if len(self._rejected) > self._max_offers:
            self._rejected.popitem(last=False)
        return Reject(content_id, reason, detail)

    def _close(self, content_id: bytes) -> None:
        del self._open[content_id]


def _short(content_id: bytes) -> str:
    return f"image {content_id.hex()[:16]}…"
