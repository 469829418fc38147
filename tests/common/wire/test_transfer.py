"""Chunks: any blob arrives whole; anything else is refused, and what was held stays usable."""

from __future__ import annotations

import hashlib
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.errors import ProtocolError
from fogline.common.wire.transfer import PACK_OVERHEAD, Blob, Collector, Piece, Receiver, cut, pack

BLOBS = st.binary(min_size=1, max_size=2000)


@given(BLOBS, st.integers(1, 300), st.data())
def test_any_blob_arrives_from_any_offset(blob: bytes, chunk: int, data: st.DataObject) -> None:
    offset = data.draw(st.integers(0, len(blob)))
    collector = Collector(len(blob), max_size=2000, held=blob[:offset])
    for piece in cut(blob, offset, chunk):
        assert 1 <= len(piece.data) <= chunk
        collector.accept(piece)
    assert collector.finish(hashlib.sha256(blob).digest()) == blob


@given(BLOBS, st.integers(1, 50), st.data())
def test_a_broken_order_is_refused_and_the_transfer_can_go_on(blob: bytes, chunk: int, data: st.DataObject) -> None:
    pieces = list(cut(blob, 0, chunk))
    order = data.draw(st.lists(st.sampled_from(range(len(pieces))), max_size=2 * len(pieces)))
    collector = Collector(len(blob), max_size=2000)
    for index in order:
        expected = pieces[index].offset == collector.offset
        try:
            collector.accept(pieces[index])
        except ProtocolError:
            assert not expected
        else:
            assert expected
    for piece in cut(blob, collector.offset, chunk):
        collector.accept(piece)
    assert collector.finish(hashlib.sha256(blob).digest()) == blob


@given(BLOBS, st.data())
def test_every_flipped_bit_is_noticed(blob: bytes, data: st.DataObject) -> None:
    piece = next(cut(blob))
    bit = data.draw(st.integers(0, 8 * len(blob) - 1))
    damaged = bytearray(blob)
    damaged[bit // 8] ^= 1 << bit % 8
    receiver = Receiver(len(blob), max_size=2000)
    with pytest.raises(ProtocolError, match="checksum"):
        receiver.accept(replace(piece, data=bytes(damaged)))
    assert receiver.offset == 0


@pytest.mark.parametrize(
    ("piece", "words"),
    [
        (Piece.of(0, b"x" * 65), "allowed"),
        (Piece.of(0, b""), "allowed"),
        (Piece.of(4, b"x"), "replayed"),
        (Piece.of(11, b"x"), "out of order"),
        (Piece.of(10, b"x" * 60), "runs past"),
        (Piece.of(-1, b"x"), "replayed"),
        (Piece(10, b"x", 0), "checksum"),
    ],
)
def test_each_violation_is_named(piece: Piece, words: str) -> None:
    receiver = Receiver(50, max_size=100, offset=10, max_chunk_bytes=64)
    with pytest.raises(ProtocolError, match=words):
        receiver.accept(piece)
    assert receiver.offset == 10


@pytest.mark.parametrize("size", [0, -1, 101, 1 << 62])
def test_a_size_beyond_the_limit_is_refused_before_anything_is_allocated(size: int) -> None:
    with pytest.raises(ProtocolError, match="announced"):
        Collector(size, max_size=100)


def test_resuming_beyond_the_end_is_refused() -> None:
    with pytest.raises(ProtocolError, match="go on from byte 4"):
        list(cut(b"abc", 4))
    with pytest.raises(ProtocolError, match="start again"):
        Receiver(3, max_size=10, offset=4)


def test_a_blob_of_another_digest_or_an_unfinished_one_is_refused() -> None:
    collector = Collector(3, max_size=10)
    with pytest.raises(ProtocolError, match="resume"):
        collector.finish(hashlib.sha256(b"abc").digest())
    collector.accept(Piece.of(0, b"abc"))
    with pytest.raises(ProtocolError, match="not those of"):
        collector.finish(hashlib.sha256(b"abd").digest())


@given(
    st.lists(st.tuples(st.binary(max_size=400), st.sampled_from("rs"), st.integers(0, 400)), max_size=30),
    st.integers(100, 900),
    st.integers(50, 300),
)
def test_packing_keeps_every_byte_in_order_within_the_limit(
    parts: list[tuple[bytes, str, int]], limit: int, chunk: int
) -> None:
    blobs = [Blob(i, kind, data, min(offset, len(data))) for i, (data, kind, offset) in enumerate(parts)]
    got: dict[int, bytes] = {}
    for message in pack(blobs, limit, chunk):
        assert len({blobs[key].kind for key, _ in message}) == 1
        assert len(message) == 1 or sum(len(piece.data) + PACK_OVERHEAD for _, piece in message) <= limit
        for key, piece in message:
            assert piece.offset == blobs[key].offset + len(got.get(key, b""))
            got[key] = got.get(key, b"") + piece.data
    assert got == {blob.key: blob.data[blob.offset :] for blob in blobs if blob.offset < len(blob.data)}
    assert list(got) == sorted(got)


def test_small_blobs_share_messages() -> None:
    blobs = [Blob(i, "record", bytes(2500)) for i in range(500)]
    assert len(list(pack(blobs))) == 5
