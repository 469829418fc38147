"""What the fog node holds durably: images, who sent them, and what was published.

Bytes live in a content-addressed `BlobStore`, everything else in SQLite. A blob is always written before the row
that names it, so a kill between the two leaves an orphan, which the next start sweeps, never a row without bytes.
"""

from __future__ import annotations

import asyncio
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from fogline.common.blobs import BlobStore
from fogline.common.boxes import Box
from fogline.common.clock import now_us
from fogline.common.database import Database
from fogline.common.errors import CapacityError, InputError
from fogline.common.files import DirectoryLock
from fogline.common.images.forms import Form
from fogline.common.images.planning import Choice
from fogline.fog_node.group_commit import GroupCommit
from fogline.fog_node.retention import delete_oldest
from fogline.fog_node.schema import SCHEMA, SCHEMA_VERSION, UPGRADES

# Uploads stop here and leave the rest to the records of what is queued: a full node must still be able to publish.
INGEST_SHARE = 0.9


@dataclass(frozen=True)
class CodedUpload:
    """What a device sent instead of the JPEG."""

    digest: bytes  # SHA-256, its name in the blob store
    form: Form
    width: int  # pixels


@dataclass(frozen=True)
class NewImage:
    """A validated upload whose bytes are in the blob store."""

    content_id: bytes
    camera: str
    capture_time_us: int
    width: int
    height: int
    source_bytes: int  # as uploaded
    boxes: tuple[Box, ...]
    upload: CodedUpload | None = None  # None: the JPEG as captured
    tenant: str = ""


@dataclass(frozen=True)
class QueuedImage:
    """An image that waits to be encoded."""

    content_id: bytes
    camera: str
    capture_time_us: int
    width: int
    height: int
    boxes: tuple[Box, ...]
    trace: str = ""  # of its upload, for the logs; not kept over a restart
    upload: CodedUpload | None = None  # None: the JPEG as captured
    size: int = 0  # bytes of what was uploaded; not kept over a restart
    tenant: str = ""

    @property
    def digest(self) -> bytes:
        """Name of what was uploaded in the blob store."""
        return self.content_id if self.upload is None else self.upload.digest


@dataclass(frozen=True)
class EncodedRecord:
    """A record ready to be published; its bytes and its shared state are in the blob store."""

    content_id: bytes
    digest: bytes
    size: int
    layers: tuple[tuple[int, int, int], ...]  # kind, codec number, payload bytes
    shared: tuple[tuple[bytes, int], ...]  # digest, size
    encode_s: float


@dataclass(frozen=True)
class HeldImage:
    """What became of an image that was offered before."""

    state: str  # received, published or bad
    reason: str


@dataclass(frozen=True)
class Notice:
    """A published record as one device sees it."""

    cursor: int
    digest: bytes
    size: int
    camera: str
    labels: frozenset[str]
    own: bool  # the asking device uploaded this image itself
    shared: tuple[tuple[bytes, int], ...]
    foreign: bool = False  # another tenant's: nothing but the cursor is told


