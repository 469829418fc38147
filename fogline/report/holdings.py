"""What every edge holds in the end, read from its library's files, against what it should hold."""

from __future__ import annotations

import sqlite3
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from fogline.common.blobs import BlobStore
from fogline.common.errors import FormatError
from fogline.common.images.container import from_bytes
from fogline.common.images.record import ImageRecord


@dataclass(frozen=True)
class Held:
    """One record in a library."""

    content_id: bytes
    digest: bytes
    size: int  # bytes of the record
    delay_s: float  # from capture to being in the library, both by the fog node's clock


@dataclass(frozen=True)
class Holdings:
    """An edge's library."""

    edge: str
    blobs: BlobStore
    held: tuple[Held, ...]

    def record(self, digest: bytes) -> ImageRecord:
        """Read a record from disk. Raises FormatError when the disk does not hold what was received."""
        return from_bytes(self.blobs.get(digest))

    def shared(self, digest: bytes) -> bytes:
        """Read a shared-state blob from disk."""
        return self.blobs.get(digest)


@dataclass(frozen=True)
class Completeness:
    """Expected against held, for one edge."""

    edge: str
    expected: int
    held: int
    lost: int  # expected images that are not there, or whose record is unreadable
    duplicated: int  # records beyond the first of an image
    unexpected: int  # images that should not be there, such as its own


def read_holdings(edge: str, root: Path) -> Holdings:
    """Read the library under `root` without changing it."""
    with closing(sqlite3.connect(f"file:{root / 'library.sqlite'}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT content_id, digest, size, received_us, capture_us FROM records").fetchall()
    held = (Held(bytes(c), bytes(d), size, (received - captured) / 1e6) for c, d, size, received, captured in rows)
    return Holdings(edge, BlobStore(root / "blobs"), tuple(held))


def check(holdings: Holdings, expected: frozenset[bytes]) -> Completeness:
    """Count what is lost, doubled and out of place; every record is read and its own content id compared."""
    counts = Counter(held.content_id for held in holdings.held if _is_what_it_says(holdings, held))
    return Completeness(
        edge=holdings.edge,
        expected=len(expected),
        held=len(expected & counts.keys()),
        lost=len(expected - counts.keys()),
        duplicated=sum(count - 1 for count in counts.values()),
        unexpected=len(counts.keys() - expected),
    )


def _is_what_it_says(holdings: Holdings, held: Held) -> bool:
    try:
        return holdings.record(held.digest).content_id == held.content_id
    except (FormatError, OSError):
        return False


def published_twice(content_ids: Sequence[bytes]) -> int:
    """Publications beyond the first of each image, from the fog node's store."""
    return len(content_ids) - len(set(content_ids))
