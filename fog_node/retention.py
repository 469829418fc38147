"""Deleting the oldest published records: rows first, then the blobs that nothing names any more."""

from __future__ import annotations

import sqlite3
from dataclasses import dataclass

_LOOK = 4096  # rows


@dataclass(frozen=True)
class Deleted:
    """What `delete_oldest` took out of the tables."""

    records: int
    digests: tuple[bytes, ...]  # blobs that these rows named; others may name them, too


def delete_oldest(db: sqlite3.Connection, before_us: int, limit: int) -> Deleted:
    """Delete up to `limit` records, oldest first, that were published before a time, with all that is known of them.

    An image whose record is gone is unknown: a device that offers it again has it published again. What waits to be
    encoded is never touched.
    """
    # Of the first ones only, so that a look costs little where nothing is old. Not the first alone: a clock that was
    # ahead for a while must not keep for years what came after.
    rows = db.execute(
        "SELECT cursor, content_id, digest FROM (SELECT * FROM published ORDER BY cursor LIMIT ?)"
        " WHERE published_us < ? ORDER BY cursor LIMIT ?",
        (_LOOK, before_us, limit),
    ).fetchall()
    digests: set[bytes] = {digest for _, _, digest in rows}
    for cursor, content_id, _ in rows:
        named = db.execute("SELECT digest FROM record_shared WHERE cursor = ?", (cursor,)).fetchall()
        db.execute("DELETE FROM record_shared WHERE cursor = ?", (cursor,))
        for (digest,) in named:
            if db.execute("SELECT 1 FROM record_shared WHERE digest = ? LIMIT 1", (digest,)).fetchone() is None:
                db.execute("DELETE FROM shared WHERE digest = ?", (digest,))
                db.execute("DELETE FROM shared_sent WHERE digest = ?", (digest,))
                digests.add(digest)
        db.execute("DELETE FROM published WHERE cursor = ?", (cursor,))
        db.execute("DELETE FROM sources WHERE content_id = ?", (content_id,))
        (upload,) = db.execute(
            "SELECT coalesce(upload_digest, content_id) FROM images WHERE content_id = ?", (content_id,)
        ).fetchone()
        digests.add(upload)
        db.execute("DELETE FROM images WHERE content_id = ?", (content_id,))
    return Deleted(len(rows), tuple(digests))
