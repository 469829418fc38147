"""The store: exactly one row for each image, blobs before rows, room, shared state."""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from fogline.common.boxes import Box
from fogline.common.database import Database
from fogline.common.errors import CapacityError, ConfigError, FormatError, ProtocolError
from fogline.common.images.forms import Form
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.fog_node.fetch import Fetch
from fogline.fog_node.group_commit import GroupCommit
from fogline.fog_node.stats import read_images, read_shared
from fogline.fog_node.store import EncodedRecord, NewImage, Store
from fogline.fog_node.tenants import Viewer

BOXES = (Box(1, 2, 3, 4, "cat"), Box(5, 6, 7, 8, "dog"))

# As the first release wrote it.
SCHEMA_1 = """
CREATE TABLE IF NOT EXISTS meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS images (
  seq INTEGER PRIMARY KEY AUTOINCREMENT,
  content_id BLOB NOT NULL UNIQUE,             -- SHA-256 of the JPEG, which is also its name in the blob store
  camera TEXT NOT NULL,
  capture_us INTEGER NOT NULL,                 -- by this node's clock
  received_us INTEGER NOT NULL,
  width INTEGER NOT NULL,                      -- pixels of the captured frame
  height INTEGER NOT NULL,
  source_bytes INTEGER NOT NULL,
  boxes BLOB NOT NULL,                         -- JSON [[x, y, w, h, label], …] in pixels of the captured frame
  labels BLOB NOT NULL,                        -- JSON, the distinct labels
  state TEXT NOT NULL DEFAULT 'received',      -- received, published or bad
  reason TEXT NOT NULL DEFAULT '',             -- why it is bad
  source_held INTEGER NOT NULL DEFAULT 1       -- the JPEG is still in the blob store
);
CREATE INDEX IF NOT EXISTS images_by_state ON images (state, seq);

CREATE TABLE IF NOT EXISTS sources (
  content_id BLOB NOT NULL REFERENCES images (content_id),
  device TEXT NOT NULL,
  PRIMARY KEY (content_id, device)
) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS published (
  cursor INTEGER PRIMARY KEY AUTOINCREMENT,    -- never reused
  content_id BLOB NOT NULL UNIQUE REFERENCES images (content_id),
  digest BLOB NOT NULL,                        -- of the record, its name in the blob store
  size INTEGER NOT NULL,
  layers BLOB NOT NULL,                        -- JSON [[kind, codec number, payload bytes], …]
  encode_s REAL NOT NULL,                      -- this image's share of its batch
  published_us INTEGER NOT NULL
);

CREATE TABLE IF NOT EXISTS shared (digest BLOB PRIMARY KEY, size INTEGER NOT NULL) WITHOUT ROWID;

CREATE TABLE IF NOT EXISTS record_shared (
  cursor INTEGER NOT NULL REFERENCES published (cursor),
  digest BLOB NOT NULL REFERENCES shared (digest),
  PRIMARY KEY (cursor, digest)
) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS record_shared_by_digest ON record_shared (digest);

CREATE TABLE IF NOT EXISTS shared_sent (
  device TEXT NOT NULL,
  digest BLOB NOT NULL,
  times INTEGER NOT NULL,
  PRIMARY KEY (device, digest)
) WITHOUT ROWID;
"""


@pytest.fixture
async def store(tmp_path: Path) -> AsyncIterator[Store]:
    made = Store(tmp_path, None)
    await made.open()
    yield made
    made.close()


async def add(store: Store, number: int, device: str = "a") -> bytes:
    data = b"source %d" % number
    content_id = store.blobs.put(data)
    assert await store.add(NewImage(content_id, "cam", 5, 640, 480, len(data), BOXES), device)
    return content_id


def record(store: Store, content_id: bytes, *shared: bytes) -> EncodedRecord:
    data = b"record of " + content_id
    states = tuple((store.blobs.put(s), len(s)) for s in shared)
    return EncodedRecord(content_id, store.blobs.put(data), len(data), ((0, 1, 9),), states, 0.5)


