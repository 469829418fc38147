"""Taking images in: room that comes back, and peers that never listen."""

from __future__ import annotations

import asyncio
import hashlib
import os
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest
from fog_helpers import Shot, chunk, picture

from fogline.common.boxes import Box
from fogline.common.errors import CapacityError, ProtocolError
from fogline.common.images.forms import Form, Qualities
from fogline.common.images.uplink import encode
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.transfer import Piece
from fogline.fog_node.audience import Audience
from fogline.fog_node.config import Limits
from fogline.fog_node.ingest import PARTIAL_IDLE_S, Claim, Ingest
from fogline.fog_node.store import EncodedRecord, NewImage, QueuedImage, Store
from fogline.fog_node.tenants import Viewer
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

    stream = asyncio.create_task(UploadStream(small.ingest, Audience(), Viewer("a"), write, 1 << 18).serve(offers()))
    for _ in range(10_000):
        await asyncio.sleep(0)
    assert asked == MAX_TASKS + 1
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        task.cancel()
    await asyncio.gather(stream, return_exceptions=True)


def coded(seed: int, form: Form) -> Shot:
    """An image in a form, as an edge makes it."""
    jpeg = picture(seed)
    content_id = hashlib.sha256(jpeg).digest()
    boxes = (Box(10.0, 10.0, 40.0, 30.0, "cat"),)
    data = encode(form, jpeg, content_id, boxes, 80, Qualities())
    return Shot(data, of=content_id, form=form.value)


class Sending:
    """One Upload stream of a device, step by step."""

    def __init__(self, parts: Parts, device: str) -> None:
        self.answers: asyncio.Queue[pb.UploadResponse] = asyncio.Queue()
        self._requests: asyncio.Queue[pb.UploadRequest | None] = asyncio.Queue()
        stream = UploadStream(parts.ingest, Audience(), Viewer(device), self.answers.put, 1 << 18)
        self.task = asyncio.create_task(stream.serve(self._read()))

    async def _read(self) -> AsyncIterator[pb.UploadRequest]:
        while (request := await self._requests.get()) is not None:
            yield request
        raise ConnectionResetError("the device has gone")

    async def ask(self, request: pb.UploadRequest) -> pb.UploadResponse:
        self.say(request)
        return await asyncio.wait_for(self.answers.get(), 20)

    def say(self, request: pb.UploadRequest) -> None:
        self._requests.put_nowait(request)

    async def breaks(self) -> None:
        self._requests.put_nowait(None)
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(self.task, 20)


class Slow(Store):
    """A store whose disk takes its time when an image is added."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, None)
        self.reached, self.go_on = asyncio.Event(), asyncio.Event()
        self.failure: Exception | None = None

    async def add(self, image: NewImage, device: str) -> bool:
        self.reached.set()
        await self.go_on.wait()
        if self.failure is not None:
            raise self.failure
        return await super().add(image, device)


@pytest.fixture
async def slow(tmp_path: Path) -> AsyncIterator[Parts]:
    made = Parts(tmp_path / "unused")
    made.store.close()
    made.store = Slow(tmp_path / "slow")
    made.ingest = Ingest(made.store, Limits(), 80, made.queued.extend)
    await made.store.open()
    yield made
    made.store.close()


@pytest.mark.parametrize("all_held", [False, True])
async def test_a_digest_stays_claimed_until_its_image_is_stored(slow: Parts, all_held: bool) -> None:
    """Also when the stream that brought it has broken: another's failure must not delete what is being stored."""
    store = slow.store
    assert isinstance(store, Slow)
    shot = coded(1, Form.ROI)
    digest = hashlib.sha256(shot.data).digest()
    if all_held:
        store.blobs.put(shot.data)
    a, b = Sending(slow, "a"), Sending(slow, "b")
    accepted = await a.ask(pb.UploadRequest(offer=shot.offer()))
    assert accepted.accepted.offset == (len(shot.data) if all_held else 0)
    if not all_held:
        a.say(chunk(shot, 0, len(shot.data)))
    await asyncio.wait_for(store.reached.wait(), 20)
    await a.breaks()
    thief = Shot(shot.data, of=b"t" * 32, form=Form.ROI.value)
    answer = await b.ask(pb.UploadRequest(offer=thief.offer()))
    assert answer.rejected.reason == pb.REJECT_REASON_NO_SPACE
    store.go_on.set()
    await _until(lambda: bool(slow.queued))
    assert store.blobs.get(digest) == shot.data
    answer = await b.ask(pb.UploadRequest(offer=shot.offer()))
    assert answer.stored.duplicate
    await b.breaks()


