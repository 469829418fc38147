"""What was captured and is not stored at the fog node yet. Survives kill -9; capped in bytes."""

from __future__ import annotations

import hashlib
import json
import logging
import sqlite3
import threading
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from fogline.common.blobs import BlobStore
from fogline.common.boxes import Box
from fogline.common.database import Database
from fogline.common.errors import CapacityError, FormatError, InputError
from fogline.edge_agent.clock import Stamp

_log = logging.getLogger(__name__)
_VERSION = 1
_BYTES = "_bytes"  # of a total's name: the same total in bytes
_SCHEMA = """
CREATE TABLE IF NOT EXISTS items (
  id INTEGER PRIMARY KEY AUTOINCREMENT, content_id BLOB NOT NULL UNIQUE, size INTEGER NOT NULL, camera TEXT NOT NULL,
  wall_us INTEGER NOT NULL, boot_us INTEGER NOT NULL, boot_id TEXT NOT NULL, boxes TEXT NOT NULL);
CREATE TABLE IF NOT EXISTS captured (source TEXT NOT NULL, key TEXT NOT NULL, PRIMARY KEY (source, key)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS rejected (
  content_id BLOB PRIMARY KEY, camera TEXT NOT NULL, reason TEXT NOT NULL, wall_us INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS totals (name TEXT PRIMARY KEY, value INTEGER NOT NULL)
"""


@dataclass(frozen=True)
class Item:
    """One image that waits for the fog node."""

    content_id: bytes  # SHA-256 of the JPEG
    size: int  # bytes
    camera: str
    captured: Stamp
    boxes: tuple[Box, ...]  # in pixels of the captured frame