async def test_an_image_is_there_once_and_has_all_its_sources(store: Store) -> None:
    content_id = await add(store, 1)
    again = NewImage(content_id, "other", 6, 1, 1, 1, ())
    assert not await store.add(again, "b")
    assert await store.offered(b"x" * 32, "a") is None
    held = await store.offered(content_id, "c")
    assert held is not None
    assert held.state == "received"
    (queued,) = await store.queued()
    assert (queued.content_id, queued.camera, queued.boxes) == (content_id, "cam", BOXES)
    await store.publish([record(store, content_id)])
    for device in ("a", "b", "c"):
        assert [n.own for n in await store.page(device, 0, 10)] == [True]
        assert await store.records(device, [1]) == {}
    (seen,) = await store.page("d", 0, 10)
    assert (seen.cursor, seen.own, seen.camera, seen.labels) == (1, False, "cam", {"cat", "dog"})


async def test_publishing_twice_gives_one_row(store: Store) -> None:
    first, second = await add(store, 1), await add(store, 2)
    await asyncio.gather(*(store.publish([record(store, first), record(store, second)]) for _ in range(5)))
    assert store.head == 2
    assert [n.cursor for n in await store.page("z", 0, 10)] == [1, 2]
    assert await store.queued() == []


async def test_a_new_start_sweeps_orphans_and_gives_the_quarantined_another_chance(tmp_path: Path) -> None:
    store = Store(tmp_path, None)
    await store.open()
    published, bad = await add(store, 1), await add(store, 2)
    encoded = record(store, published)
    await store.publish([encoded])
    await store.set_aside(bad, "it is odd")
    assert await store.queued() == []
    held = await store.offered(bad, "a")
    assert held is not None
    assert (held.state, held.reason) == ("bad", "it is odd")
    orphan = store.blobs.put(b"nobody names me")
    identity = store.store_id
    store.close()
    store = Store(tmp_path, None)
    await store.open()
    assert store.store_id == identity
    assert store.head == 1
    assert [q.content_id for q in await store.queued()] == [bad]
    assert set(store.blobs.digests()) == {published, bad, encoded.digest}
    assert not store.blobs.has(orphan)
    store.close()


async def test_one_node_for_each_folder(tmp_path: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="another fog node"):
        Store(tmp_path, None)


def test_a_folder_that_holds_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "fog.db").write_bytes(b"this is not a database, but it is long enough to be looked at" * 20)
    for _ in range(2):
        with pytest.raises(FormatError, match="damaged"):
            Store(tmp_path, None)
    with pytest.raises(ConfigError, match="data_dir"):
        Store(tmp_path / "fog.db", None)
    with pytest.raises(FormatError, match="data_dir"):
        read_images(tmp_path / "nowhere")


async def test_shared_state_is_for_those_who_may_see_a_record_that_needs_it(store: Store) -> None:
    first, second = await add(store, 1, "a"), await add(store, 2, "b")
    state, other = b"base network", b"other network"
    await store.publish([record(store, first, state), record(store, second, state, other)])
    digest, other_digest = hashlib.sha256(state).digest(), hashlib.sha256(other).digest()
    assert await store.shared_sizes("a", [digest, other_digest]) == {digest: 12, other_digest: 13}
    assert await store.shared_sizes("b", [digest, other_digest, bytes(32)]) == {digest: 12}
    assert (await store.page("c", 0, 9))[1].shared == tuple(sorted([(digest, 12), (other_digest, 13)]))
    request = pb.FetchRequest(
        items=[
            pb.FetchItem(shared_digest=digest),
            pb.FetchItem(cursor=1),
            pb.FetchItem(shared_digest=other_digest),
            pb.FetchItem(shared_digest=b"nonsense"),
        ]
    )
    answers = [answer async for answer in Fetch(store).answer(Viewer("b"), request)]
    kinds = [[(part.WhichOneof("what"), part.gone) for part in answer.chunks] for answer in answers]
    assert kinds == [
        [("shared_digest", True), ("shared_digest", True)],
        [("cursor", False)],
        [("shared_digest", False)],
    ]
    (stats, _) = sorted(read_shared(store.blobs.path(digest).parents[2]), key=lambda s: s.size)
    assert stats.sent == {"b": 1}


