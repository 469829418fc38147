"""Blobs in checksummed chunks: cutting, checking, collecting, packing. No I/O.

A chunk is (offset, data, CRC-32 of data). A sender goes through a blob in order; a receiver takes exactly the chunk
that continues what it holds, within the size it was told beforehand, and nothing else.
"""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Hashable, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from fogline.common.errors import ProtocolError

CHUNK_BYTES = 256 * 1024
MAX_CHUNK_BYTES = 1024 * 1024  # the most that a receiver may announce
PACK_BYTES = 256 * 1024
MAX_PACK_CHUNKS = 1024
PACK_OVERHEAD = 64  # bytes, at most, that a small chunk costs in a message besides its data

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Piece:
    """A chunk."""

    offset: int  # bytes
    data: bytes
    crc32: int

    @classmethod
    def of(cls, offset: int, data: bytes) -> Piece:
        """The chunk of `data` at `offset`."""
        return cls(offset, data, zlib.crc32(data))


def cut(blob: bytes | memoryview, offset: int = 0, chunk_bytes: int = CHUNK_BYTES) -> Iterator[Piece]:
    """The chunks of `blob` from `offset` on, each of `chunk_bytes` but the last. Raises ProtocolError past its end."""
    view = memoryview(blob)
    if not 0 <= offset <= len(view):
        raise ProtocolError(f"transfer: asked to go on from byte {offset} of a blob of {len(view)}; start again from 0")
    for start in range(offset, len(view), chunk_bytes):
        yield Piece.of(start, bytes(view[start : start + chunk_bytes]))


class Receiver:
    """Checks the chunks of one blob; the caller puts them where they belong.

    `size` is what the sender announced, `max_size` what we allow, `offset` what we hold already. Raises ProtocolError.
    """

    def __init__(self, size: int, *, max_size: int, offset: int = 0, max_chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        if not 1 <= size <= max_size:
            raise ProtocolError(f"transfer: a blob of {size} bytes was announced; 1 to {max_size} are allowed")
        if not 0 <= offset <= size:
            raise ProtocolError(f"transfer: {offset} bytes are held of a blob of {size}; drop them and start again")
        self.size, self.offset, self._max_chunk = size, offset, max_chunk_bytes

    @property
    def complete(self) -> bool:
        """Whether every byte has come."""
        return self.offset == self.size

    def accept(self, piece: Piece) -> None:
        """Take the next chunk; after an error the transfer is over, and may be resumed from `offset`."""
        length = len(piece.data)
        if not 1 <= length <= self._max_chunk:
            raise ProtocolError(f"transfer: a chunk of {length} bytes; 1 to {self._max_chunk} are allowed")
        if piece.offset != self.offset:
            what = "replayed" if piece.offset < self.offset else "out of order"
            raise ProtocolError(f"transfer: chunk at {piece.offset} is {what}; {self.offset} comes next")
        if length > self.size - self.offset:
            raise ProtocolError(
                f"transfer: chunk at {piece.offset} of {length} bytes runs past the announced {self.size}"
            )
        if zlib.crc32(piece.data) != piece.crc32:
            raise ProtocolError(f"transfer: chunk at {piece.offset} does not match its checksum; resume from there")
        self.offset += length


class Collector(Receiver):
    """A Receiver that collects the blob in memory, allocated once, after the limits were checked."""

    def __init__(self, size: int, *, max_size: int, held: bytes = b"", max_chunk_bytes: int = MAX_CHUNK_BYTES) -> None:
        super().__init__(size, max_size=max_size, offset=len(held), max_chunk_bytes=max_chunk_bytes)
        self._buffer = bytearray(size)
        self._buffer[: len(held)] = held

    def accept(self, piece: Piece) -> None:
        """Take the next chunk."""
        super().accept(piece)
        self._buffer[piece.offset : self.offset] = piece.data

    def finish(self, digest: bytes) -> bytes:
        """The blob, once complete and if its SHA-256 is `digest`; raises ProtocolError."""
        if not self.complete:
            raise ProtocolError(f"transfer: ended at byte {self.offset} of {self.size}; resume from there")
        blob = bytes(self._buffer)
        if hashlib.sha256(blob).digest() != digest:
            raise ProtocolError(f"transfer: the {self.size} bytes are not those of {digest.hex()[:16]}…; start again")
        return blob


@dataclass(frozen=True)
class Blob(Generic[K]):
    """Something to send. `key` names it to the receiver; blobs of different `kind` never share a message."""

    key: K
    kind: Hashable
    data: bytes | memoryview
    offset: int = 0


def pack(
    blobs: Iterable[Blob[K]], limit: int = PACK_BYTES, chunk_bytes: int = CHUNK_BYTES
) -> Iterator[list[tuple[K, Piece]]]:
    """The chunks of many blobs, in order, in messages of `limit` bytes: small blobs share one, large ones take many."""
    message: list[tuple[K, Piece]] = []
    room, kind = limit, None
    for blob in blobs:
        for piece in cut(blob.data, blob.offset, chunk_bytes):
            cost = len(piece.data) + PACK_OVERHEAD
            if message and (cost > room or blob.kind != kind or len(message) == MAX_PACK_CHUNKS):
                yield message
                message, room = [], limit
            message.append((blob.key, piece))
            room, kind = room - cost, blob.kind
    if message:
        yield message
