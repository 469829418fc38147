"""Codec 2, `avif2`: a low-quality AV1 still of the frame and higher-quality ones of the objects.

A payload is what an AVIF file says about its pixels and nothing else (docs/image-format.md): an AV1 sequence header and
one frame, as two open bitstream units. The 275 bytes of container around them are rebuilt to decode; in small crops
they would weigh as much as the pixels. The frame size is read from the sequence header and compared with the region
before anything is decoded.
"""

from __future__ import annotations

import io
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from PIL import AvifImagePlugin, Image

from fogline.common.errors import ConfigError, FormatError
from fogline.common.images import raster
from fogline.common.images.codec import register
from fogline.common.images.record import Layer

DEFAULTS = {"background_quality": 20, "object_quality": 55}
SPEED = 6  # of libaom: 4 saves about 3 % of the bytes and takes four times as long

_SEQUENCE, _FRAME = 0x0A, 0x32  # headers of the two units: types 1 and 6, with a size field, without extension
_COLOUR = struct.pack(">4s3HB", b"nclx", 1, 13, 6, 0x80)  # BT.709 primaries, sRGB transfer, BT.601 matrix, full range


@dataclass(frozen=True)
class _Prepared:
    size: tuple[int, int]
    full_chroma: bool
    units: bytes


@register
class Avif2(raster.RasterCodec):
    """Decodes `avif2` layers; they stay compressed in memory until rendered."""

    number: ClassVar[int] = 2
    version: ClassVar[int] = 1
    name: ClassVar[str] = "avif2"

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> _Prepared:
        """Check that the payload is one still of the region's size."""
        payload = layer.payload
        sequence, end = _unit(payload, 0, _SEQUENCE)
        _, end = _unit(payload, end, _FRAME)
        if end != len(payload):
            raise _bad(f"{len(payload) - end} bytes after its frame")
        size, full_chroma = _read_sequence(sequence)
        if size != layer.region[2:]:
            raise _bad(f"it is {size[0]}x{size[1]}, its region {layer.region[2]}x{layer.region[3]}")
        return _Prepared(size, full_chroma, payload)

    def picture(self, prepared: _Prepared) -> Image.Image:
        """See `RasterCodec.picture`."""
        return _decode(prepared)


def build_avif2(params: Mapping[str, Any], device: str = "cpu") -> raster.PairEncoder:
    """An encoder; parameters `background_quality` and `object_quality`, 1 to 100. Raises ConfigError.

    Backgrounds take libaom's default tuning and 4:2:0, crops the tuning for PSNR and 4:4:4: each the better one there.
    """
    chosen = raster.qualities(Avif2.name, params, DEFAULTS)
    try:
        encode_payload(np.zeros((8, 8, 3), np.uint8), 50, full_chroma=True)
    except (OSError, ValueError, KeyError) as error:
        raise ConfigError(f"codec avif2: this Pillow can't write AVIF ({error}); install pillow from PyPI") from error
    return raster.PairEncoder(
        Avif2,
        background=partial(encode_payload, quality=chosen["background_quality"], full_chroma=False),
        object=partial(encode_payload, quality=chosen["object_quality"], full_chroma=True),
    )