async def test_a_stream_that_breaks_leaves_no_claim(slow: Parts) -> None:
    shot = coded(1, Form.ROI)
    a = Sending(slow, "a")
    await a.ask(pb.UploadRequest(offer=shot.offer()))
    a.say(chunk(shot, 0, 100))
    await _until(lambda: slow.store.blobs.partial_offset(hashlib.sha256(shot.data).digest()) == 100)
    await a.breaks()
    other, b = Shot(shot.data, of=b"o" * 32, form=Form.ROI.value), Sending(slow, "b")
    while (answer := await b.ask(pb.UploadRequest(offer=other.offer()))).WhichOneof("message") == "rejected":
        assert answer.rejected.reason == pb.REJECT_REASON_NO_SPACE
    assert answer.accepted.offset == 100
    await b.breaks()


async def test_a_form_that_was_left_without_a_row_goes_with_its_duplicate(slow: Parts) -> None:
    store = slow.store
    assert isinstance(store, Slow)
    shot, jpeg = coded(1, Form.ROI), Shot(picture(1))
    digest = hashlib.sha256(shot.data).digest()
    store.go_on.set()
    store.failure = CapacityError("the disk is full")
    a = Sending(slow, "a")
    await a.ask(pb.UploadRequest(offer=shot.offer()))
    answer = await a.ask(chunk(shot, 0, len(shot.data)))
    assert answer.rejected.reason == pb.REJECT_REASON_NO_SPACE
    assert store.blobs.has(digest)  # so that it need not be sent again
    store.failure = None
    await a.ask(pb.UploadRequest(offer=jpeg.offer()))
    assert not (await a.ask(chunk(jpeg, 0, len(jpeg.data)))).stored.duplicate
    assert (await a.ask(pb.UploadRequest(offer=shot.offer()))).stored.duplicate
    assert not store.blobs.has(digest)
    assert store.blobs.has(jpeg.content_id)
    assert (await a.ask(pb.UploadRequest(offer=jpeg.offer()))).stored.duplicate
    assert store.blobs.has(jpeg.content_id)
    await a.breaks()


async def test_a_record_that_is_about_to_be_published_can_not_be_discarded(small: Parts) -> None:
    data = picture(1)
    wanted = claim(data)
    await begin(small, data, len(data))
    await small.ingest.finish(wanted, "a")
    digest = hashlib.sha256(b"record").digest()
    await asyncio.to_thread(small.store.put, [b"record"])
    await small.store.discard(digest)
    assert small.store.blobs.has(digest)
    await small.store.publish([EncodedRecord(wanted.content_id, digest, 6, ((0, 1, 6),), (), 0.1)])
    await small.store.discard(digest)
    assert small.store.blobs.has(digest)
    other = small.store.blobs.put(b"of nobody")
    await small.store.discard(other)
    assert not small.store.blobs.has(other)


async def test_a_refusal_says_whether_the_form_alone_is_refused(small: Parts) -> None:
    shot = coded(1, Form.ROI)
    lies = [
        (Shot(shot.data, of=b"t" * 32, form=Form.ROI.value), True),  # the record is of another image
        (Shot(b"no record", of=shot.of, form=Form.ROI.value), True),
        (Shot(shot.data, ((400.0, 0.0, 5.0, 5.0, "x"),), of=shot.of, form=Form.ROI.value), False),
        (Shot(shot.data, camera="", of=shot.of, form=Form.ROI.value), False),
        (Shot(b"no JPEG"), False),
    ]
    a = Sending(small, "a")
    for lie, form in lies:
        answer = await a.ask(pb.UploadRequest(offer=lie.offer()))
        if answer.HasField("accepted"):
            answer = await a.ask(chunk(lie, 0, len(lie.data)))
        assert answer.rejected.reason == pb.REJECT_REASON_INVALID
        assert (answer.rejected.HasField("form"), answer.rejected.form) == (True, form)
    await a.breaks()


async def _until(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end
        await asyncio.sleep(0.001)