class Store:
    """The fog node's durable state. Methods are safe from any task of one event loop; all may raise CapacityError."""

    def __init__(self, data_dir: Path, capacity_bytes: int | None, *, delete_oldest: bool = False) -> None:
        """`delete_oldest`: uploads that a full store has no room for push out its oldest records."""
        self.capacity_bytes, self._may_delete = capacity_bytes, delete_oldest
        self._lock = DirectoryLock(data_dir, "fog node")
        try:
            self.blobs = BlobStore(data_dir / "blobs", capacity_bytes)
            self._db = GroupCommit(Database(data_dir / "fog.db", SCHEMA, SCHEMA_VERSION, upgrades=UPGRADES))
        except BaseException:
            self._lock.close()
            raise
        self.store_id = b""
        self.head = 0
        self.expired = 0  # records deleted since the start
        self._unnamed: set[bytes] = set()  # blobs that are written and about to be named
        self._deleting = threading.Lock()  # held while `_unnamed` and what it says of the disk may differ

    async def open(self) -> None:
        """Read the identity and the head, give quarantined images another chance, and sweep orphaned blobs."""

        def job(db: sqlite3.Connection) -> tuple[bytes, int, set[bytes]]:
            db.execute("INSERT OR IGNORE INTO meta VALUES ('store_id', randomblob(16))")
            # A new start often brings another encoder or a mended one; what is truly bad is set aside again.
            db.execute("UPDATE images SET state = 'received', reason = '' WHERE state = 'bad'")
            (store_id,) = db.execute("SELECT value FROM meta WHERE key = 'store_id'").fetchone()
            # Of all that ever were: the newest record may have been deleted, and cursors only rise.
            (head,) = db.execute(
                "SELECT coalesce(max(seq), 0) FROM sqlite_sequence WHERE name = 'published'"
            ).fetchone()
            named = {row[0] for row in db.execute(f"SELECT {_UPLOAD} FROM images WHERE source_held")}
            named |= {row[0] for row in db.execute("SELECT digest FROM published UNION SELECT digest FROM shared")}
            return store_id, head, named

        self.store_id, self.head, named = await self._db.run(job)
        await asyncio.to_thread(self.blobs.keep, named)

    def close(self) -> None:
        """Close the database and release the folder. Idempotent."""
        self._db.close()
        self._lock.close()

    # --- ingest

    async def offered(self, content_id: bytes, device: str, tenant: str = "") -> HeldImage | None:
        """What is known of an image; when it is held, `device` is one of its sources from now on.

        Raises InputError when it is held for another tenant.
        """

        def job(db: sqlite3.Connection) -> HeldImage | None:
            row = db.execute("SELECT tenant, state, reason FROM images WHERE content_id = ?", (content_id,)).fetchone()
            if row is None:
                return None
            _check_tenant(content_id, row[0], tenant)
            db.execute("INSERT OR IGNORE INTO sources VALUES (?, ?)", (content_id, device))
            return HeldImage(*row[1:])

        return await self._db.run(job)

    async def add(self, image: NewImage, device: str) -> bool:
        """Make an upload durable; False when the image was there already (the device then is one more source)."""

        def job(db: sqlite3.Connection) -> bool:
            added = db.execute(
                "INSERT OR IGNORE INTO images (content_id, camera, capture_us, received_us, width, height,"
                " source_bytes, boxes, labels, upload_digest, upload_form, upload_width, tenant)"
                " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    image.content_id,
                    image.camera,
                    image.capture_time_us,
                    now_us(),
                    image.width,
                    image.height,
                    image.source_bytes,
                    msgspec.json.encode([(b.x, b.y, b.w, b.h, b.label) for b in image.boxes]),
                    msgspec.json.encode(sorted({b.label for b in image.boxes})),
                    *_upload_row(image.upload),
                    image.tenant,
                ),
            ).rowcount
            (owner,) = db.execute("SELECT tenant FROM images WHERE content_id = ?", (image.content_id,)).fetchone()
            _check_tenant(image.content_id, owner, image.tenant)
            if image.tenant:
                db.execute("DELETE FROM arriving WHERE digest = ?", (_blob_of(image),))
            db.execute("INSERT OR IGNORE INTO sources VALUES (?, ?)", (image.content_id, device))
            return added == 1

        return await self._db.run(job)

    async def arriving(self, digest: bytes, tenant: str) -> bool:
        """Note that a device of this tenant uploads a blob; False where what is held of it came from another tenant."""

        def job(db: sqlite3.Connection) -> bool:
            row = db.execute("SELECT tenant FROM arriving WHERE digest = ?", (digest,)).fetchone()
            before = row[0] if row else ""
            if tenant:
                db.execute("INSERT OR REPLACE INTO arriving VALUES (?, ?, ?)", (digest, tenant, now_us()))
            elif row:
                db.execute("DELETE FROM arriving WHERE digest = ?", (digest,))
            return bool(before == tenant)

        return await self._db.run(job)

    async def forget_arriving(self, idle_s: float) -> None:
        """Forget who began uploads that nobody goes on with."""
        oldest = now_us() - int(idle_s * 1e6)
        await self._db.run(lambda db: db.execute("DELETE FROM arriving WHERE at_us < ?", (oldest,)))

    async def names(self, digest: bytes, content_id: bytes) -> bool:
        """Whether anything that is held or published counts on the blob `digest`, but for the image `content_id`."""
        if digest in self._unnamed:
            return True
        return await self._db.run(lambda db: _names(db, digest, content_id))

    async def discard(self, digest: bytes) -> None:
        """Delete what there is of a blob unless something counts on it; it must not be arriving as an upload."""

        def job(db: sqlite3.Connection) -> None:
            # Here, so that nothing is published between the question and the deletion.
            with self._deleting:
                if digest not in self._unnamed and not _names(db, digest, b""):
                    self.blobs.drop_partial(digest)
                    self.blobs.delete(digest)

        await self._db.run(job)

    async def make_room(self, size: int, keep: Collection[bytes] = ()) -> None:
        """Drop sources of published images, oldest first, until `size` bytes may be uploaded; else CapacityError.

        Records are dropped after them, where the store was told so; else a device that was away finds all of them.
        """
        if self.capacity_bytes is None:
            return
        limit = int(self.capacity_bytes * INGEST_SHARE)
        if size > limit:  # no record is worth deleting for what never fits
            raise CapacityError(
                f"{size} bytes are offered at once, and the store takes uploads up to {limit} of {self.capacity_bytes}"
                " bytes; raise capacity_bytes of the fog node"
            )
        while self.blobs.total_bytes + size > limit:
            if not (await self._drop_sources() or (self._may_delete and await self.expire(_MAX_INTEGER, keep))):
                raise CapacityError(
                    f"the store holds {self.blobs.total_bytes} of {self.capacity_bytes} bytes and {size} more were"
                    f" offered; raise capacity_bytes of the fog node"
                )

    async def _drop_sources(self) -> bool:
        rows = await self._db.run(
            lambda db: db.execute(
                "SELECT content_id FROM images WHERE state = 'published' AND source_held ORDER BY seq LIMIT 64"
            ).fetchall()
        )
        await self.drop_sources([row[0] for row in rows])
        return bool(rows)

    async def drop_sources(self, content_ids: Sequence[bytes]) -> None:
        """Forget what was uploaded of published images."""

        def job(db: sqlite3.Connection) -> list[bytes]:
            found: list[bytes] = []
            for content_id in content_ids:
                row = db.execute(f"SELECT {_UPLOAD} FROM images WHERE content_id = ?", (content_id,)).fetchone()
                found += row or ()
            db.executemany("UPDATE images SET source_held = 0 WHERE content_id = ?", [(c,) for c in content_ids])
            return found

        await asyncio.to_thread(self._delete, await self._db.run(job))

    def may_delete(self, oldest: bool) -> None:
        """Whether uploads that a full store has no room for push out its oldest records, from now on."""
        self._may_delete = oldest

    async def expire(self, before_us: int, keep: Collection[bytes] = (), limit: int = 64) -> int:
        """Delete up to `limit` of the oldest records that were published before a time; how many there were.

        `keep`: blobs that are arriving, and so will be named again.
        """

        def job(db: sqlite3.Connection) -> int:
            deleted = delete_oldest(db, before_us, limit)
            # Here, so that nothing is published between the question and the deletion. Killed in between, a record is
            # without bytes, which its readers are told as they would be told that it is gone.
            with self._deleting:
                for digest in deleted.digests:
                    if digest not in keep and digest not in self._unnamed and not _names(db, digest, b""):
                        self.blobs.delete(digest)
            return deleted.records

        count = await self._db.run(job)
        self.expired += count
        return count

    # --- encoding

    async def queued(self) -> list[QueuedImage]:
        """Every image that waits to be encoded, in the order of arrival."""
        rows = await self._db.run(
            lambda db: db.execute(
                "SELECT content_id, camera, capture_us, width, height, boxes, upload_digest, upload_form, upload_width,"
                " tenant FROM images WHERE state = 'received' ORDER BY seq"
            ).fetchall()
        )
        return [
            QueuedImage(i, c, t, w, h, _boxes(boxes), upload=_coded(d, form, width), tenant=tenant)
            for i, c, t, w, h, boxes, d, form, width, tenant in rows
        ]

    def put(self, blobs: Iterable[bytes]) -> None:
        """Write the blobs that `publish` is going to name. Blocks."""
        for data in blobs:
            with self._deleting:
                self._unnamed.add(hashlib.sha256(data).digest())
                self.blobs.put(data)

    async def publish(self, records: Sequence[EncodedRecord]) -> None:
        """Publish records in order, each exactly once, and move the head."""

        def job(db: sqlite3.Connection) -> int:
            for record in records:
                claimed = db.execute(
                    "UPDATE images SET state = 'published', reason = '' WHERE content_id = ? AND state != 'published'",
                    (record.content_id,),
                ).rowcount
                if not claimed:
                    continue
                cursor = db.execute(
                    "INSERT INTO published (content_id, digest, size, layers, encode_s, published_us)"
                    " VALUES (?, ?, ?, ?, ?, ?)",
                    (
                        record.content_id,
                        record.digest,
                        record.size,
                        msgspec.json.encode(record.layers),
                        record.encode_s,
                        now_us(),
                    ),
                ).lastrowid
                db.executemany("INSERT OR IGNORE INTO shared VALUES (?, ?)", record.shared)
                db.executemany("INSERT INTO record_shared VALUES (?, ?)", [(cursor, d) for d, _ in record.shared])
            (head,) = db.execute("SELECT coalesce(max(cursor), 0) FROM published").fetchone()
            return int(head)

        self.head = max(self.head, await self._db.run(job))
        for record in records:
            self._unnamed -= {record.digest, *(digest for digest, _ in record.shared)}

    async def set_aside(self, content_id: bytes, reason: str) -> None:
        """Quarantine an image that can't be encoded, until the next start."""
        await self._db.run(
            lambda db: db.execute(
                "UPDATE images SET state = 'bad', reason = ? WHERE content_id = ? AND state = 'received'",
                (reason, content_id),
            )
        )

    async def counts(self) -> dict[str, int]:
        """Images by state."""
        return dict(
            await self._db.run(lambda db: db.execute("SELECT state, count(*) FROM images GROUP BY state").fetchall())
        )

    async def sources(self, content_ids: Iterable[bytes]) -> set[str]:
        """The devices that uploaded any of these images."""
        wanted = list(content_ids)

        def job(db: sqlite3.Connection) -> set[str]:
            found = (db.execute("SELECT device FROM sources WHERE content_id = ?", (one,)) for one in wanted)
            return {row[0] for rows in found for row in rows}

        return await self._db.run(job)

    async def choose(self, choices: Sequence[Choice]) -> None:
        """Keep what the encoder chose for cameras, and why."""

        def job(db: sqlite3.Connection) -> None:
            db.executemany(
                "INSERT INTO choices VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET at_us = excluded.at_us,"
                " changes = changes + excluded.changes, choice = excluded.choice",
                [(c.camera, c.width, c.height, now_us(), int(c.changed), msgspec.json.encode(c)) for c in choices],
            )

        await self._db.run(job)

    # --- publication

    async def page(self, device: str, after: int, limit: int, tenant: str = "") -> list[Notice]:
        """Up to `limit` published records with a cursor above `after`, rising, as `device` sees them.

        Those of other tenants are among them as nothing but cursors (`foreign`): the device's cursor moves past them.
        """

        def job(db: sqlite3.Connection) -> list[Notice]:
            rows = db.execute(
                "SELECT cursor, digest, size, camera, labels, EXISTS (SELECT 1 FROM sources s"
                " WHERE s.content_id = p.content_id AND s.device = ?), tenant != ?"
                " FROM published p JOIN images USING (content_id) WHERE cursor > ? ORDER BY cursor LIMIT ?",
                (device, tenant, min(after, _MAX_INTEGER), limit),
            ).fetchall()
            return _notices(db, rows)

        return await self._db.run(job)

    async def records(self, device: str, cursors: Iterable[int], tenant: str = "") -> dict[int, Notice]:
        """The records of these cursors that exist and that `device` may see."""
        wanted = [c for c in cursors if c <= _MAX_INTEGER]

        def job(db: sqlite3.Connection) -> list[Notice]:
            rows = []
            for cursor in wanted:
                rows += db.execute(
                    "SELECT cursor, digest, size, camera, labels, 0, 0 FROM published p JOIN images USING (content_id)"
                    " WHERE cursor = ? AND tenant = ? AND NOT EXISTS (SELECT 1 FROM sources s"
                    " WHERE s.content_id = p.content_id AND s.device = ?)",
                    (cursor, tenant, device),
                ).fetchall()
            return _notices(db, rows)

        return {notice.cursor: notice for notice in await self._db.run(job)}

    async def shared_sizes(
        self,
        device: str,
        digests: Iterable[bytes],
        tenant: str = "",
        wants: Callable[[str, frozenset[str]], bool] | None = None,
    ) -> dict[bytes, int]:
        """Sizes of the shared state that some record needs which `device` may see, and `wants` (camera, labels)."""
        wanted = list(digests)

        def job(db: sqlite3.Connection) -> dict[bytes, int]:
            sizes = {}
            for digest in wanted:
                rows = db.execute(
                    "SELECT DISTINCT shared.size, camera, labels FROM shared JOIN record_shared r USING (digest)"
                    " JOIN published p USING (cursor) JOIN images i USING (content_id)"
                    " WHERE r.digest = ? AND tenant = ? AND NOT EXISTS"
                    " (SELECT 1 FROM sources s WHERE s.content_id = p.content_id AND s.device = ?)",
                    (digest, tenant, device),
                )
                for size, camera, labels in rows:
                    if wants is None or wants(camera, _labels(labels)):
                        sizes[digest] = int(size)
            return sizes

        return await self._db.run(job)

    async def count_shared_sent(self, device: str, digest: bytes) -> None:
        """Book that a device was sent a shared-state blob to its end, for the once-per-device account."""
        await self._db.run(
            lambda db: db.execute(
                "INSERT INTO shared_sent VALUES (?, ?, 1) ON CONFLICT DO UPDATE SET times = times + 1",
                (device, digest),
            )
        )

    # --- inside

    def _delete(self, digests: Iterable[bytes]) -> None:
        for digest in digests:
            self.blobs.delete(digest)


