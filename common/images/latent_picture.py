"""The shared state of `latent`: a reference picture of a camera, from which its other frames are predicted.

Version 1: `FGR`, version u8; width and height u16; number of crops u8; the AVIF payload of the frame (length u32, then
as a layer of `avif2`); for each crop its x, y, width and height u16, then its payload in the same form. Crops replace
what the frame shows there: objects are worth more in a reference, too. All little-endian.

AV1 decodes to the same pixels everywhere, so every device predicts from the same reference.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from fogline.common.errors import FormatError
from fogline.common.images import avif2
from fogline.common.images.codec import LayerCodec, Placement, codec_of
from fogline.common.images.container import coded_pixels
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.regions import Region
from fogline.common.images.shared_cache import SharedCache

MAX_CROPS = 64
MAX_SIDE = 16384
_MAGIC = b"FGR\x01"
_HEAD, _LENGTH, _REGION = struct.Struct("<4sHHB"), struct.Struct("<I"), struct.Struct("<4H")


@dataclass(frozen=True, eq=False)
class ReferencePicture:
    """A reference, parsed; it stays compressed, and its pixels are kept as far as the cache's budget goes."""

    size: tuple[int, int]  # width, height
    layers: tuple[Layer, ...]  # of `avif2`: the frame, then the crops
    prepared: tuple[Any, ...]  # each of them as its codec wants it
    digest: bytes  # SHA-256 of the blob
    cache: SharedCache

    def pixels(self, device: torch.device) -> torch.Tensor:
        """Uint8 (3, height, width) on the device, to read only. Raises FormatError where it can't be decoded."""
        return self.cache.decoded(("latent picture", self.digest, device), lambda: self._decode().to(device))

    def _decode(self) -> torch.Tensor:
        width, height = self.size
        places = [Placement(*layer.region, (0.0, 0.0, 1.0, 1.0)) for layer in self.layers]
        kinds = [layer.kind for layer in self.layers]
        rendered = _codec().render(self.prepared, kinds, places, torch.device("cpu"))
        out = torch.empty((3, height, width), dtype=torch.uint8)
        for layer, tensor in zip(self.layers, rendered, strict=True):
            x, y, w, h = layer.region
            out[:, y : y + h, x : x + w] = tensor.mul(255).round_().to(torch.uint8)
        return out


def pack_picture(width: int, height: int, frame: bytes, crops: Sequence[tuple[Region, bytes]]) -> bytes:
    """The blob of a reference picture from its AVIF payloads."""
    out = [_HEAD.pack(_MAGIC, width, height, len(crops)), _LENGTH.pack(len(frame)), frame]
    for region, payload in crops:
        out += [_REGION.pack(*region), _LENGTH.pack(len(payload)), payload]
    return b"".join(out)


def unpack_picture(blob: bytes, cache: SharedCache | None = None) -> ReferencePicture:
    """Parse a blob; None: a cache of its own. Raises FormatError for a malformed one, before anything is decoded."""
    if len(blob) < _HEAD.size or blob[:3] != _MAGIC[:3]:
        raise _bad("it does not begin as one; the shared state is of another codec")
    magic, width, height, count = _HEAD.unpack_from(blob)
    if magic != _MAGIC:
        raise FormatError(f"reference picture of version {magic[3]}: this build reads version {_MAGIC[3]}; update")
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE) or count > MAX_CROPS:
        raise _bad(f"it has {width}x{height} pixels and {count} crops")
    position, layers = _HEAD.size, []
    pixels, limit = 0, coded_pixels(width, height)
    for number in range(count + 1):
        region = (0, 0, width, height)
        if number:
            (x, y, w, h), position = _read(_REGION, blob, position)
            region = (x, y, w, h)
            if not (w and h and x + w <= width and y + h <= height):
                raise _bad(f"crop {number} covers {region}")
        (length,), position = _read(_LENGTH, blob, position)
        if not 0 < length <= len(blob) - position:
            raise _bad(f"part {number} announces {length} bytes")
        if (pixels := pixels + region[2] * region[3]) > limit:
            raise _bad(f"its parts have {pixels} pixels, at most {limit}")
        kind = LayerKind.OBJECT if number else LayerKind.BACKGROUND
        layers.append(Layer(kind, avif2.Avif2.number, 1, region, 1.0, blob[position : position + length]))
        position += length
    if position != len(blob):
        raise _bad(f"{len(blob) - position} bytes follow it")
    prepared = tuple(_codec().prepare(layer, {}) for layer in layers)
    digest = hashlib.sha256(blob).digest()
    return ReferencePicture((width, height), tuple(layers), prepared, digest, cache or SharedCache())


def _codec() -> LayerCodec:
    return codec_of(avif2.Avif2.number, 1)


def _read(form: struct.Struct, blob: bytes, position: int) -> tuple[tuple[int, ...], int]:
    if position + form.size > len(blob):
        raise _bad("it ends early")
    return form.unpack_from(blob, position), position + form.size


def _bad(what: str) -> FormatError:
    return FormatError(f"reference picture is malformed: {what}; fetch the shared state again, or encode anew")
