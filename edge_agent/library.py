"""The durable library of received records: what the trainer learns from. Survives kill -9; bounded by a quota."""

from __future__ import annotations

import logging
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fogline.common.blobs import BlobStore
from fogline.common.database import Database
from fogline.common.errors import CapacityError
from fogline.common.images.record import ImageRecord

_log = logging.getLogger(__name__)
_VERSION = 1
_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (
  id INTEGER PRIMARY KEY AUTOINCREMENT, content_id BLOB NOT NULL UNIQUE, digest BLOB NOT NULL UNIQUE,
  cursor INTEGER NOT NULL, size INTEGER NOT NULL, camera TEXT NOT NULL, boxes INTEGER NOT NULL,
  received_us INTEGER NOT NULL, capture_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS shared (digest BLOB PRIMARY KEY, size INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS needs (
  content_id BLOB NOT NULL, digest BLOB NOT NULL, PRIMARY KEY (content_id, digest)) WITHOUT ROWID;
CREATE INDEX IF NOT EXISTS needs_by_digest ON needs (digest);
CREATE TABLE IF NOT EXISTS evicted (content_id BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS given_up (cursor INTEGER PRIMARY KEY, reason TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS dealt_with (digest BLOB PRIMARY KEY) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS state (
  one INTEGER PRIMARY KEY CHECK (one = 1), store_id BLOB NOT NULL, cursor INTEGER NOT NULL);
INSERT OR IGNORE INTO state VALUES (1, x'', 0)
"""


@dataclass(frozen=True)
class Entry:
    """One received record, as the library's row says."""

    id: int  # rises with arrival
    content_id: bytes
    digest: bytes  # SHA-256 of the record; names its file
    size: int
    camera: str
    boxes: int
    received_us: int  # fog node's clock
    capture_us: int  # fog node's clock


class Library:
    """Rows, cursor and fog store id in SQLite; records and shared state in a blob store. Thread-safe."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        """Open or create. Raises ConfigError, or FormatError when the files are not a library of this version."""
        self.max_bytes = max_bytes
        self._lock = threading.RLock()
        self._db = Database(root / "library.sqlite", _SCHEMA, _VERSION)
        self.blobs = BlobStore(root / "blobs", None)
        # Partial downloads stay, to be resumed.
        held = self._db.rows("SELECT digest FROM records UNION SELECT digest FROM shared")
        self.blobs.keep({digest for (digest,) in held})
        self.count: int  # records
        self.bytes: int  # of records and shared state
        ((self.count, self.bytes),) = self._db.rows("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM records")
        self.bytes += self._db.rows("SELECT COALESCE(SUM(size), 0) FROM shared")[0][0]

    @property
    def cursor(self) -> int:
        """Everything the fog node published up to here was dealt with durably."""
        value: int = self._db.rows("SELECT cursor FROM state")[0][0]
        return value

    @property
    def store_id(self) -> bytes:
        """The fog store that the cursor belongs to; empty before the first."""
        value: bytes = self._db.rows("SELECT store_id FROM state")[0][0]
        return value

    def attach(self, store_id: bytes) -> int:
        """The cursor to subscribe from. Another store than before voids the old one: it starts at 0 again."""
        if store_id != self.store_id:
            if self.store_id:
                _log.warning("the fog node has a new store; asking for everything again, what is held is not fetched")
            with self._db.transaction() as db:
                db.execute("UPDATE state SET store_id = ?, cursor = 0", (store_id,))
            self.blobs.drop_partials(0.0)  # the new store may encode anew: nobody would ever go on with these
        return self.cursor

    def knows(self, digest: bytes) -> bool:
        """This record need not be fetched: it is held, was evicted or given up, or codes an image that is held."""
        query = "SELECT 1 FROM records WHERE digest = ?1 UNION ALL SELECT 1 FROM dealt_with WHERE digest = ?1 LIMIT 1"
        return bool(self._db.rows(query, digest))

    def has_shared(self, digest: bytes) -> bool:
        """This shared-state blob is held."""
        return bool(self._db.rows("SELECT 1 FROM shared WHERE digest = ?", digest))

    def add(self, record: ImageRecord, digest: bytes, size: int, *, at: int, cursor: int, received_us: int) -> bool:
        """Enter a record whose bytes and shared state are in `blobs`; row and device cursor are one transaction.

        `at` is the record's own cursor, `cursor` the one to resume from. Evicts the oldest to stay in the quota.
        Returns False when the image was known already (the same content id, encoded anew): the cursor moves on,
        nothing is counted twice. Raises CapacityError when the record alone exceeds the quota or the disk is full.
        """
        with self._lock:
            if self._known_content(record.content_id):
                with self._db.transaction() as db:
                    held = db.execute("SELECT 1 FROM records WHERE digest = ?", (digest,)).fetchone()
                    if not held:
                        db.execute("INSERT OR IGNORE INTO dealt_with VALUES (?)", (digest,))
                    _advance(db, cursor)
                if not held:
                    self.blobs.delete(digest)
                return False
            if size > self.max_bytes:
                raise CapacityError(
                    f"a record of {size} bytes exceeds the library's quota of {self.max_bytes}; raise max_bytes"
                )
            row = (
                record.content_id,
                digest,
                at,
                size,
                record.camera,
                len(record.boxes),
                received_us,
                record.capture_time_us,
            )
            with self._db.transaction() as db:
                freed, freed_bytes, freed_count = self._evict(db, size, keep=record.shared)
                db.execute(
                    "INSERT INTO records (content_id, digest, cursor, size, camera, boxes, received_us, capture_us) "
                    "VALUES (?,?,?,?,?,?,?,?)",
                    row,
                )
                db.executemany("INSERT INTO needs VALUES (?, ?)", [(record.content_id, d) for d in set(record.shared)])
                _advance(db, cursor)
            # Files go after their rows: a file without a row is cleared at the next start.
            for gone in freed:
                self.blobs.delete(gone)
            self.count += 1 - freed_count
            self.bytes += size - freed_bytes
            return True

    def add_shared(self, digest: bytes, size: int) -> None:
        """Enter a shared-state blob whose bytes are in `blobs`."""
        with self._lock, self._db.transaction() as db:
            self.bytes += size * db.execute("INSERT OR IGNORE INTO shared VALUES (?, ?)", (digest, size)).rowcount

    def drop_shared(self, digest: bytes) -> None:
        """Forget a shared-state blob unless a record that is held needs it."""
        with self._lock:
            if self._db.rows("SELECT 1 FROM needs WHERE digest = ? LIMIT 1", digest):
                return
            for (size,) in self._db.rows("SELECT size FROM shared WHERE digest = ?", digest):
                with self._db.transaction() as db:
                    db.execute("DELETE FROM shared WHERE digest = ?", (digest,))
                self.bytes -= size
            self.blobs.delete(digest)
            self.blobs.drop_partial(digest)

    def advance(self, cursor: int) -> None:
        """Everything up to here was dealt with (held already, or gone at the fog node)."""
        if cursor > self.cursor:
            with self._db.transaction() as db:
                _advance(db, cursor)

    def give_up(self, digest: bytes, at: int, reason: str, *, cursor: int) -> None:
        """A record that stays corrupt: remembered with its reason, not fetched again."""
        with self._lock, self._db.transaction() as db:
            db.execute("INSERT OR REPLACE INTO given_up VALUES (?, ?)", (at, reason))
            db.execute("INSERT OR IGNORE INTO dealt_with VALUES (?)", (digest,))
            _advance(db, cursor)

    def given_up(self) -> list[tuple[int, str]]:
        """Cursor and reason of every record that was given up."""
        return self._db.rows("SELECT cursor, reason FROM given_up ORDER BY cursor")

    def evicted(self) -> int:
        """How many images were held once and had to make room."""
        count: int = self._db.rows("SELECT COUNT(*) FROM evicted")[0][0]
        return count

    def entries(self, after: int = 0) -> list[Entry]:
        """Records held, oldest first, that arrived after the entry with id `after`."""
        rows = self._db.rows(
            "SELECT id, content_id, digest, size, camera, boxes, received_us, capture_us FROM records "
            "WHERE id > ? ORDER BY id",
            after,
        )
        return [Entry(*row) for row in rows]

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _known_content(self, content_id: bytes) -> bool:
        query = (
            "SELECT 1 FROM records WHERE content_id = ?1 UNION ALL SELECT 1 FROM evicted WHERE content_id = ?1 LIMIT 1"
        )
        return bool(self._db.rows(query, content_id))

    def _evict(self, db: sqlite3.Connection, size: int, keep: Iterable[bytes]) -> tuple[list[bytes], int, int]:
        """Delete the oldest rows until `size` fits; returns the files that can go, their bytes, the records."""
        files: list[bytes] = []
        freed = records = 0
        kept = set(keep)
        while self.bytes - freed + size > self.max_bytes:
            oldest = db.execute("SELECT content_id, digest, size FROM records ORDER BY id LIMIT 1").fetchone()
            if oldest is None:
                break  # only shared state is left; it is needed, so the quota is exceeded by that much
            content_id, digest, record_size = oldest
            db.execute("DELETE FROM records WHERE content_id = ?", (content_id,))
            db.execute("INSERT OR IGNORE INTO evicted VALUES (?)", (content_id,))
            db.execute("INSERT OR IGNORE INTO dealt_with VALUES (?)", (digest,))
            files.append(digest)
            freed += record_size
            records += 1
            needed = [blob for (blob,) in db.execute("SELECT digest FROM needs WHERE content_id = ?", (content_id,))]
            db.execute("DELETE FROM needs WHERE content_id = ?", (content_id,))
            for blob in needed:
                if blob in kept or db.execute("SELECT 1 FROM needs WHERE digest = ?", (blob,)).fetchone():
                    continue
                freed += db.execute("SELECT size FROM shared WHERE digest = ?", (blob,)).fetchone()[0]
                db.execute("DELETE FROM shared WHERE digest = ?", (blob,))
                files.append(blob)
        return files, freed, records


def _advance(db: sqlite3.Connection, cursor: int) -> None:
    db.execute("UPDATE state SET cursor = MAX(cursor, ?)", (cursor,))
