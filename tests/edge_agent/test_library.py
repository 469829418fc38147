"""The library: durable, deduplicated, bounded."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
from edge_helpers import record, until

from fogline.common.errors import CapacityError
from fogline.common.images.record import ImageRecord
from fogline.edge_agent.library import Library

STORE = b"s" * 16


def put(
    library: Library, seed: int, size: int = 1000, *, cursor: int | None = None, shared: tuple[bytes, ...] = ()
) -> bytes:
    data = b"%d" % seed + bytes(size - len(b"%d" % seed))
    digest = library.blobs.put(data)
    at = seed if cursor is None else cursor
    library.add(record(seed, shared=shared), digest, size, at=at, cursor=at, received_us=5)
    return digest


def test_record_cursor_and_store_come_back_after_a_restart(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    assert library.attach(STORE) == 0
    digest = put(library, 3)
    library.close()
    library = Library(tmp_path, 1 << 20)
    assert library.attach(STORE) == 3
    assert library.knows(digest)
    (entry,) = library.entries()
    assert (entry.digest, entry.boxes, entry.received_us, entry.camera) == (digest, 1, 5, "cam")
    assert entry.capture_us == record(3).capture_time_us
    assert library.entries(after=entry.id) == []
    assert (library.count, library.bytes) == (1, 1000)
    library.close()


def test_another_store_voids_the_cursor_and_doubles_nothing(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    library.attach(STORE)
    put(library, 1)
    assert library.attach(b"t" * 16) == 0
    other = library.blobs.put(b"the same image, encoded anew")
    assert not library.add(record(1), other, 28, at=9, cursor=9, received_us=6)
    assert (library.count, library.cursor) == (1, 9)
    assert library.knows(other)
    assert not library.blobs.has(other)
    library.close()


def test_a_full_quota_evicts_the_oldest_and_remembers_them(tmp_path: Path) -> None:
    library = Library(tmp_path, 3500)
    digests = [put(library, n) for n in range(1, 6)]
    assert [e.digest for e in library.entries()] == digests[2:]
    assert (library.count, library.bytes, library.evicted(), library.cursor) == (3, 3000, 2, 5)
    assert all(library.knows(d) for d in digests)
    assert [library.blobs.has(d) for d in digests] == [False, False, True, True, True]
    put(library, 1, cursor=7)  # announced again by a new store: known, not counted anew
    assert (library.count, library.evicted(), library.cursor) == (3, 2, 7)
    with pytest.raises(CapacityError, match="quota"):
        put(library, 9, 4000)
    library.close()


def test_shared_state_goes_with_the_last_record_that_needs_it(tmp_path: Path) -> None:
    library = Library(tmp_path, 3000)
    shared = library.blobs.put(bytes(500))
    library.add_shared(shared, 500)
    library.add_shared(shared, 500)
    assert library.bytes == 500
    put(library, 1, shared=(shared,))
    put(library, 2, shared=(shared,))
    put(library, 3)  # evicts 1
    assert library.has_shared(shared)
    put(library, 4, shared=(shared,))  # evicts 2, which needed it; so does this one
    assert library.has_shared(shared)
    put(library, 5)
    put(library, 6)
    put(library, 7)
    assert not library.has_shared(shared)
    assert not library.blobs.has(shared)
    assert library.bytes == 3000
    library.close()


def test_given_up_and_skipped_records_move_the_cursor(tmp_path: Path) -> None:
    library = Library(tmp_path, 1 << 20)
    library.give_up(b"d" * 32, 4, "corrupt", cursor=4)
    assert library.given_up() == [(4, "corrupt")]
    assert library.knows(b"d" * 32)
    library.advance(6)
    library.advance(5)
    assert library.cursor == 6
    library.close()


def _receive(root: Path) -> None:
    library = Library(root, 1 << 30)
    for seed in range(library.cursor + 1, 100_000):
        put(library, seed)


def test_kill_at_random_moments_keeps_record_and_cursor_together(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    for pause in (0.0, 0.03, 0.07):
        before = len(list(tmp_path.glob("blobs/??/*")))
        process = context.Process(target=_receive, args=(tmp_path,))
        process.start()
        until(lambda before=before: len(list(tmp_path.glob("blobs/??/*"))) > before + 5)
        time.sleep(pause)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
    library = Library(tmp_path, 1 << 30)
    entries = library.entries()
    assert [e.content_id for e in entries] == [content_id(n) for n in range(1, library.cursor + 1)]
    assert all(hashlib.sha256(library.blobs.get(e.digest)).digest() == e.digest for e in entries)
    library.close()


def content_id(seed: int) -> bytes:
    made: ImageRecord = record(seed)
    return made.content_id
