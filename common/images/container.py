"""The bytes of one image record (docs/image-format.md). Reading refuses whatever breaks one of its invariants.

Every record has exactly one encoding: `to_bytes(from_bytes(data)) == data` for all data that is accepted.
"""

from __future__ import annotations

import math
import struct
import zlib
from dataclasses import dataclass, replace

from fogline.common.boxes import MAX_BOXES, MAX_LABEL_BYTES, Box
from fogline.common.errors import FormatError
from fogline.common.images.record import ImageRecord, Layer, LayerKind

MAGIC = b"FGL"
VERSION = 1

MAX_RECORD_BYTES = 16 << 20
MAX_SOURCE_SIDE = 65_535
MAX_SOURCE_PIXELS = 1 << 26
MAX_CODED_SIDE = 16_384
MAX_CODED_PIXELS = 1 << 24  # of the background and all object regions together: it bounds what decoding allocates
MAX_COVERAGE = 64  # times that all object regions together may cover the frame: at any size, decoding costs no more
MAX_LAYERS = 1 + MAX_BOXES
MAX_SHARED = 16
MAX_CAMERA_BYTES = 64
MAX_TIME_US = (1 << 63) - 1
BOX_SLACK = 1 / 64  # pixels that rounding to float32 may push a box over the right and bottom edge

_DIGEST = 32
_KIND_BIT, _SCALE_BIT = 1, 2


def to_bytes(record: ImageRecord) -> bytes:
    """Serialise a record; boxes and scales are rounded to float32. Raises FormatError if it breaks an invariant."""
    record = _rounded(record)
    _check(record)
    head = bytearray(MAGIC + bytes([VERSION]) + record.content_id)
    head += struct.pack("<Q", record.capture_time_us)
    head += _text(record.camera, MAX_CAMERA_BYTES)
    for side in (*record.source_size, *record.size, len(record.shared)):
        head += _varint(side)
    head += b"".join(record.shared)
    labels = list(dict.fromkeys(box.label for box in record.boxes))
    head += (
        _varint(len(labels)) + b"".join(_text(label, MAX_LABEL_BYTES) for label in labels) + _varint(len(record.boxes))
    )
    for box in record.boxes:
        head += _varint(labels.index(box.label)) + struct.pack("<4f", box.x, box.y, box.w, box.h)
    head += _varint(len(record.layers))
    for layer in record.layers:
        scaled = layer.scale != 1.0
        head += bytes([layer.kind * _KIND_BIT | scaled * _SCALE_BIT, layer.codec, layer.version])
        if layer.kind is LayerKind.OBJECT:
            head += b"".join(_varint(v) for v in layer.region)
        if scaled:
            head += struct.pack("<f", layer.scale)
        head += _varint(len(layer.payload)) + struct.pack("<I", zlib.crc32(layer.payload))
    head += struct.pack("<I", zlib.crc32(head))
    data = bytes(head) + b"".join(layer.payload for layer in record.layers)
    if len(data) > MAX_RECORD_BYTES:
        raise _bad(f"{len(data)} bytes, at most {MAX_RECORD_BYTES}")
    return data


def from_bytes(data: bytes) -> ImageRecord:
    """Parse a record. Raises FormatError for anything that `to_bytes` would not have written, and nothing else."""
    if len(data) > MAX_RECORD_BYTES:
        raise _bad(f"{len(data)} bytes, at most {MAX_RECORD_BYTES}")
    reader = _Reader(data)
    if reader.take(3) != MAGIC:
        raise _bad(f"it begins with {data[:3]!r}, not {MAGIC!r}")
    if (version := reader.u8()) != VERSION:
        raise FormatError(f"record version {version} is unknown; this build reads {VERSION}; update Fogline")
    content_id = reader.take(_DIGEST)
    time_us = reader.u64()
    camera = reader.text(MAX_CAMERA_BYTES)
    source_size = (reader.varint(), reader.varint())
    size = (reader.varint(), reader.varint())
    shared = tuple(reader.take(_DIGEST) for _ in range(reader.count(MAX_SHARED, "shared blobs")))
    boxes = _read_boxes(reader)
    stubs = [_read_stub(reader, size) for _ in range(reader.count(MAX_LAYERS, "layers"))]
    header = data[: reader.position]
    if reader.u32() != zlib.crc32(header):
        raise _bad("the header's checksum does not match")
    if reader.left != (total := sum(stub.length for stub in stubs)):
        raise _bad(f"layers of {total} bytes are declared, {reader.left} follow the header")
    record = ImageRecord(
        content_id=content_id,
        capture_time_us=time_us,
        camera=camera,
        source_size=source_size,
        size=size,
        boxes=boxes,
        layers=tuple(stub.read(reader) for stub in stubs),
        shared=shared,
    )
    _check(record)
    return record


