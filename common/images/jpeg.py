"""JPEG from the outside world: look before decoding, then decode for real. Works without torch.

Pixels come in the stored pixel grid: an EXIF orientation is ignored on purpose, since boxes are annotated there
and a trainer needs pixels and boxes to agree, not to stand upright.
"""

from __future__ import annotations

import io
import re
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, JpegImagePlugin

from fogline.common.errors import InputError

RESIZED_QUALITY = 75  # of the JPEGs at the coded size that devices might send each other instead of records
MAX_BYTES = 32 << 20
MAX_PIXELS = 40_000_000
MAX_SEGMENTS = 1024
MAX_SCANS = 32  # a progressive file of some kilobytes can hold thousands, each as costly as a whole image

_FRAMES = {0xC0: False, 0xC1: False, 0xC2: True}  # baseline, extended, progressive: Huffman-coded
_OTHER_FRAMES = {*range(0xC3, 0xD0)} - {0xC4, 0xC8, 0xCC}
_TABLES = {0xC4, 0xDB, 0xDD}  # Huffman, quantisation, restart interval
_COLOUR = {0xE0: b"JFIF\0", 0xEE: b"Adobe"}  # the application segments that say how colours are coded
_MARKER = re.compile(rb"\xff[\x01-\xcf\xd8-\xfe]")  # neither a stuffed zero nor a restart
_OTHERS = {
    b"\x89PNG": "PNG",
    b"GIF8": "GIF",
    b"RIFF": "WebP",
    b"BM": "BMP",
    b"II*\0": "TIFF",
    b"MM\0*": "TIFF",
    b"\xff\x0a": "JPEG XL",
    b"%PDF": "PDF",
}


@dataclass(frozen=True)
class JpegInfo:
    """What a JPEG's headers say."""

    width: int  # pixels, stored grid
    height: int
    components: int  # 1 grey, 3 colour, 4 CMYK
    progressive: bool


def inspect_jpeg(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> JpegInfo:
    """Walk all markers of a JPEG without decoding it. Raises InputError that says what is wrong."""
    return _walk(data, max_bytes, max_pixels)[0]


def decode_jpeg(data: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS) -> NDArray[np.uint8]:
    """Decode to RGB, uint8 (H, W, 3). Grey, CMYK and progressive files are fine.

    Raises InputError for anything that is not one whole JPEG within the limits; they are checked before decoding.
    """
    info, clean = _walk(data, max_bytes, max_pixels)
    try:
        with JpegImagePlugin.JpegImageFile(io.BytesIO(clean)) as image:
            if image.size != (info.width, info.height):
                raise InputError(f"JPEG: headers say {(info.width, info.height)}, the decoder {image.size}")
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError, LookupError, TypeError, struct.error) as error:
        raise InputError(f"JPEG of {info.width}x{info.height} can't be decoded: {error}; capture it again") from error
    return pixels


