"""Records survive their bytes; bytes that no record writes are refused, and never by anything but FormatError."""

from __future__ import annotations

import math
import struct
import zlib
from contextlib import suppress

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.boxes import Box
from fogline.common.errors import FormatError
from fogline.common.images.container import MAX_RECORD_BYTES, from_bytes, to_bytes
from fogline.common.images.record import ImageRecord, Layer, LayerKind

EXAMPLE = ImageRecord(
    content_id=bytes(range(32)),
    capture_time_us=1_700_000_000_123_456,
    camera="north gate",
    source_size=(1280, 720),
    size=(320, 180),
    boxes=(Box(10.5, 20.25, 30, 40, "boat"), Box(0, 0, 1280, 720, "car"), Box(1, 2, 3, 4, "boat")),
    layers=(
        Layer(LayerKind.BACKGROUND, 3, 1, (0, 0, 320, 180), 1.0, b"background"),
        Layer(LayerKind.OBJECT, 3, 1, (2, 5, 8, 11), 0.25, b"object"),
    ),
    shared=(b"\x01" * 32,),
)


@st.composite
def records(draw: st.DrawFn) -> ImageRecord:
    source = draw(st.tuples(st.integers(1, 5000), st.integers(1, 5000)))
    size = draw(st.tuples(st.integers(1, 500), st.integers(1, 500)))
    labels = st.text(max_size=16)
    fraction = st.floats(0, 0.5, width=32)

    def box() -> Box:
        x, y = draw(fraction) * source[0], draw(fraction) * source[1]
        w, h = draw(st.floats(2**-20, 0.5)) * source[0], draw(st.floats(2**-20, 0.5)) * source[1]
        return Box(*(struct.unpack("<4f", struct.pack("<4f", x, y, w, h))), draw(labels))

    def layer(kind: LayerKind) -> Layer:
        x, y = draw(st.integers(0, size[0] - 1)), draw(st.integers(0, size[1] - 1))
        region = (x, y, draw(st.integers(1, size[0] - x)), draw(st.integers(1, size[1] - y)))
        return Layer(
            kind,
            draw(st.integers(1, 255)),
            draw(st.integers(1, 255)),
            (0, 0, *size) if kind is LayerKind.BACKGROUND else region,
            draw(st.floats(2**-100, 2**100, width=32)),
            draw(st.binary(min_size=1, max_size=300)),
        )

    return ImageRecord(
        content_id=draw(st.binary(min_size=32, max_size=32)),
        capture_time_us=draw(st.integers(0, 2**63 - 1)),
        camera=draw(labels),
        source_size=source,
        size=size,
        boxes=tuple(box() for _ in range(draw(st.integers(0, 4)))),
        layers=(layer(LayerKind.BACKGROUND), *(layer(LayerKind.OBJECT) for _ in range(draw(st.integers(0, 3))))),
        shared=tuple(draw(st.lists(st.binary(min_size=32, max_size=32), max_size=3, unique=True))),
    )


@given(records())
@settings(deadline=None)
def test_round_trip(record: ImageRecord) -> None:
    data = to_bytes(record)
    assert from_bytes(data) == record
    assert to_bytes(from_bytes(data)) == data


def test_boxes_and_scales_become_float32() -> None:
    layers = (EXAMPLE.layers[0], Layer(LayerKind.OBJECT, 3, 1, (0, 0, 1, 1), 0.1, b"o"))
    record = from_bytes(to_bytes(with_(boxes=(Box(0.1, 0.2, 1279.9, 0.3),), layers=layers)))
    assert record.boxes[0].x == struct.unpack("<f", struct.pack("<f", 0.1))[0]
    assert math.isclose(record.layers[1].scale, 0.1, rel_tol=1e-7)


def test_rounding_a_box_at_the_edge_keeps_it_acceptable() -> None:
    box = Box(1000 / 3, 0, 65_535 - 1000 / 3, 1)
    assert from_bytes(to_bytes(with_(source_size=(65_535, 1), boxes=(box,)))).boxes


def test_the_header_is_small() -> None:
    one = with_(camera="", boxes=(Box(1, 2, 3, 4),), shared=())
    payload = sum(len(layer.payload) for layer in one.layers)
    assert len(to_bytes(one)) - payload - len(one.content_id) <= 80


def test_a_label_is_stored_once() -> None:
    boxes = tuple(Box(i, i, 1, 1, "excavator") for i in range(200))
    data = to_bytes(with_(boxes=boxes))
    assert data.count(b"excavator") == 1
    assert from_bytes(data).boxes == boxes