class Outbox:
    """Rows in SQLite, bytes in a blob store. Thread-safe; `changed` is notified whenever something moves."""

    def __init__(self, root: Path, max_bytes: int, policy: Literal["block", "drop-oldest"]) -> None:
        """Open or create. Raises ConfigError, or FormatError when the files are not an outbox of this version."""
        self.max_bytes, self.policy = max_bytes, policy
        self.changed = threading.Condition(threading.RLock())
        self._db = Database(root / "outbox.sqlite", _SCHEMA, _VERSION)
        self._blobs = BlobStore(root / "blobs", None)
        self._in_flight: set[bytes] = set()
        self._blobs.keep({content_id for (content_id,) in self._db.rows("SELECT content_id FROM items")})
        count, size = self._db.rows("SELECT COUNT(*), COALESCE(SUM(size), 0) FROM items")[0]
        self.count: int = count
        self.bytes: int = size

    def captured(self, source: str) -> set[str]:
        """Keys of a source's frames that were captured already (or found bad for good)."""
        return {key for (key,) in self._db.rows("SELECT key FROM captured WHERE source = ?", source)}

    def add(
        self, data: bytes, boxes: Iterable[Box], camera: str, captured: Stamp, source: str, key: str | None
    ) -> bool:
        """Take an image and its source's position in one durable step; False when the same bytes wait already.

        `key` names the frame in its source and is remembered; None: of a live camera, which gives no frame twice.
        Raises CapacityError when full under `block` (nothing changed: wait for `changed`, try again) or when the
        disk is full, InputError when the image alone is larger than the outbox.
        """
        content_id = hashlib.sha256(data).digest()
        if len(data) > self.max_bytes:
            name = source if key is None else f"{source}/{key}"
            raise InputError(f"{name}: {len(data)} bytes do not fit an outbox of {self.max_bytes}; raise max_bytes")
        row = (content_id, len(data), camera, captured.wall_us, captured.boot_us, captured.boot_id, _dump(boxes))
        with self.changed:
            if self._db.rows("SELECT 1 FROM items WHERE content_id = ?", content_id):
                if key is not None:
                    self.skip(source, key)
                return False
            self._make_room(len(data))
            self._put(data)
            with self._db.transaction() as db:
                db.execute(
                    "INSERT INTO items (content_id, size, camera, wall_us, boot_us, boot_id, boxes) "
                    "VALUES (?,?,?,?,?,?,?)",
                    row,
                )
                if key is not None:
                    db.execute("INSERT OR IGNORE INTO captured VALUES (?, ?)", (source, key))
                _count(db, "captured", len(data))
            self.count += 1
            self.bytes += len(data)
            self.changed.notify_all()
        return True

    def skip(self, source: str, key: str) -> None:
        """Remember that a frame of a source needs no further look."""
        with self._db.transaction() as db:
            db.execute("INSERT OR IGNORE INTO captured VALUES (?, ?)", (source, key))

    def take(self, limit: int) -> list[Item]:
        """The oldest images that are not in flight, at most `limit`; they are in flight from now on."""
        with self.changed:
            rows = self._db.rows(
                "SELECT content_id, size, camera, wall_us, boot_us, boot_id, boxes FROM items ORDER BY id LIMIT ?",
                limit + len(self._in_flight),
            )
            items = [_item(row) for row in rows if row[0] not in self._in_flight][:limit]
            self._in_flight.update(item.content_id for item in items)
            return items

    def read(self, content_id: bytes) -> bytes:
        """The JPEG. Raises FormatError when the disk has damaged it."""
        return self._blobs.get(content_id)

    def release(self, content_ids: Iterable[bytes] | None = None) -> None:
        """Back from flight without an answer (the connection broke); None: all."""
        with self.changed:
            self._in_flight.difference_update(list(self._in_flight) if content_ids is None else content_ids)
            self.changed.notify_all()

    def stored(self, content_id: bytes, *, duplicate: bool = False) -> None:
        """The fog node holds it durably (`duplicate`: since before): the outbox need not."""
        self._remove(content_id, "duplicate" if duplicate else "stored")

    def reject(self, content_id: bytes, reason: str, wall_us: int) -> None:
        """The fog node will never take it: kept out of the way, with the reason, never sent again."""
        self._remove(content_id, "rejected", reason, wall_us)

    def rejected(self) -> list[tuple[bytes, str]]:
        """Content id and reason of every image that was refused for good."""
        return [(content_id, reason) for content_id, reason in self._db.rows("SELECT content_id, reason FROM rejected")]

    def totals(self) -> dict[str, int]:
        """Images captured, stored, duplicate, rejected and dropped in the life of this outbox, restarts included."""
        return {name: value for name, value in self._totals().items() if not name.endswith(_BYTES)}

    def total_bytes(self) -> dict[str, int]:
        """The bytes of these images, as captured."""
        return {name.removesuffix(_BYTES): value for name, value in self._totals().items() if name.endswith(_BYTES)}

    def close(self) -> None:
        """Close the database."""
        self._db.close()

    def _totals(self) -> dict[str, int]:
        with self.changed:
            return dict(self._db.rows("SELECT name, value FROM totals"))

    def _put(self, data: bytes) -> None:
        while True:
            try:
                self._blobs.put(data)
                return
            except CapacityError:  # the disk is full: our own images are all that we may give up
                if self.policy == "block" or not self._drop_oldest():
                    raise

    def _make_room(self, size: int) -> None:
        while self.bytes + size > self.max_bytes:
            if self.policy == "block" or not self._drop_oldest():
                raise CapacityError(
                    f"the outbox holds {self.bytes} of {self.max_bytes} bytes; it empties as the fog node takes images"
                )

    def _drop_oldest(self) -> bool:
        rows = self._db.rows("SELECT content_id FROM items ORDER BY id LIMIT ?", len(self._in_flight) + 1)
        for (content_id,) in rows:
            if content_id not in self._in_flight:
                self._remove(content_id, "dropped")
                return True
        return False

    def _remove(self, content_id: bytes, total: str, reason: str = "", wall_us: int = 0) -> None:
        with self.changed:
            found = self._db.rows("SELECT size, camera FROM items WHERE content_id = ?", content_id)
            self._in_flight.discard(content_id)
            if not found:
                return
            with self._db.transaction() as db:
                db.execute("DELETE FROM items WHERE content_id = ?", (content_id,))
                if total == "rejected":
                    values = (content_id, found[0][1], reason, wall_us)
                    db.execute("INSERT OR REPLACE INTO rejected VALUES (?, ?, ?, ?)", values)
                _count(db, total, found[0][0])
            # The row goes first: a blob without a row is cleared at the next start, a row without a blob is a loss.
            self._blobs.delete(content_id)
            self.count -= 1
            self.bytes -= found[0][0]
            self.changed.notify_all()


def _count(db: sqlite3.Connection, name: str, size: int) -> None:
    db.executemany(
        "INSERT INTO totals VALUES (?, ?) ON CONFLICT (name) DO UPDATE SET value = value + excluded.value",
        [(name, 1), (name + _BYTES, size)],
    )


def _dump(boxes: Iterable[Box]) -> str:
    return json.dumps([[b.x, b.y, b.w, b.h, b.label] for b in boxes])


def _item(row: tuple[Any, ...]) -> Item:
    content_id, size, camera, wall_us, boot_us, boot_id, boxes = row
    try:
        parsed = tuple(Box(*values) for values in json.loads(boxes))
    except (ValueError, TypeError) as error:
        raise FormatError(f"outbox row of {camera!r}: boxes {boxes[:80]!r} do not parse ({error})") from error
    return Item(content_id, size, camera, Stamp(wall_us, boot_us, boot_id), parsed)