def encode_payload(pixels: NDArray[np.uint8], quality: int, *, full_chroma: bool, speed: int = SPEED) -> bytes:
    """One layer's payload from its pixels (H, W, 3)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(
        buffer,
        "AVIF",
        quality=quality,
        speed=speed,
        subsampling="4:4:4" if full_chroma else "4:2:0",
        codec="aom",
        max_threads=1,  # threads are better spent on other layers
        advanced={"tune": "psnr"} if full_chroma else {},
    )
    file = buffer.getvalue()
    media = file[file.index(b"mdat") + 4 :]
    return media.removeprefix(b"\x12\x00")  # an empty temporal delimiter


def _decode(prepared: _Prepared) -> Image.Image:
    try:
        image = AvifImagePlugin.AvifImageFile(io.BytesIO(_file(prepared)))
        if image.size != prepared.size:
            raise _bad(f"the decoder reads {image.size}, its header says {prepared.size}")
        image.load()
    except (OSError, SyntaxError, ValueError, RuntimeError) as error:
        raise _bad(f"it can't be decoded: {error}") from error
    return image.convert("RGB")


def _unit(payload: bytes, start: int, kind: int) -> tuple[bytes, int]:
    """The body of the open bitstream unit at `start`, which must be of `kind`, and where it ends."""
    if payload[start : start + 1] != bytes([kind]):
        raise _bad(f"no unit of kind {kind:#x} at byte {start}")
    size, position = 0, start + 1
    for shift in (0, 7, 14, 21):
        if position >= len(payload):
            break
        byte = payload[position]
        size |= (byte & 0x7F) << shift
        position += 1
        if byte < 0x80:
            if not 0 < size <= len(payload) - position:
                break
            return payload[position : position + size], position + size
    raise _bad(f"the unit at byte {start} does not fit")


def _read_sequence(body: bytes) -> tuple[tuple[int, int], bool]:
    """Width and height, and whether chroma is at full resolution (AV1 specification, 5.5)."""
    bits = int.from_bytes(body, "big")
    left = 8 * len(body)

    def read(n: int) -> int:
        nonlocal left
        left -= n
        if left < 0:
            raise _bad("its sequence header is too short")
        return bits >> left & (1 << n) - 1

    profile, still, reduced = read(3), read(1), read(1)
    if profile > 1 or not still or not reduced:
        raise _bad("it is not an 8-bit still with a reduced header")
    read(5)  # level
    width_bits, height_bits = read(4) + 1, read(4) + 1
    size = (read(width_bits) + 1, read(height_bits) + 1)
    read(6)  # coding tools
    if read(1) or (profile == 0 and read(1)):
        raise _bad("it has more than 8 bits, or no colour")
    return size, profile == 1


def _file(prepared: _Prepared) -> bytes:
    """A minimal AVIF file around a payload (ISO/IEC 23000-22)."""
    profile, chroma = (1, 0x00) if prepared.full_chroma else (0, 0x0C)
    properties = _box(
        b"ipco",
        _box(b"ispe", bytes(4) + struct.pack(">II", *prepared.size)),
        _box(b"pixi", bytes(4) + b"\x03\x08\x08\x08"),
        _box(b"av1C", bytes([0x81, profile << 5 | 0x1F, chroma, 0])),  # level 31: no limit
        _box(b"colr", _COLOUR),
    )
    associations = _box(b"ipma", bytes(4) + struct.pack(">IHB4B", 1, 1, 4, 1, 2, 0x80 | 3, 4))
    kind = _box(b"ftyp", b"avif" + bytes(4) + b"avifmif1miafMA1B")
    head = b""
    # The item's offset depends on the header's length, which does not depend on the offset: the second round has it.
    for _ in range(2):
        offset = len(kind) + len(head) + 8
        head = _box(
            b"meta",
            bytes(4),
            _box(b"hdlr", bytes(8) + b"pict" + bytes(13)),
            _box(b"pitm", bytes(4) + b"\x00\x01"),
            _box(b"iloc", bytes(4) + struct.pack(">BBHHHHII", 0x44, 0, 1, 1, 0, 1, offset, len(prepared.units))),
            _box(b"iinf", bytes(4) + b"\x00\x01" + _box(b"infe", b"\x02\x00\x00\x00\x00\x01\x00\x00av01\x00")),
            _box(b"iprp", properties, associations),
        )
    return kind + head + _box(b"mdat", prepared.units)


def _box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I", 8 + len(body)) + kind + body


def _bad(what: str) -> FormatError:
    return FormatError(f"avif2 layer is malformed: {what}; fetch the record again, or encode the image again")