def test_no_boxes_no_objects() -> None:
    record = with_(boxes=(), layers=EXAMPLE.layers[:1], shared=())
    assert from_bytes(to_bytes(record)) == record


def test_every_truncation_is_refused() -> None:
    data = to_bytes(EXAMPLE)
    for end in range(len(data)):
        with pytest.raises(FormatError):
            from_bytes(data[:end])


def test_every_flipped_bit_is_refused() -> None:
    data = to_bytes(EXAMPLE)
    for position in range(len(data)):
        for bit in range(8):
            changed = bytearray(data)
            changed[position] ^= 1 << bit
            with pytest.raises(FormatError):
                from_bytes(bytes(changed))


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_noise_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError):
        from_bytes(data)
    with pytest.raises(FormatError):
        from_bytes(b"FGL\x01" + data)


edits = st.lists(
    st.tuples(st.sampled_from(["set", "insert", "delete"]), st.integers(0, 10_000), st.binary(min_size=1, max_size=6)),
    max_size=4,
)


@given(records(), edits)
@settings(max_examples=200, deadline=None)
def test_a_changed_record_is_refused_or_equal(record: ImageRecord, changes: list[tuple[str, int, bytes]]) -> None:
    changed = edited(to_bytes(record), changes)
    with suppress(FormatError):
        assert from_bytes(changed) == record


@given(records(), edits)
@settings(max_examples=300, deadline=None)
def test_a_forged_record_is_refused_or_the_only_encoding(
    record: ImageRecord, changes: list[tuple[str, int, bytes]]
) -> None:
    """An attacker computes the header's checksum anew."""
    data = to_bytes(record)
    end = len(data) - sum(len(layer.payload) for layer in record.layers) - 4
    head = edited(data[:end], changes)
    forged = head + struct.pack("<I", zlib.crc32(head)) + data[end + 4 :]
    with suppress(FormatError):
        assert to_bytes(from_bytes(forged)) == forged


@pytest.mark.parametrize(
    "fields",
    [
        {"content_id": b"short"},
        {"shared": (b"short",)},
        {"camera": "x" * 65},
        {"camera": "\ud800"},
        {"capture_time_us": -1},
        {"boxes": (Box(0, 0, math.nan, 1),)},
        {"boxes": (Box(0, 0, 1e300, 1),)},
        {"boxes": (Box(0, 0, 1e-300, 1),)},
        {"boxes": (Box(0, 0, 1, 1, "\udfff"),)},
        {"boxes": (Box(0, 0, 1, 1, "x" * 65),)},
        {"boxes": (Box(0, 0, 1, 1),) * 1025},
        {"layers": ()},
        {"layers": EXAMPLE.layers[:1] * 2},
        {"layers": (Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, 320, 90), 1.0, b"half a frame"),)},
        {"layers": (Layer(LayerKind.BACKGROUND, 256, 1, (0, 0, 320, 180), 1.0, b"b"),)},
        {"layers": (Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, 320, 180), 1e-300, b"b"),)},
        {"layers": (Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, 320, 180), 1e300, b"b"),)},
        {"layers": (Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, 320, 180), 1.0, bytes(MAX_RECORD_BYTES)),)},
        {"layers": (EXAMPLE.layers[0], Layer(LayerKind.OBJECT, 1, 1, (-1, 0, 2, 2), 1.0, b"o"))},
        {"layers": (*EXAMPLE.layers[:1], *(Layer(LayerKind.OBJECT, 1, 1, (0, 0, 320, 180), 1.0, b"o"),) * 300)},
        {"size": (16_385, 1)},
        {"source_size": (0, 1)},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_what_can_not_be_read_is_not_written(fields: dict[str, object]) -> None:
    with pytest.raises(FormatError):
        to_bytes(with_(**fields))


def test_too_long_for_a_record() -> None:
    with pytest.raises(FormatError, match="at most"):
        from_bytes(bytes(MAX_RECORD_BYTES + 1))


def with_(**fields: object) -> ImageRecord:
    return ImageRecord(**{**EXAMPLE.__dict__, **fields})  # type: ignore[arg-type]


def edited(data: bytes, changes: list[tuple[str, int, bytes]]) -> bytes:
    out = bytearray(data)
    for kind, position, value in changes:
        at = position % (len(out) + 1)
        if kind == "set":
            out[at : at + len(value)] = value[: len(out) - at]
        elif kind == "insert":
            out[at:at] = value
        else:
            del out[at : at + len(value)]
    return bytes(out)
