"""The outbox: capped, durable, each frame once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import sqlite3
import time
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import pytest
from edge_helpers import jpeg, until
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.blobs import BlobStore
from fogline.common.boxes import Box
from fogline.common.errors import CapacityError, FormatError, InputError
from fogline.edge_agent.clock import Stamp
from fogline.edge_agent.outbox import Outbox

BOXES = (Box(1, 2, 3, 4, "cat"), Box(0.5, 0, 10, 10))
STAMP = Stamp(1, 2, "boot")


def add(outbox: Outbox, seed: int, data: bytes | None = None) -> bytes:
    data = jpeg(seed) if data is None else data
    outbox.add(data, BOXES, "cam", STAMP, "sequence:x", str(seed))
    return hashlib.sha256(data).digest()


def test_an_image_stays_until_it_is_stored_also_over_a_restart(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1 << 20, "block")
    first, second = add(outbox, 1), add(outbox, 2)
    (item,) = outbox.take(1)
    assert (item.content_id, item.boxes, item.camera, item.captured) == (first, BOXES, "cam", STAMP)
    outbox.close()

    outbox = Outbox(tmp_path, 1 << 20, "block")
    assert [i.content_id for i in outbox.take(9)] == [first, second], "what was in flight is offered again"
    assert outbox.read(first) == jpeg(1)
    outbox.stored(first)
    assert outbox.count == 1
    assert outbox.bytes == len(jpeg(2))
    outbox.close()
    outbox = Outbox(tmp_path, 1 << 20, "block")
    assert [i.content_id for i in outbox.take(9)] == [second]
    assert outbox.captured("sequence:x") == {"1", "2"}
    assert outbox.totals() == {"captured": 2, "stored": 1}
    with pytest.raises(FormatError):
        outbox.read(first)
    outbox.close()


def test_what_is_in_flight_is_not_taken_twice_until_released(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1 << 20, "block")
    ids = [add(outbox, n) for n in range(5)]
    assert [i.content_id for i in outbox.take(2)] == ids[:2]
    assert [i.content_id for i in outbox.take(2)] == ids[2:4]
    outbox.release([ids[0]])
    assert [i.content_id for i in outbox.take(9)] == [ids[0], ids[4]]
    outbox.release()
    assert len(outbox.take(9)) == 5
    outbox.close()


def test_the_same_bytes_wait_once_but_both_frames_are_done(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1 << 20, "block")
    assert outbox.add(jpeg(1), (), "cam", STAMP, "s", "1")
    assert not outbox.add(jpeg(1), (), "cam", STAMP, "s", "2")
    assert outbox.count == 1
    assert outbox.captured("s") == {"1", "2"}
    outbox.close()


def test_block_refuses_and_leaves_the_position(tmp_path: Path) -> None:
    data = jpeg(1)
    outbox = Outbox(tmp_path, len(data) + 10, "block")
    first = add(outbox, 1, data)
    with pytest.raises(CapacityError):
        add(outbox, 2, data + b"x")
    assert outbox.captured("sequence:x") == {"1"}
    outbox.stored(first)
    add(outbox, 2, data + b"x")
    with pytest.raises(InputError, match="max_bytes"):
        add(outbox, 3, data + bytes(11))
    outbox.close()


def test_drop_oldest_gives_up_the_oldest_that_is_not_in_flight(tmp_path: Path) -> None:
    size = 1000
    outbox = Outbox(tmp_path, 3 * size, "drop-oldest")
    ids = [add(outbox, n, bytes([n]) * size) for n in range(3)]
    outbox.take(1)
    add(outbox, 3, bytes([3]) * size)
    held = [ids[0], ids[2], hashlib.sha256(bytes([3]) * size).digest()]
    outbox.release()
    assert [i.content_id for i in outbox.take(9)] == held
    assert outbox.totals()["dropped"] == 1
    with pytest.raises(CapacityError):  # all are in flight now: nothing may be dropped
        add(outbox, 4, bytes([4]) * size)
    outbox.close()


def test_a_full_disk_blocks_or_drops_as_a_full_outbox_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for policy in ("block", "drop-oldest"):
        outbox = Outbox(tmp_path / policy, 1 << 20, policy)
        ids = [add(outbox, n) for n in range(3)]
        put = BlobStore.put

        def full(blobs: BlobStore, data: bytes, outbox: Outbox = outbox, put: Any = put) -> bytes:
            if outbox.count > 2:
                raise CapacityError("no space left on device")
            return bytes(put(blobs, data))

        with monkeypatch.context() as patch:
            patch.setattr(BlobStore, "put", full)
            if policy == "block":
                with pytest.raises(CapacityError):
                    add(outbox, 3)
                assert outbox.count == 3
            else:
                new = add(outbox, 3)
                assert [i.content_id for i in outbox.take(9)] == [ids[1], ids[2], new]
        outbox.close()


def test_on_a_full_disk_what_is_uploaded_still_leaves(small_disk: Path) -> None:
    outbox = Outbox(small_disk, 1 << 30, "block")
    ids = [add(outbox, seed, random.Random(seed).randbytes(6000)) for seed in range(40)]
    with (small_disk / "ballast").open("wb", buffering=0) as ballast, suppress(OSError):
        while ballast.write(bytes(1024)):
            pass
    with pytest.raises(CapacityError):
        add(outbox, 99)
    left = set(ids)
    for _ in range(3):  # a stream that fails is begun again, and its images are offered again
        for content_id in sorted(left):
            with suppress(CapacityError):
                outbox.stored(content_id)
                left.remove(content_id)
    assert (left, outbox.count) == (set(), 0)
    outbox.close()


def test_a_rejected_image_moves_aside_with_its_reason(tmp_path: Path) -> None:
    outbox = Outbox(tmp_path, 1 << 20, "block")
    bad = add(outbox, 1)
    outbox.reject(bad, "no JPEG", 7)
    assert outbox.rejected() == [(bad, "no JPEG")]
    assert (outbox.count, outbox.bytes) == (0, 0)
    outbox.close()


def test_a_file_that_is_no_outbox_is_a_format_error(tmp_path: Path) -> None:
    (tmp_path / "outbox.sqlite").write_bytes(b"not a database at all, but long enough to be looked at" * 20)
    with pytest.raises(FormatError, match=r"outbox\.sqlite"):
        Outbox(tmp_path, 1 << 20, "block")
    newer = tmp_path / "newer"
    newer.mkdir()
    with sqlite3.connect(newer / "outbox.sqlite") as db:
        db.execute("PRAGMA user_version=99")
    db.close()
    with pytest.raises(FormatError, match="schema 99"):
        Outbox(newer, 1 << 20, "block")


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from(["block", "drop-oldest"]),
    st.lists(
        st.tuples(st.sampled_from(["add", "take", "release", "stored", "reject", "reopen"]), st.integers(0, 7)),
        max_size=25,
    ),
)
def test_books_balance_whatever_happens(
    tmp_path_factory: pytest.TempPathFactory, policy: Literal["block", "drop-oldest"], moves: list[tuple[str, int]]
) -> None:
    root = tmp_path_factory.mktemp("outbox")
    outbox = Outbox(root, 3500, policy)
    flying: list[bytes] = []
    for move, number in moves:
        if move == "add":
            try:
                outbox.add(bytes([number]) * 1000, (), "c", STAMP, "s", str(number))
            except CapacityError:
                assert outbox.bytes + 1000 > 3500
        elif move == "take":
            flying += [i.content_id for i in outbox.take(number)]
        elif move == "release":
            outbox.release()
            flying.clear()
        elif move in ("stored", "reject") and flying:
            content_id = flying.pop(number % len(flying))
            outbox.stored(content_id) if move == "stored" else outbox.reject(content_id, "r", 0)
        elif move == "reopen":
            outbox.close()
            outbox = Outbox(root, 3500, policy)
            flying.clear()
        totals = outbox.totals()
        gone = sum(totals.get(name, 0) for name in ("stored", "rejected", "dropped"))
        assert totals.get("captured", 0) == outbox.count + gone
        assert outbox.bytes == 1000 * outbox.count <= 3500
        assert len(list((root / "blobs").glob("??/*"))) == outbox.count
    outbox.close()


def _fill(root: Path) -> None:
    outbox = Outbox(root, 1 << 30, "block")
    done = outbox.captured("s")
    for number in range(100_000):
        if str(number) not in done:
            outbox.add(b"frame %d" % number + bytes(2000), (), "cam", STAMP, "s", str(number))
            for item in outbox.take(1 if number % 3 == 0 else 0):
                outbox.stored(item.content_id)


def test_kill_at_random_moments_loses_and_repeats_nothing(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    rng = random.Random(5)
    for _ in range(4):
        seen = len(list(tmp_path.glob("blobs/??/*")))
        process = context.Process(target=_fill, args=(tmp_path,))
        process.start()
        until(lambda seen=seen: len(list(tmp_path.glob("blobs/??/*"))) > seen + 5)
        time.sleep(rng.random() * 0.1)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        process.close()
    outbox = Outbox(tmp_path, 1 << 30, "block")
    totals = outbox.totals()
    keys = outbox.captured("s")
    assert keys == {str(n) for n in range(len(keys))}, "frames in order, none skipped"
    assert totals["captured"] == len(keys) == outbox.count + totals["stored"]
    for item in outbox.take(1000):
        assert hashlib.sha256(outbox.read(item.content_id)).digest() == item.content_id
    outbox.close()