def coded_pixels(width: int, height: int) -> int:
    """How many pixels the background and all object regions of a coded frame may have together."""
    return min(MAX_CODED_PIXELS, (1 + MAX_COVERAGE) * width * height)


@dataclass(frozen=True)
class _Stub:
    """A layer's line in the header; its payload follows later."""

    layer: Layer
    length: int
    crc: int

    def read(self, reader: _Reader) -> Layer:
        payload = reader.take(self.length)
        if zlib.crc32(payload) != self.crc:
            raise _bad(f"the checksum of {_name(self.layer)} does not match")
        return replace(self.layer, payload=payload)


def _read_boxes(reader: _Reader) -> tuple[Box, ...]:
    labels = [reader.text(MAX_LABEL_BYTES) for _ in range(reader.count(MAX_BOXES, "labels"))]
    seen = 0
    boxes = []
    for _ in range(reader.count(MAX_BOXES, "boxes")):
        index = reader.varint()
        if index >= len(labels) or index > seen:
            raise _bad(f"label {index} is unknown or out of order")
        seen = max(seen, index + 1)
        x, y, w, h = struct.unpack("<4f", reader.take(16))
        boxes.append(Box(x, y, w, h, labels[index]))
    if seen != len(labels) or len(set(labels)) != seen:
        raise _bad("a label is unused or repeated")
    return tuple(boxes)


def _read_stub(reader: _Reader, size: tuple[int, int]) -> _Stub:
    flags, codec, version = reader.take(3)
    if flags > _KIND_BIT | _SCALE_BIT:
        raise _bad(f"layer flags {flags:#x} are unknown")
    kind = LayerKind.OBJECT if flags & _KIND_BIT else LayerKind.BACKGROUND
    region = (0, 0, *size)
    if kind is LayerKind.OBJECT:
        region = (reader.varint(), reader.varint(), reader.varint(), reader.varint())
    scale = 1.0
    if flags & _SCALE_BIT:
        (scale,) = struct.unpack("<f", reader.take(4))
        if scale == 1.0:
            raise _bad("a scale of 1 is written out")
    return _Stub(Layer(kind, codec, version, region, scale, b""), reader.varint(), reader.u32())