async def test_a_damaged_record_is_gone_and_a_wrong_offset_refused(store: Store) -> None:
    content_id = await add(store, 1)
    encoded = record(store, content_id)
    await store.publish([encoded])
    with pytest.raises(ProtocolError, match="start again"):
        await anext_all(store, pb.FetchItem(cursor=1, offset=encoded.size + 1))
    store.blobs.path(encoded.digest).write_bytes(b"rust")
    (answer,) = await anext_all(store, pb.FetchItem(cursor=1))
    assert answer.chunks[0].gone


async def anext_all(store: Store, *items: pb.FetchItem) -> list[pb.FetchResponse]:
    return [answer async for answer in Fetch(store).answer(Viewer("z"), pb.FetchRequest(items=items))]


async def test_room_is_made_of_published_sources_only(tmp_path: Path) -> None:
    store = Store(tmp_path, 10_000)
    await store.open()
    for number in range(4):
        data = bytes([number]) * 2000
        content_id = store.blobs.put(data)
        await store.add(NewImage(content_id, "c", 0, 9, 9, 2000, ()), "a")
    with pytest.raises(CapacityError, match="capacity_bytes"):
        await store.make_room(2000)
    first = (await store.queued())[0]
    await store.publish([record(store, first.content_id)])
    await store.make_room(2000)
    assert not store.blobs.has(first.content_id)
    with pytest.raises(CapacityError):
        await store.make_room(4000)
    assert len(await store.queued()) == 3
    assert len(await store.page("z", 0, 9)) == 1
    store.close()


async def test_the_oldest_records_go_with_all_that_only_they_need(store: Store) -> None:
    ids = [await add(store, number) for number in range(4)]
    encoded = [
        record(store, i, *states) for i, states in zip(ids, ([b"one"], [b"one", b"two"], [b"two"], []), strict=True)
    ]
    await store.publish(encoded[:3])
    one, two = (hashlib.sha256(state).digest() for state in (b"one", b"two"))
    assert await store.expire(0) == 0, "nothing is that old"
    assert await store.expire(2**62, limit=1) == 1
    assert not store.blobs.has(encoded[0].digest)
    assert not store.blobs.has(ids[0])
    assert store.blobs.has(one), "the second needs it"
    assert [n.cursor for n in await store.page("z", 0, 9)] == [2, 3]
    assert await store.expire(2**62) == 2
    assert [store.blobs.has(digest) for digest in (one, two, ids[1], ids[3])] == [False, False, False, True]
    assert [q.content_id for q in await store.queued()] == [ids[3]], "what waits to be encoded stays"
    assert await store.offered(ids[0], "b") is None
    assert store.expired == 3


async def test_cursors_rise_over_deletions_and_restarts(tmp_path: Path) -> None:
    for expected in (1, 2, 3):
        store = Store(tmp_path, None)
        await store.open()
        assert store.head == expected - 1
        content_id = await add(store, 1)
        await store.publish([record(store, content_id)])
        assert store.head == expected
        assert await store.expire(2**62) == 1
        assert store.blobs.total_bytes == 0
        store.close()


async def test_what_is_arriving_or_about_to_be_named_outlives_the_record_that_named_it(store: Store) -> None:
    content_id = await add(store, 1)
    encoded = record(store, content_id, b"state")
    await store.publish([encoded])
    store.put([b"state"])  # of a batch that is about to be published
    assert await store.expire(2**62, keep={content_id}) == 1
    assert store.blobs.has(content_id)
    assert store.blobs.has(hashlib.sha256(b"state").digest())
    assert not store.blobs.has(encoded.digest)


