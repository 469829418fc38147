"""Codec 1, `jpeg2`: a low-quality JPEG of the frame and higher-quality JPEGs of the objects.

A payload is a JPEG without what its region and two bytes say already (docs/image-format.md): quality, flags, then
Huffman tables where the flags announce them, then entropy-coded data. Sizes are not in it, so they can't lie.
"""

from __future__ import annotations

import io
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from fogline.common.errors import FormatError
from fogline.common.images import raster
from fogline.common.images.codec import register
from fogline.common.images.jpeg_tables import HUFFMAN, quantisation, zigzag
from fogline.common.images.record import Layer

DEFAULTS = {"background_quality": 12, "object_quality": 85}
FULL_CHROMA_FROM = 93  # quality above which 4:4:4 beats 4:2:0 at equal bytes

_CHROMA_BIT, _TABLES_BIT = 1, 2
_TABLE_IDS = (0x00, 0x10, 0x01, 0x11)  # luma DC and AC, chroma DC and AC
_SCAN = bytes.fromhex("ffda000c03010002110311003f00")
_MARKER = re.compile(rb"\xff(?!\x00)")


@dataclass(frozen=True)
class _Prepared:
    size: tuple[int, int]
    quality: int
    flags: int
    body: bytes  # Huffman segments and entropy-coded data


@register
class Jpeg2(raster.RasterCodec):
    """Decodes `jpeg2` layers; they stay compressed in memory until rendered."""

    number: ClassVar[int] = 1
    version: ClassVar[int] = 1
    name: ClassVar[str] = "jpeg2"

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> _Prepared:
        """Check everything but the entropy-coded data, of which any bytes are some image."""
        payload = layer.payload
        if len(payload) < 3:
            raise _bad(f"{len(payload)} bytes")
        quality, flags = payload[0], payload[1]
        if not 1 <= quality <= 100 or flags > _CHROMA_BIT | _TABLES_BIT:
            raise _bad(f"quality {quality}, flags {flags:#x}")
        tables, start = _read_tables(payload, 2) if flags & _TABLES_BIT else (HUFFMAN, 2)
        if found := _MARKER.search(payload, start):
            raise _bad(f"a marker at byte {found.start()} of its entropy-coded data")
        segments = b"".join(_segment(0xC4, bytes([i]) + table) for i, table in zip(_TABLE_IDS, tables, strict=True))
        return _Prepared(layer.region[2:], quality, flags, segments + _SCAN + payload[start:])

    def picture(self, prepared: _Prepared) -> Image.Image:
        """See `RasterCodec.picture`."""
        return _decode(prepared)


def build_jpeg2(params: Mapping[str, Any], device: str = "cpu") -> raster.PairEncoder:
    """An encoder; parameters `background_quality` and `object_quality`, 1 to 100. Raises ConfigError."""
    chosen = raster.qualities(Jpeg2.name, params, DEFAULTS)
    return raster.PairEncoder(
        Jpeg2,
        background=partial(encode_payload, quality=chosen["background_quality"]),
        object=partial(encode_payload, quality=chosen["object_quality"]),
    )


def encode_payload(pixels: NDArray[np.uint8], quality: int, *, full_chroma: bool | None = None) -> bytes:
    """One layer's payload from its pixels (H, W, 3), with whichever Huffman tables make it shorter.

    `full_chroma` None: what is the better one at this quality, on the whole.
    """
    if full_chroma is None:
        full_chroma = quality >= FULL_CHROMA_FROM
    image = Image.fromarray(pixels)
    payloads = []
    for optimize in (True, False):
        buffer = io.BytesIO()
        image.save(
            buffer,
            "JPEG",
            qtables=[list(table) for table in quantisation(quality)],
            subsampling=0 if full_chroma else 2,
            optimize=optimize,
        )
        tables, entropy = _split(buffer.getvalue())
        flags = full_chroma * _CHROMA_BIT | optimize * _TABLES_BIT
        payloads.append(bytes([quality, flags]) + (tables if optimize else b"") + entropy)
    return min(payloads, key=len)


def _decode(prepared: _Prepared) -> Image.Image:
    width, height = prepared.size
    luma = 0x11 if prepared.flags & _CHROMA_BIT else 0x22
    frame = struct.pack(">BHHB", 8, height, width, 3) + bytes([1, luma, 0, 2, 0x11, 1, 3, 0x11, 1])
    head = b"\xff\xd8" + b"".join(
        _segment(0xDB, bytes([i]) + zigzag(table)) for i, table in enumerate(quantisation(prepared.quality))
    )
    file = head + _segment(0xC0, frame) + prepared.body + b"\xff\xd9"
    try:
        image = JpegImagePlugin.JpegImageFile(io.BytesIO(file))
        image.load()
    except (OSError, SyntaxError, ValueError) as error:
        raise _bad(f"it can't be decoded: {error}") from error
    return image


def _read_tables(payload: bytes, start: int) -> tuple[list[bytes], int]:
    """The four Huffman tables at `start`, each 16 counts and that many symbols, and where they end."""
    tables = []
    for number, table_id in enumerate(_TABLE_IDS):
        counts = payload[start : start + 16]
        symbols = payload[start + 16 : start + 16 + sum(counts)]
        codes = sum(count << (15 - bits) for bits, count in enumerate(counts))
        if len(counts) < 16 or len(symbols) < sum(counts) or not 0 < sum(counts) <= 256 or codes >= 1 << 16:
            raise _bad(f"Huffman table {number} is impossible")
        if table_id < 0x10 and max(symbols) > 11:
            raise _bad(f"Huffman table {number} has an impossible symbol")
        tables.append(counts + symbols)
        start += 16 + len(symbols)
    return tables, start


def _split(file: bytes) -> tuple[bytes, bytes]:
    """Huffman tables and entropy-coded data of a JPEG that Pillow wrote just now."""
    tables: dict[int, bytes] = {}
    position = 2
    while True:
        marker = file[position + 1]
        end = position + 2 + int.from_bytes(file[position + 2 : position + 4], "big")
        if marker == 0xC4:
            tables[file[position + 4]] = file[position + 5 : end]
        if marker == 0xDA:
            return b"".join(tables[i] for i in _TABLE_IDS), file[end:-2]
        position = end


def _segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + (len(body) + 2).to_bytes(2, "big") + body


def _bad(what: str) -> FormatError:
    return FormatError(f"jpeg2 layer is malformed: {what}; fetch the record again, or encode the image again")
