"""Answering Fetch: what the device may see, packed into messages, each blob from an offset."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence

from fogline.common.errors import FormatError, ProtocolError
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen import transfer_pb2
from fogline.common.wire.transfer import Blob, Piece, pack
from fogline.fog_node.store import Store
from fogline.fog_node.tenants import Viewer

log = logging.getLogger(__name__)

MAX_ITEMS = 1024  # of one request

Wants = Callable[[str, frozenset[str]], bool]  # camera, labels
Key = int | bytes  # the cursor of a record, or the digest of shared state
Asked = tuple[Key, bytes, int, int]  # key, digest, size, offset


class Fetch:
    """Reads from the store; keeps nothing."""

    def __init__(self, store: Store) -> None:
        self._store = store

    async def answer(
        self, viewer: Viewer, request: pb.FetchRequest, wants: Wants | None = None
    ) -> AsyncIterator[pb.FetchResponse]:
        """The messages for one request: what is gone, then records, then shared state. Raises ProtocolError.

        What the device may not see is gone for it, as if it had never been: its own images, those of other tenants,
        and what its filter, `wants`, leaves out.
        """
        device = viewer.device
        if len(request.items) > MAX_ITEMS:
            raise ProtocolError(f"{len(request.items)} items in one fetch; ask for at most {MAX_ITEMS}")
        cursors, digests = _sort(request.items)
        seen = await self._store.records(device, cursors, viewer.tenant)
        if wants is not None:
            seen = {cursor: notice for cursor, notice in seen.items() if wants(notice.camera, notice.labels)}
        sizes = await self._store.shared_sizes(device, digests, viewer.tenant, wants)
        missing: list[list[Key]] = [[c for c in cursors if c not in seen], [d for d in digests if d not in sizes]]
        for keys in filter(None, missing):
            yield pb.FetchResponse(chunks=[_gone(key) for key in keys])
        found: list[Asked] = [(c, seen[c].digest, seen[c].size, cursors[c]) for c in cursors if c in seen]
        found += [(d, d, sizes[d], digests[d]) for d in digests if d in sizes]
        for key, _, size, offset in found:
            if offset > size:
                raise ProtocolError(f"fetch of {_name(key)} from byte {offset}: it has {size}; start again from 0")
        lost: list[Key] = []
        messages = pack(self._blobs(found, lost))
        while (message := await asyncio.to_thread(next, messages, None)) is not None:
            yield pb.FetchResponse(chunks=[_chunk(key, piece) for key, piece in message])
            for key, piece in message:
                if isinstance(key, bytes) and piece.offset + len(piece.data) == sizes[key]:
                    await self._store.count_shared_sent(device, key)
        for key in lost:
            yield pb.FetchResponse(chunks=[_gone(key)])

    def _blobs(self, found: Sequence[Asked], lost: list[Key]) -> Iterator[Blob[Key]]:
        """Read each blob only when its turn has come."""
        for key, digest, _, offset in found:
            try:
                data = self._store.blobs.get(digest)
            except (FormatError, OSError) as error:
                log.error("a published blob can't be read: %s", error)
                lost.append(key)
                continue
            yield Blob(key, isinstance(key, bytes), data, offset)


def _sort(items: Iterable[pb.FetchItem]) -> tuple[dict[int, int], dict[bytes, int]]:
    """Offsets by cursor, and by digest of shared state."""
    cursors: dict[int, int] = {}
    digests: dict[bytes, int] = {}
    for item in items:
        kind = item.WhichOneof("what")
        if kind == "cursor":
            cursors[item.cursor] = item.offset
        elif kind == "shared_digest":
            digests[item.shared_digest] = item.offset
        else:
            raise ProtocolError("a fetch item that names neither a record nor shared state; update the older end")
    return cursors, digests


def _chunk(key: Key, piece: Piece) -> pb.FetchedChunk:
    chunk = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
    if isinstance(key, bytes):
        return pb.FetchedChunk(shared_digest=key, chunk=chunk)
    return pb.FetchedChunk(cursor=key, chunk=chunk)


def _gone(key: Key) -> pb.FetchedChunk:
    if isinstance(key, bytes):
        return pb.FetchedChunk(shared_digest=key, gone=True)
    return pb.FetchedChunk(cursor=key, gone=True)


def _name(key: Key) -> str:
    return f"shared state {key.hex()[:16]}…" if isinstance(key, bytes) else f"record {key}"
