"""Receiving from a fog node that breaks, restarts, sends damaged, hostile or unasked bytes."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest
from edge_helpers import record, until
from edge_parts import parts
from scripted_fog import CHUNK, Chunks, ScriptedFog, piece, serving

from fogline.common.errors import CapacityError
from fogline.common.images.container import to_bytes
from fogline.common.rpc.gen import images_pb2 as pb
from fogline.edge_agent import receive
from fogline.edge_agent.config import FilterConfig


def test_what_is_published_arrives_once_and_resumes_by_cursor(tmp_path: Path) -> None:
    fog = ScriptedFog()
    for seed in range(150):
        fog.publish(record(seed))
    with serving(fog):
        wanted = FilterConfig(labels=("car",), cameras=("c1", "c2"))
        with parts(tmp_path, fog, run="receive", wanted=wanted) as edge:
            until(lambda: edge.library.count == 150)
            fog.publish(record(150))
            until(lambda: edge.library.count == 151)
            (asked,) = fog.subscriptions
            assert (list(asked.filter.labels), list(asked.filter.cameras)) == (["car"], ["c1", "c2"])
            entries = edge.library.entries()
            assert entries[0].capture_us == record(0).capture_time_us
            assert abs(entries[0].received_us - fog.clock()) < 30_000_000
        fog.fetched.clear()
        fog.publish(record(151))
        with parts(tmp_path, fog, run="receive") as edge:
            until(lambda: edge.library.count == 152)
            assert fog.subscriptions[-1].cursor == 151
            assert [i.cursor for i in fog.fetched] == [152]


def test_a_fog_node_that_restarts_during_download(tmp_path: Path) -> None:
    fog = ScriptedFog()
    for seed in range(40):
        fog.publish(record(seed, payload=3 * CHUNK))
    with serving(fog) as server, parts(tmp_path, fog, run="receive") as edge:
        for _ in range(3):
            have = edge.library.count
            until(lambda have=have: edge.library.count > have or have == 40)
            server.stop()
            server.start()
        until(lambda: edge.library.count == 40)
        until(lambda: edge.library.cursor == 40)


def test_a_partial_download_goes_on_where_it_broke(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.publish(record(1, payload=6 * CHUNK))

    def half(chunks: Chunks) -> Chunks:
        fog.on_fetch = lambda chunks: chunks
        return [*chunks[:3], pb.FetchedChunk(cursor=999)]

    fog.on_fetch = half
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.count == 1)
        assert [item.offset for item in fog.fetched] == [0, 3 * CHUNK]


def test_a_partial_download_goes_on_after_a_restart_of_the_agent(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.publish(record(1, payload=6 * CHUNK))
    digest = fog.log[0].digest
    fog.on_fetch = lambda chunks: chunks[:3]  # and then nothing more
    with serving(fog):
        with parts(tmp_path, fog, run="receive") as edge:
            until(lambda: edge.library.blobs.partial_offset(digest) == 3 * CHUNK)
        fog.on_fetch = lambda chunks: chunks
        with parts(tmp_path, fog, run="receive") as edge:
            until(lambda: edge.library.count == 1)
    assert [item.offset for item in fog.fetched] == [0, 3 * CHUNK]


def change(chunk: pb.FetchedChunk, **fields: object) -> pb.FetchedChunk:
    changed = pb.FetchedChunk()
    changed.CopyFrom(chunk)
    for name, value in fields.items():
        setattr(changed.chunk, name, value)
    return changed


HOSTILE = {
    "reordered": lambda c: c[::-1],
    "replayed": lambda c: [c[0], c[0], *c[1:]],
    "gap": lambda c: [c[0], *c[2:]],
    "past the end": lambda c: [
        *c[:-1],
        pb.FetchedChunk(cursor=c[0].cursor, chunk=piece(c[-1].chunk.offset, c[-1].chunk.data + b"x" * 99)),
    ],
    "empty": lambda c: [pb.FetchedChunk(cursor=c[0].cursor, chunk=piece(0, b"")), *c],
    "oversized": lambda c: [pb.FetchedChunk(cursor=c[0].cursor, chunk=piece(0, bytes(2 << 20)))],
    "wrong checksum": lambda c: [change(c[0], crc32=1), *c[1:]],
    "unasked": lambda c: [pb.FetchedChunk(cursor=77, chunk=piece(0, b"x"))],
    "nameless": lambda c: [pb.FetchedChunk(chunk=piece(0, b"x"))],
    "unasked shared": lambda c: [pb.FetchedChunk(shared_digest=b"d" * 32, chunk=piece(0, b"x"))],
    "larger than a message": lambda c: [pb.FetchedChunk(cursor=c[0].cursor, chunk=piece(0, bytes(5 << 20)))],
}


def test_hostile_chunks_are_refused_and_the_records_still_arrive(tmp_path: Path) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        for number, (attack, hostile) in enumerate(HOSTILE.items(), start=1):
            armed = [hostile]
            fog.on_fetch = lambda chunks, armed=armed: armed.pop()(chunks) if armed else chunks
            connections = len(fog.subscriptions)
            fog.publish(record(number, payload=3 * CHUNK))
            until(lambda number=number: edge.library.count == number, what=attack)
            entry = edge.library.entries()[-1]
            assert edge.library.blobs.get(entry.digest) == fog.blobs[number]
            assert len(fog.subscriptions) > connections or number == 1, f"{attack}: the connection was not dropped"


HOSTILE_ANNOUNCEMENTS = [
    pb.Published(cursor=1, size=1 << 40, digest=b"d" * 32),
    pb.Published(cursor=1, size=0, digest=b"d" * 32),
    pb.Published(cursor=1, size=9, digest=b"short"),
    pb.Published(cursor=1, size=9, digest=b"d" * 32, shared=[pb.SharedState(digest=b"e" * 32, size=1 << 50)]),
    pb.Published(cursor=1, size=9, digest=b"d" * 32, shared=[pb.SharedState(digest=b"e" * 32, size=1)] * 99),
]


def test_hostile_announcements_are_refused(tmp_path: Path) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        for announcement in HOSTILE_ANNOUNCEMENTS:
            connections = len(fog.subscriptions)
            fog.log[:] = [announcement]
            until(lambda connections=connections: len(fog.subscriptions) > connections + 1)
            assert not fog.fetched
        fog.log.clear()
        fog.publish(record(1))
        until(lambda: edge.library.count == 1)


def test_a_record_that_never_matches_its_digest_is_given_up_after_three_tries(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.publish(record(1), digest=b"d" * 32)
    fog.publish(record(2))
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.cursor == 2)
        assert [i.cursor for i in fog.fetched].count(1) == 3
        ((cursor, reason),) = edge.library.given_up()
        assert cursor == 1
        assert "3 transfers" in reason
        assert edge.library.count == 1


def test_a_record_that_always_breaks_the_connection_is_given_up_too(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.publish(record(1, payload=3 * CHUNK))
    fog.publish(record(2))
    fog.on_fetch = lambda chunks: chunks[::-1] if chunks[0].cursor == 1 else chunks
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.cursor == 2)
        assert [cursor for cursor, _ in edge.library.given_up()] == [1]


def test_bytes_that_are_no_record_are_given_up_at_once(tmp_path: Path) -> None:
    fog = ScriptedFog()
    fog.publish(os.urandom(500))
    fog.publish(record(2))
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.cursor == 2)
        assert [cursor for cursor, _ in edge.library.given_up()] == [1]
        assert len(fog.fetched) == 2


def test_records_that_are_gone_are_skipped(tmp_path: Path) -> None:
    fog = ScriptedFog()
    for seed in (1, 2, 3):
        fog.publish(record(seed))
    del fog.blobs[2]
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.cursor == 3)
        assert (edge.library.count, edge.receiver.state.gone) == (2, 1)


def test_shared_state_comes_once_and_before_its_records_count(tmp_path: Path) -> None:
    fog = ScriptedFog()
    shared = os.urandom(3 * CHUNK)
    digest = hashlib.sha256(shared).digest()
    for seed in range(5):
        fog.publish(record(seed, shared=(digest,)), shared=(shared,))
    late: Chunks = []

    def shared_last(chunks: Chunks) -> Chunks:
        if chunks[0].shared_digest:
            late.extend(chunks)
            return []
        return chunks if chunks[0].cursor < 5 else [*chunks, *late]

    fog.on_fetch = shared_last
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.count == 5)
        assert [i for i in fog.fetched if i.shared_digest] == [pb.FetchItem(shared_digest=digest)]
        assert edge.library.has_shared(digest)
        assert edge.library.cursor == 5


def test_shared_state_that_is_gone_or_was_not_announced_gives_its_records_up(tmp_path: Path) -> None:
    fog = ScriptedFog()
    shared = os.urandom(100)
    digest = hashlib.sha256(shared).digest()
    fog.publish(record(1, shared=(digest,)), shared=(shared,))
    del fog.blobs[digest]
    fog.publish(record(2, shared=(b"e" * 32,)))
    fog.publish(record(3))
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.cursor == 3)
        assert [cursor for cursor, _ in edge.library.given_up()] == [1, 2]
        assert edge.library.count == 1


def test_a_new_store_is_read_from_its_start_and_nothing_doubles(tmp_path: Path) -> None:
    fog = ScriptedFog()
    for seed in range(6):
        fog.publish(record(seed))
    with serving(fog) as server, parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.count == 6)
        server.stop()
        fog.store_id, fog.log, fog.blobs = b"t" * 16, [], {}
        fog.fetched.clear()
        fog.publish(record(3))  # same bytes: known by digest
        fog.publish(record(4, payload=222))  # the same image, encoded anew
        fog.publish(record(6))
        server.start()
        until(lambda: edge.library.cursor == 3 and edge.library.count == 7)
        assert fog.subscriptions[-1].cursor == 0
        assert [i.cursor for i in fog.fetched] == [2, 3]


def test_more_known_records_than_are_held_back_do_not_stop_the_news(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(receive, "MAX_WAITING", 4)
    fog = ScriptedFog()
    for seed in range(20):
        fog.publish(record(seed))
    with serving(fog) as server, parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.count == 20)
        server.stop()
        fog.store_id = b"t" * 16
        server.start()
        until(lambda: edge.library.cursor == 20)
        fog.publish(record(20))
        until(lambda: edge.library.count == 21)


def test_shared_state_goes_with_the_last_record_that_wanted_it(tmp_path: Path) -> None:
    fog = ScriptedFog()
    alone, both = os.urandom(2 * CHUNK), os.urandom(100)
    fog.publish(os.urandom(500), shared=(alone, both))
    fog.publish(record(1, shared=(hashlib.sha256(both).digest(),)), shared=(both,))
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:
        until(lambda: edge.library.cursor == 2)
        assert [cursor for cursor, _ in edge.library.given_up()] == [1]
        until(lambda: len(list(edge.library.blobs.digests())) == 2)
        assert edge.library.has_shared(hashlib.sha256(both).digest())
        assert edge.library.bytes == len(fog.blobs[2]) + len(both)
        assert not edge.library.blobs.partial_offset(hashlib.sha256(alone).digest())


def test_a_full_quota_evicts_and_goes_on(tmp_path: Path) -> None:
    fog = ScriptedFog()
    size = len(to_bytes(record(1, payload=9000)))
    with serving(fog), parts(tmp_path, fog, run="receive", max_bytes=10 * size + 100) as edge:
        for seed in range(25):
            fog.publish(record(seed, payload=9000))
        fog.publish(record(99, payload=20 * size))  # larger than the quota
        until(lambda: edge.library.cursor == 26)
        assert (edge.library.count, edge.library.evicted()) == (10, 15)
        assert edge.library.bytes <= 10 * size + 100
        assert [cursor for cursor, _ in edge.library.given_up()] == [26]
    fog.store_id = b"t" * 16
    fog.fetched.clear()
    with serving(fog), parts(tmp_path, fog, run="receive", max_bytes=10 * size + 100) as edge:
        until(lambda: edge.library.cursor == 26)
        assert not fog.fetched, "what was evicted is not fetched again"


def test_a_full_disk_pauses_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fog = ScriptedFog()
    with serving(fog), parts(tmp_path, fog, run="receive") as edge:

        def full(*_: object) -> None:
            raise CapacityError("the disk is full")

        blobs = edge.library.blobs
        with monkeypatch.context() as patch:
            patch.setattr(blobs, "append", full)
            for seed in range(3):
                fog.publish(record(seed))
            until(lambda: edge.receiver.state.full == "the disk is full")
            assert edge.library.cursor == 0
        until(lambda: edge.library.count == 3)
        assert edge.receiver.state.full == ""