def _names(db: sqlite3.Connection, digest: bytes, content_id: bytes) -> bool:
    query = (
        "SELECT EXISTS (SELECT 1 FROM images WHERE source_held AND content_id = ?1 AND ?1 != ?2"
        " AND upload_digest IS NULL)"
        " OR EXISTS (SELECT 1 FROM images WHERE source_held AND content_id != ?2 AND upload_digest = ?1)"
        " OR EXISTS (SELECT 1 FROM published WHERE digest = ?1)"
        " OR EXISTS (SELECT 1 FROM shared WHERE digest = ?1)"
    )
    return bool(db.execute(query, (digest, content_id)).fetchone()[0])


def _check_tenant(content_id: bytes, owner: str, tenant: str) -> None:
    if owner != tenant:
        raise InputError(
            f"image {content_id.hex()[:16]}… is held for another tenant: the same bytes can't be two tenants' on one"
            " fog node; give each a fog node of its own"
        )


def _blob_of(image: NewImage) -> bytes:
    return image.content_id if image.upload is None else image.upload.digest


def _labels(raw: bytes) -> frozenset[str]:
    return frozenset(msgspec.json.decode(raw, type=list[str]))


_UPLOAD = "coalesce(upload_digest, content_id)"  # the blob of what was uploaded
_MAX_INTEGER = 2**63 - 1  # SQLite's; a cursor from the wire is unsigned


def _upload_row(upload: CodedUpload | None) -> tuple[bytes | None, int, int | None]:
    return (None, Form.ORIGINAL.value, None) if upload is None else (upload.digest, upload.form.value, upload.width)


def _coded(digest: bytes | None, form: int, width: int) -> CodedUpload | None:
    return None if digest is None else CodedUpload(digest, Form(form), width)


def _boxes(raw: bytes) -> tuple[Box, ...]:
    return tuple(Box(*fields) for fields in msgspec.json.decode(raw, type=list[tuple[float, float, float, float, str]]))


def _notices(db: sqlite3.Connection, rows: list[tuple[int, bytes, int, str, bytes, int, int]]) -> list[Notice]:
    notices = []
    for cursor, digest, size, camera, labels, own, foreign in rows:
        if foreign:
            notices.append(Notice(cursor, b"", 0, "", frozenset(), False, (), foreign=True))
            continue
        shared = db.execute(
            "SELECT digest, size FROM record_shared JOIN shared USING (digest) WHERE cursor = ?", (cursor,)
        ).fetchall()
        notices.append(Notice(cursor, digest, size, camera, _labels(labels), bool(own), tuple(shared)))
    return notices