def encode_jpeg(pixels: NDArray[np.uint8], quality: int) -> bytes:
    """An ordinary JPEG file of `pixels` (H, W, 3) at a quality of 1 to 95, with Pillow's defaults."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=quality)
    return buffer.getvalue()


def resize(pixels: NDArray[np.uint8], width: int, height: int) -> NDArray[np.uint8]:
    """`pixels` (H, W, 3) at another size, bicubic and antialiased.

    This is what "the original at training resolution" means everywhere in Fogline.
    """
    if (width, height) == (pixels.shape[1], pixels.shape[0]):
        return pixels
    return np.asarray(Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC))


def _walk(data: bytes, max_bytes: int, max_pixels: int) -> tuple[JpegInfo, bytes]:
    """Check the file from its first to its last marker.

    Returns what it says, and the file without what decoding does not need (EXIF, thumbnails, profiles, pictures after
    the first, trailing bytes), so that the decoder never sees metadata that an attacker wrote.
    """
    if len(data) > max_bytes:
        raise InputError(f"JPEG of {len(data)} bytes is larger than {max_bytes}; lower the camera's quality or size")
    if data[:3] != b"\xff\xd8\xff":
        raise InputError(f"not a JPEG: {_looks_like(data)}")
    kept = [b"\xff\xd8"]
    info: JpegInfo | None = None
    scans = coded = 0
    position = 2
    for _ in range(MAX_SEGMENTS):
        marker, position = _next_marker(data, position)
        if marker == 0xD9:
            break
        if marker in (0x01, 0xD8) or 0xD0 <= marker <= 0xD7:
            raise InputError(f"JPEG: marker ff{marker:02x} at byte {position - 2} is out of place; the file is damaged")
        body = _segment(data, position)
        if marker in _FRAMES:
            if info is not None:
                raise InputError("JPEG: two frame headers; the file is damaged")
            info = _frame(body, _FRAMES[marker], max_pixels)
        elif marker in _OTHER_FRAMES:
            raise InputError(f"JPEG: lossless, arithmetic or hierarchical coding (ff{marker:02x}); save it as baseline")
        end = position + 2 + len(body)
        if marker == 0xDA:
            if info is None:
                raise InputError("JPEG: image data before the frame header; the file is damaged")
            if (scans := scans + 1) > MAX_SCANS:
                raise InputError(f"JPEG: more than {MAX_SCANS} scans; save it as baseline")
            found = _MARKER.search(data, end)
            if found is None:
                raise InputError(f"JPEG is truncated: its image data has no end in {len(data)} bytes; send it again")
            coded += found.start() - end
            end = found.start()
        told = marker in _COLOUR and body.startswith(_COLOUR[marker])
        if told or marker in _TABLES or marker in _FRAMES or marker == 0xDA:
            kept.append(bytes([0xFF, marker]) + data[position:end])
        position = end
    else:
        raise InputError(f"JPEG: more than {MAX_SEGMENTS} segments; save it again without metadata")
    if info is None or not scans:
        raise InputError("JPEG: it ends without an image; send it again")
    # A block of 8x8 pixels takes at least a bit, in a baseline file two. The decoder would paint what is missing grey.
    blocks = -(-info.width // 8) * -(-info.height // 8)
    if 8 * coded < blocks * (1 if info.progressive else 2):
        raise InputError(f"JPEG is truncated: {coded} bytes of image data for {blocks} blocks of pixels; send it again")
    kept.append(b"\xff\xd9")
    return info, b"".join(kept)


def _next_marker(data: bytes, position: int) -> tuple[int, int]:
    """The marker at `position` (fill bytes allowed before it) and where its segment begins."""
    start = position
    while position < len(data) and data[position] == 0xFF:
        position += 1
    if position == len(data):
        raise InputError(f"JPEG is truncated: it ends at byte {len(data)} without an end marker; send it again")
    if position == start or data[position] == 0:
        raise InputError(f"JPEG: no marker at byte {start}; the file is damaged")
    return data[position], position + 1


def _segment(data: bytes, position: int) -> bytes:
    length = int.from_bytes(data[position : position + 2], "big")
    if length < 2 or position + length > len(data):
        raise InputError(f"JPEG is truncated: a segment of {length} bytes at {position} of {len(data)}; send it again")
    return data[position + 2 : position + length]


def _frame(body: bytes, progressive: bool, max_pixels: int) -> JpegInfo:
    if len(body) < 6 or len(body) != 6 + 3 * body[5]:
        raise InputError("JPEG: a frame header of the wrong length; the file is damaged")
    precision, height, width, components = struct.unpack(">BHHB", body[:6])
    if precision != 8 or components not in (1, 3, 4):
        raise InputError(f"JPEG: {components} components of {precision} bits; save it as 8-bit grey or colour")
    if width == 0 or height == 0:
        raise InputError(f"JPEG: size {width}x{height}; the file is damaged")
    if width * height > max_pixels:
        raise InputError(f"JPEG of {width}x{height} has more than {max_pixels} pixels; capture at a lower resolution")
    return JpegInfo(width, height, components, progressive)


def _looks_like(data: bytes) -> str:
    if not data:
        return "it has zero bytes"
    for magic, name in _OTHERS.items():
        if data.startswith(magic):
            return f"it looks like {name} whatever its name says; convert it"
    if data[4:8] == b"ftyp":
        return "it looks like AVIF, HEIC or MP4 whatever its name says; convert it"
    return f"it begins with {data[:4].hex()}"