class _Reader:
    """Reads fields off the front of `data`; never past its end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self.position = 0

    @property
    def left(self) -> int:
        return len(self._data) - self.position

    def take(self, n: int) -> bytes:
        if n > self.left:
            raise _bad(f"it ends at byte {len(self._data)}, {n} bytes are due at {self.position}")
        self.position += n
        return self._data[self.position - n : self.position]

    def u8(self) -> int:
        return self.take(1)[0]

    def u32(self) -> int:
        return int.from_bytes(self.take(4), "little")

    def u64(self) -> int:
        return int.from_bytes(self.take(8), "little")

    def varint(self) -> int:
        """LEB128 of at most 28 bits, in its shortest form."""
        value = 0
        for shift in (0, 7, 14, 21):
            byte = self.u8()
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                if shift and not byte:
                    raise _bad(f"the integer that ends at byte {self.position} is not in its shortest form")
                return value
        raise _bad(f"the integer that ends at byte {self.position} has more than 28 bits")

    def count(self, limit: int, what: str) -> int:
        if (value := self.varint()) > limit:
            raise _bad(f"{value} {what}, at most {limit}")
        return value

    def text(self, limit: int) -> str:
        if (n := self.u8()) > limit:
            raise _bad(f"a text of {n} bytes, at most {limit}")
        try:
            return self.take(n).decode()
        except UnicodeDecodeError:
            raise _bad(f"the text that ends at byte {self.position} is not UTF-8") from None


def _check(record: ImageRecord) -> None:
    """The invariants of values; the reader has those of the bytes."""
    if len(record.content_id) != _DIGEST or any(len(digest) != _DIGEST for digest in record.shared):
        raise _bad(f"a digest is not of {_DIGEST} bytes")
    if not 0 <= record.capture_time_us <= MAX_TIME_US:
        raise _bad(f"capture time {record.capture_time_us} is not in 0..2^63-1")
    if len(record.shared) > MAX_SHARED or len(set(record.shared)) != len(record.shared):
        raise _bad(f"{len(record.shared)} shared blobs: at most {MAX_SHARED}, each once")
    width, height = record.source_size
    if not (0 < width <= MAX_SOURCE_SIDE and 0 < height <= MAX_SOURCE_SIDE and width * height <= MAX_SOURCE_PIXELS):
        raise _bad(f"source size {width}x{height}: at most {MAX_SOURCE_SIDE} a side and {MAX_SOURCE_PIXELS} pixels")
    _check_boxes(record)
    _check_layers(record)


def _check_boxes(record: ImageRecord) -> None:
    if len(record.boxes) > MAX_BOXES:
        raise _bad(f"{len(record.boxes)} boxes, at most {MAX_BOXES}")
    width, height = (side + BOX_SLACK for side in record.source_size)
    for index, box in enumerate(record.boxes):
        # Written so that NaN fails every comparison.
        if not (box.x >= 0 and box.y >= 0 and box.w > 0 and box.h > 0):
            raise _bad(f"box {index} {box} is empty, negative or not a number")
        if not (box.x + box.w <= width and box.y + box.h <= height):
            raise _bad(f"box {index} {box} leaves the {record.source_size} frame")


def _check_layers(record: ImageRecord) -> None:
    width, height = record.size
    if not (0 < width <= MAX_CODED_SIDE and 0 < height <= MAX_CODED_SIDE):
        raise _bad(f"coded size {width}x{height}: 1 to {MAX_CODED_SIDE} a side are possible")
    if not 1 <= len(record.layers) <= MAX_LAYERS:
        raise _bad(f"{len(record.layers)} layers, 1 to {MAX_LAYERS} are possible")
    pixels, limit = 0, coded_pixels(width, height)
    for index, layer in enumerate(record.layers):
        if (layer.kind is LayerKind.BACKGROUND) != (index == 0):
            raise _bad(f"layer {index} is of kind {layer.kind.name}; one background comes first, then objects")
        if not (1 <= layer.codec <= 255 and 1 <= layer.version <= 255):
            raise _bad(f"codec {layer.codec} version {layer.version} of {_name(layer)} is not in 1..255")
        x, y, w, h = layer.region
        if not (x >= 0 and y >= 0 and w > 0 and h > 0 and x + w <= width and y + h <= height):
            raise _bad(f"{_name(layer)} is empty or leaves the {width}x{height} coded frame")
        if index == 0 and layer.region != (0, 0, width, height):
            raise _bad(f"the background covers {layer.region}, not the whole {width}x{height} frame")
        if not (math.isfinite(layer.scale) and layer.scale > 0):
            raise _bad(f"scale {layer.scale} of {_name(layer)} is not a finite number above 0")
        if not layer.payload:
            raise _bad(f"{_name(layer)} has no payload")
        if (pixels := pixels + w * h) > limit:
            raise _bad(f"the layers up to {_name(layer)} code {pixels} pixels, at most {limit}")


def _rounded(record: ImageRecord) -> ImageRecord:
    try:
        boxes = tuple(Box(_f32(b.x), _f32(b.y), _f32(b.w), _f32(b.h), b.label) for b in record.boxes)
        layers = tuple(replace(layer, scale=_f32(layer.scale)) for layer in record.layers)
    except OverflowError:
        raise _bad("a box or scale is beyond float32") from None
    return replace(record, boxes=boxes, layers=layers)


def _f32(value: float) -> float:
    return float(struct.unpack("<f", struct.pack("<f", value))[0])


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


def _text(value: str, limit: int) -> bytes:
    try:
        raw = value.encode()
    except UnicodeEncodeError:
        raise _bad(f"text {value!r} has no UTF-8 form") from None
    if len(raw) > limit:
        raise _bad(f"text {value[:40]!r}… has {len(raw)} bytes, at most {limit}")
    return bytes([len(raw)]) + raw


def _name(layer: Layer) -> str:
    return f"the {layer.kind.name.lower()} layer at {layer.region}"


def _bad(what: str) -> FormatError:
    return FormatError(f"record is malformed: {what}; fetch it again, or encode the image again")