async def test_a_full_store_may_delete_its_oldest_records(tmp_path: Path) -> None:
    store = Store(tmp_path, 10_000, delete_oldest=True)
    await store.open()
    for number in range(4):
        data = bytes([number]) * 2000
        content_id = store.blobs.put(data)
        await store.add(NewImage(content_id, "c", 0, 9, 9, 2000, ()), "a")
    with pytest.raises(CapacityError, match="capacity_bytes"):
        await store.make_room(2000)
    await store.publish([record(store, image.content_id) for image in (await store.queued())[:2]])
    await store.make_room(4000)
    assert len(await store.page("z", 0, 9)) == 2, "sources go first"
    big = store.blobs.put(b"x" * 4800)
    await store.make_room(200)
    assert await store.page("z", 0, 9) == []
    assert len(await store.queued()) == 2
    store.blobs.delete(big)
    store.close()


async def test_one_failing_job_does_not_undo_the_others(tmp_path: Path) -> None:
    database = GroupCommit(Database(tmp_path / "db", "CREATE TABLE t (n INTEGER PRIMARY KEY)", 1))

    def insert(number: int) -> object:
        return database.run(lambda db: db.execute("INSERT INTO t VALUES (?)", (number,)).rowcount)

    results = await asyncio.gather(*(insert(n) for n in (1, 2, 2, 3)), return_exceptions=True)  # type: ignore[call-overload]
    assert [type(r) for r in results] == [int, int, sqlite3.IntegrityError, int]
    assert await database.run(lambda db: db.execute("SELECT n FROM t").fetchall()) == [(1,), (2,), (3,)]
    database.close()
    database.close()


async def test_a_full_database_is_a_lack_of_room(tmp_path: Path) -> None:
    database = GroupCommit(Database(tmp_path / "db", "CREATE TABLE t (b BLOB)", 1))
    await database.run(lambda db: db.execute("PRAGMA max_page_count = 20"))

    def insert(size: int) -> object:
        return database.run(lambda db: db.execute("INSERT INTO t VALUES (zeroblob(?))", (size,)).rowcount)

    with pytest.raises(CapacityError, match="full"):
        await insert(1 << 20)  # type: ignore[misc]
    assert await insert(100) == 1  # type: ignore[misc]
    database.close()


async def test_a_store_of_version_1_is_read_and_upgraded(tmp_path: Path) -> None:
    Database(tmp_path / "fog.db", SCHEMA_1, 1).close()
    content_id = b"c" * 32
    with sqlite3.connect(tmp_path / "fog.db") as db:
        db.execute(
            "INSERT INTO images (content_id, camera, capture_us, received_us, width, height, source_bytes, boxes,"
            " labels, source_held) VALUES (?, 'cam', 1, 2, 640, 480, 9, '[]', '[]', 0)",
            (content_id,),
        )
    db.close()
    (before,) = read_images(tmp_path)  # the report of a node that has not run since
    assert (before.content_id, before.form) == (content_id, Form.ORIGINAL)
    store = Store(tmp_path, None)
    await store.open()
    assert await store.offered(content_id, "a") is not None
    await add(store, 1)
    store.close()
    assert [image.form for image in read_images(tmp_path)] == [Form.ORIGINAL] * 2
    with sqlite3.connect(tmp_path / "fog.db") as db:
        plan = db.execute("EXPLAIN QUERY PLAN SELECT 1 FROM published WHERE digest = ?", (b"x",)).fetchall()
        assert "published_by_digest" in plan[0][3]  # not a scan: every offer asks
    db.close()


async def test_nothing_is_deleted_for_what_never_fits(tmp_path: Path) -> None:
    store = Store(tmp_path, 10_000, delete_oldest=True)
    await store.open()
    await store.publish([record(store, await add(store, number)) for number in range(2)])
    with pytest.raises(CapacityError, match="capacity_bytes"):
        await store.make_room(9_500)
    assert len(await store.page("z", 0, 9)) == 2
    store.close()
