"""What is on its way from the fog node, as a state machine without I/O: what to ask for, what may come, what is safe.

Records are announced with rising cursors, asked for several at a time within a window, and may be finished in any
order. The cursor that is safe to resume from is below the first record that is not finished.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass

from fogline.common.errors import ProtocolError
from fogline.common.wire.transfer import MAX_CHUNK_BYTES, Piece, Receiver

DIGEST_BYTES = 32
WINDOW_ITEMS = 256
WINDOW_BYTES = 8 << 20
MAX_WAITING = 4096  # announced and not asked for; beyond it the announcements are not read on
MAX_RECORD_BYTES = 16 << 20
MAX_SHARED_BYTES = 64 << 20
MAX_SHARED = 16
MAX_CURSOR = (1 << 63) - 1  # what a database holds


@dataclass(frozen=True)
class Announced:
    """A record that the fog node has published for us."""

    cursor: int
    size: int  # bytes
    digest: bytes  # SHA-256
    shared: tuple[tuple[bytes, int], ...] = ()  # digest and size of each blob that it needs


@dataclass(frozen=True)
class Wanted:
    """A blob to ask for, from an offset on. `cursor` names a record; None: shared state, named by its digest."""

    cursor: int | None
    digest: bytes
    size: int
    offset: int

    @property
    def key(self) -> int | bytes:
        """How the fog node names it."""
        return self.digest if self.cursor is None else self.cursor


class Intake:
    """One subscription. Raises ProtocolError for what the fog node must not send; the connection is then dropped."""

    def __init__(self, cursor: int, *, max_items: int = WINDOW_ITEMS, max_bytes: int = WINDOW_BYTES) -> None:
        self._max_items, self._max_bytes = max_items, max_bytes
        self._last = cursor  # announced
        self._waiting: deque[Announced] = deque()
        self._open: deque[int] = deque()  # announced and not finished, rising; finished ones behind an open one too
        self._finished: set[int] = set()
        self._coming: dict[int | bytes, tuple[Wanted, Receiver]] = {}
        self._coming_bytes = 0

    @property
    def safe_cursor(self) -> int:
        """Everything announced up to here is finished."""
        return self._open[0] - 1 if self._open else self._last

    @property
    def waiting(self) -> int:
        """Records announced and not asked for."""
        return len(self._waiting)

    @property
    def coming(self) -> int:
        """Blobs asked for that have not come whole."""
        return len(self._coming)

    def announce(self, batch: Iterable[Announced], head: int) -> None:
        """The fog node has published records; up to `head`, nothing else concerns us."""
        if head > MAX_CURSOR:
            raise ProtocolError(f"the fog node says that its newest record is {head}; at most {MAX_CURSOR} is allowed")
        for record in batch:
            if record.cursor > MAX_CURSOR:
                raise ProtocolError(f"record {record.cursor} is announced; at most {MAX_CURSOR} is allowed")
            if record.cursor <= self._last:
                raise ProtocolError(f"record {record.cursor} is announced after {self._last}; cursors must rise")
            _check_blob(f"record {record.cursor}", record.digest, record.size, MAX_RECORD_BYTES)
            if len(record.shared) > MAX_SHARED:
                raise ProtocolError(f"record {record.cursor} needs {len(record.shared)} blobs; at most {MAX_SHARED}")
            for digest, size in record.shared:
                _check_blob(f"shared state of record {record.cursor}", digest, size, MAX_SHARED_BYTES)
            self._last = record.cursor
            self._waiting.append(record)
            self._open.append(record.cursor)
        self._last = max(self._last, head)

    def next(self) -> Announced | None:
        """The next record to look at, while the window has room; it is then asked for or finished by the caller."""
        if not self._waiting or len(self._coming) >= self._max_items:
            return None
        if self._coming and self._coming_bytes + self._waiting[0].size > self._max_bytes:
            return None
        return self._waiting.popleft()

    def expects(self, key: int | bytes) -> bool:
        """Whether this blob is on its way already."""
        return key in self._coming

    def ask(self, wanted: Wanted) -> None:
        """The caller asks for a blob."""
        limit = MAX_SHARED_BYTES if wanted.cursor is None else MAX_RECORD_BYTES
        receiver = Receiver(wanted.size, max_size=limit, offset=wanted.offset, max_chunk_bytes=MAX_CHUNK_BYTES)
        self._coming[wanted.key] = (wanted, receiver)
        self._coming_bytes += wanted.size

    def wanted(self, key: int | bytes) -> Wanted:
        """What was asked for under this name."""
        found = self._coming.get(key)
        if found is None:
            name = key.hex()[:16] if isinstance(key, bytes) else key
            raise ProtocolError(f"the fog node sent bytes of {name}, which was not asked for")
        return found[0]

    def chunk(self, key: int | bytes, piece: Piece) -> bool:
        """A piece of a blob that was asked for came; whether it is the last."""
        self.wanted(key)
        _, receiver = self._coming[key]
        receiver.accept(piece)
        return receiver.complete

    def ended(self, key: int | bytes) -> None:
        """A blob came whole, or is not to come."""
        wanted, _ = self._coming.pop(key)
        self._coming_bytes -= wanted.size

    def finish(self, cursor: int) -> int:
        """A record is dealt with: returns the cursor that is safe once this is durable."""
        self._finished.add(cursor)
        while self._open and self._open[0] in self._finished:
            self._finished.remove(self._open.popleft())
        return self.safe_cursor


def _check_blob(name: str, digest: bytes, size: int, limit: int) -> None:
    if len(digest) != DIGEST_BYTES:
        raise ProtocolError(f"{name} has a digest of {len(digest)} bytes, not {DIGEST_BYTES}")
    if not 1 <= size <= limit:
        raise ProtocolError(f"{name} is announced with {size} bytes; 1 to {limit} are allowed")
