"""Blobs on their way from the fog node onto the disk and into the library."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from fogline.common.errors import FormatError, ProtocolError
from fogline.common.images.container import from_bytes
from fogline.common.images.record import ImageRecord
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.wire.transfer import Piece
from fogline.edge_agent.clock import FogClock
from fogline.edge_agent.intake import Announced, Intake, Wanted
from fogline.edge_agent.library import Library

if TYPE_CHECKING:
    from fogline.edge_agent.receive import ReceiveState

_log = logging.getLogger(__name__)
MAX_TRIES = 3
_REQUEST_ITEMS = 64
OnNew = Callable[[ImageRecord, int, float], object]  # record, its bytes, seconds since its capture


class Arrivals:
    """Carries out what `Intake` decides. Callers hold one lock. Raises CapacityError on a full disk."""

    def __init__(
        self,
        intake: Intake,
        library: Library,
        clock: FogClock,
        state: ReceiveState,
        on_stored: Callable[[], None],
        on_new: OnNew,
    ) -> None:
        self._intake, self._library, self._clock, self._state = intake, library, clock, state
        self._blobs = library.blobs
        self._on_stored, self._on_new = on_stored, on_new
        self._records: dict[int, Announced] = {}  # looked at and not finished
        self._parsed: dict[int, ImageRecord] = {}  # those that wait for shared state only
        self._again: deque[Wanted] = deque()

    def plan(self) -> list[pb.FetchItem]:
        """What to ask for now."""
        items: list[pb.FetchItem] = []
        while len(items) < _REQUEST_ITEMS:
            if self._again:
                items += self._need(self._again.popleft())
                continue
            record = self._intake.next()
            if record is None:
                break
            if self._library.knows(record.digest):
                self._intake.finish(record.cursor)
                continue
            self._records[record.cursor] = record
            if hopeless := self._hopeless(record):
                self._give_up(record, hopeless)
                continue
            for digest, size in record.shared:
                if not self._library.has_shared(digest) and not self._intake.expects(digest):
                    items += self._need(Wanted(None, digest, size, 0))
            items += self._need(Wanted(record.cursor, record.digest, record.size, 0))
        self._library.advance(self._intake.safe_cursor)
        return items

    def take(self, response: pb.FetchResponse) -> None:
        """A message of the fog node. Raises ProtocolError for what was not asked for or breaks the transfer's rules."""
        for fetched in response.chunks:
            key = fetched.cursor if fetched.WhichOneof("what") == "cursor" else fetched.shared_digest
            wanted = self._intake.wanted(key)
            if fetched.gone:
                self._intake.ended(key)
                self._gone(wanted)
                continue
            piece = Piece(fetched.chunk.offset, fetched.chunk.data, fetched.chunk.crc32)
            try:
                last = self._intake.chunk(key, piece)
            except ProtocolError:
                self._state.failures[wanted.digest] += 1
                raise
            self._blobs.append(wanted.digest, piece.offset, piece.data, wanted.size)
            if last:
                self._intake.ended(key)
                self._commit(wanted)

    def _hopeless(self, record: Announced) -> str:
        for digest in (record.digest, *(digest for digest, _ in record.shared)):
            if self._state.failures[digest] >= MAX_TRIES:
                return f"{digest.hex()[:16]}… was damaged in {MAX_TRIES} transfers"
        size = record.size + sum(size for _, size in record.shared)
        if size > self._library.max_bytes:
            return f"{size} bytes exceed the library's quota of {self._library.max_bytes}; raise library.max_bytes"
        return ""

    def _need(self, wanted: Wanted) -> list[pb.FetchItem]:
        """Ask for a blob, or go on with what a broken connection left of it."""
        if self._blobs.has(wanted.digest):
            self._whole(wanted)
            return []
        held = self._blobs.partial_offset(wanted.digest)
        if held > wanted.size:
            self._blobs.drop_partial(wanted.digest)
            held = 0
        if held == wanted.size:
            self._commit(wanted)
            return []
        self._intake.ask(Wanted(wanted.cursor, wanted.digest, wanted.size, held))
        if wanted.cursor is None:
            return [pb.FetchItem(shared_digest=wanted.digest, offset=held)]
        return [pb.FetchItem(cursor=wanted.cursor, offset=held)]

    def _commit(self, wanted: Wanted) -> None:
        try:
            self._blobs.commit(wanted.digest)
        except ProtocolError as error:
            self._state.failures[wanted.digest] += 1
            if self._state.failures[wanted.digest] < MAX_TRIES:
                _log.warning("fetched again: %s", error)
                self._again.append(wanted)
            else:
                self._lost(wanted, f"damaged in {MAX_TRIES} transfers: {error}")
            return
        self._whole(wanted)

    def _whole(self, wanted: Wanted) -> None:
        """A blob is on the disk, verified."""
        if wanted.cursor is None:
            self._library.add_shared(wanted.digest, wanted.size)
            for cursor in list(self._parsed):
                self._enter(cursor)
            self._drop_shared([wanted.digest])
        elif wanted.cursor not in self._records:
            self._blobs.delete(wanted.digest)  # given up meanwhile, for its shared state
        else:
            announced = self._records[wanted.cursor]
            try:
                record = from_bytes(self._blobs.get(wanted.digest))
                if not {digest for digest, _ in announced.shared}.issuperset(record.shared):
                    raise FormatError(f"record {wanted.cursor} needs shared state that was not announced with it")
            except FormatError as error:
                # Its bytes are what the fog node holds: fetching them again would not help.
                self._give_up(announced, str(error))
                return
            self._parsed[wanted.cursor] = record
            self._enter(wanted.cursor)

    def _enter(self, cursor: int) -> None:
        """Put a parsed record into the library, once all its shared state is there."""
        announced, record = self._records[cursor], self._parsed[cursor]
        sizes = dict(announced.shared)
        missing = [digest for digest in record.shared if not self._library.has_shared(digest)]
        for digest in missing:
            if not self._intake.expects(digest) and all(w.digest != digest for w in self._again):
                self._again.append(Wanted(None, digest, sizes[digest], 0))  # evicted since we looked
        if missing:
            return
        del self._parsed[cursor], self._records[cursor]
        safe = self._intake.finish(cursor)
        now = self._clock.fog_us(self._clock.stamp())
        new = self._library.add(record, announced.digest, announced.size, at=cursor, cursor=safe, received_us=now)
        if new:
            self._on_new(record, announced.size, (now - record.capture_time_us) / 1e6)
        else:
            self._drop_shared(digest for digest, _ in announced.shared)
        self._state.failures.pop(announced.digest, None)
        self._on_stored()

    def _gone(self, wanted: Wanted) -> None:
        if wanted.cursor is None:
            self._lost(wanted, "its shared state is gone from the fog node")
        elif self._records.pop(wanted.cursor, None) is not None:
            _log.warning("record %d is gone from the fog node (its retention); skipped", wanted.cursor)
            self._state.gone += 1
            self._library.advance(self._intake.finish(wanted.cursor))
            self._blobs.drop_partial(wanted.digest)

    def _lost(self, wanted: Wanted, reason: str) -> None:
        """A blob is not to be had: every record that needs it is given up."""
        for record in list(self._records.values()):
            if record.cursor == wanted.cursor or wanted.digest in dict(record.shared):
                self._give_up(record, reason)

    def _give_up(self, record: Announced, reason: str) -> None:
        _log.error("record %d of the fog node is given up: %s", record.cursor, reason)
        del self._records[record.cursor]
        self._parsed.pop(record.cursor, None)
        self._library.give_up(record.digest, record.cursor, reason, cursor=self._intake.finish(record.cursor))
        self._blobs.delete(record.digest)
        self._blobs.drop_partial(record.digest)
        self._drop_shared(digest for digest, _ in record.shared)

    def _drop_shared(self, digests: Iterable[bytes]) -> None:
        """What no record needs any more goes, unless it is still coming; then it goes when it is there."""
        needed = {digest for record in self._records.values() for digest, _ in record.shared}
        for digest in digests:
            if digest not in needed and not self._intake.expects(digest):
                self._library.drop_shared(digest)
