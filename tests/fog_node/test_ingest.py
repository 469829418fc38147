"""Taking images in: room that comes back, and peers that never listen."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
from fog_helpers import Shot, picture

from fogline.common.boxes import Box
from fogline.common.errors import CapacityError, ProtocolError
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.transfer import Piece
from fogline.fog_node.audience import Audience
from fogline.fog_node.config import Limits
from fogline.fog_node.ingest import PARTIAL_IDLE_S, Claim, Ingest
from fogline.fog_node.store import QueuedImage, Store
from fogline.fog_node.upload_stream import MAX_TASKS, UploadStream


class Parts:
    def __init__(self, folder: Path, capacity_bytes: int | None = None) -> None:
        self.store = Store(folder, capacity_bytes)
        self.queued: list[QueuedImage] = []
        self.ingest = Ingest(self.store, Limits(), 320, self.queued.extend)


@pytest.fixture
async def small(tmp_path: Path) -> AsyncIterator[Parts]:
    made = Parts(tmp_path, 1 << 20)
    await made.store.open()
    yield made
    made.store.close()


def claim(data: bytes) -> Claim:
    return Claim(hashlib.sha256(data).digest(), len(data), "cam", 5, (Box(1, 2, 3, 4),))


async def begin(parts: Parts, data: bytes, send: int) -> None:
    wanted = claim(data)
    await parts.ingest.promise(wanted, data)
    try:
        await parts.ingest.append(wanted, Piece.of(0, data[:send]))
    finally:
        parts.ingest.release(data)


async def test_the_room_of_an_abandoned_upload_comes_back(small: Parts) -> None:
    first, second = os.urandom(700_000), os.urandom(700_000)
    await begin(small, first, 1000)
    with pytest.raises(CapacityError):
        await begin(small, second, 1000)
    await small.ingest.sweep()
    with pytest.raises(CapacityError):
        await begin(small, second, 1000)
    (partial,) = (small.store.blobs.path(b"x" * 32).parents[1] / "partial").iterdir()
    long_ago = time.time() - PARTIAL_IDLE_S - 1
    os.utime(partial, (long_ago, long_ago))
    await small.ingest.sweep()
    await begin(small, second, 1000)


async def test_what_the_disk_damaged_before_it_was_looked_at_is_sent_again(small: Parts) -> None:
    data = picture(1)
    wanted = claim(data)
    small.store.blobs.put(data)
    small.store.blobs.path(wanted.content_id).write_bytes(b"rust")
    with pytest.raises(ProtocolError, match="send them again"):
        await small.ingest.finish(wanted, "a")
    await begin(small, data, len(data))
    assert await small.ingest.finish(wanted, "a")
    assert [image.content_id for image in small.queued] == [wanted.content_id]


async def test_a_device_that_never_reads_its_answers_is_not_read_on(small: Parts) -> None:
    asked = 0

    async def offers() -> AsyncIterator[pb.UploadRequest]:
        nonlocal asked
        shot = Shot(picture(1), camera="")
        for asked in range(1, 5000):
            offer = shot.offer()
            offer.content_id = asked.to_bytes(32, "big")
            yield pb.UploadRequest(offer=offer)
            await asyncio.sleep(0)

    async def write(response: pb.UploadResponse) -> None:
        await asyncio.Event().wait()

    stream = asyncio.create_task(UploadStream(small.ingest, Audience(), "a", write, 1 << 18).serve(offers()))
    for _ in range(10_000):
        await asyncio.sleep(0)
    assert asked == MAX_TASKS + 1
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(stream, return_exceptions=True)
