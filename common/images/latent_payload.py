"""The payload of a `latent` layer: motion from a reference picture, and what it leaves over as quantised coefficients.

Version 1: reference u8, which of the record's shared blobs; flags u8 (1: motion follows, 2: coefficients follow); step
number u8, of luma; then, where any flag is set, one entropy-coded stream: the frame's motion (six numbers for a
background, two for an object), the field of block vectors, then luma, blue and red differences.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from fogline.common.errors import FormatError
from fogline.common.images.latent_blocks import Plane, read_plane, write_plane
from fogline.common.images.latent_motion import MAX_VECTOR, Field, affine_field, blocks_of, read_field, write_field
from fogline.common.images.record import LayerKind
from fogline.common.images.static_rans import Decoder, Encoder

MAX_STEP = 80  # step number: a step of 1024 grey levels
MAX_PIXELS = 1 << 24
_MOTION, _COEFFICIENTS = 1, 2
_MAX_AFFINE = 1 << 15


@dataclass(frozen=True)
class Layout:
    """How layers of one kind are cut into blocks."""

    block: int  # pixels of a motion block's side
    luma: int  # of a luma transform block's side
    chroma: int  # of a chroma one, in chroma samples
    halved: bool  # chroma has half the width and height
    chroma_step: float  # relative to luma's

    def planes(self, width: int, height: int) -> tuple[tuple[int, int, int], ...]:
        """Rows and columns of blocks, and their side, of the three planes."""
        half = 2 if self.halved else 1
        w, h = -(-width // half), -(-height // half)
        luma = blocks_of(height, self.luma), blocks_of(width, self.luma), self.luma
        chroma = blocks_of(h, self.chroma), blocks_of(w, self.chroma), self.chroma
        return luma, chroma, chroma


LAYOUTS = {LayerKind.BACKGROUND: Layout(16, 16, 8, True, 1.0), LayerKind.OBJECT: Layout(8, 8, 8, False, 1.3)}


@dataclass(frozen=True)
class Latents:
    """A layer, entropy-decoded."""

    reference: int  # which of the record's shared blobs
    step: int  # step number of luma
    affine: tuple[int, ...]  # six numbers; see `affine_field`
    offsets: Field | None  # to the affine motion; None: no motion at all
    planes: tuple[Plane, Plane, Plane] | None  # luma, blue difference, red difference; None: all zero


def step_size(number: int) -> float:
    """A quantisation step in grey levels."""
    return float(np.exp2(number / 8))


def vectors(latents: Latents, kind: LayerKind, width: int, height: int) -> Field:
    """The vector of each block, (rows, columns, 2) in quarter pixels."""
    block = LAYOUTS[kind].block
    if latents.offsets is None:
        return np.zeros((blocks_of(height, block), blocks_of(width, block), 2), np.int32)
    total = affine_field(latents.affine, width, height, block) + latents.offsets
    out: Field = np.clip(total, -MAX_VECTOR, MAX_VECTOR).astype(np.int32)
    return out


def pack(latents: Latents, kind: LayerKind) -> bytes:
    """The payload."""
    flags = (latents.offsets is not None) * _MOTION | (latents.planes is not None) * _COEFFICIENTS
    head = bytes([latents.reference, flags, latents.step])
    if not flags:
        return head
    encoder = Encoder()
    if latents.offsets is not None:
        encoder.numbers(_stored(latents.affine, kind))
        write_field(encoder, latents.offsets)
    if latents.planes is not None:
        for number, plane in enumerate(latents.planes):
            write_plane(encoder, plane, 2 * kind + (number > 0))
    return head + encoder.finish()


def unpack(payload: bytes, kind: LayerKind, width: int, height: int) -> Latents:
    """The latents of a payload. Raises FormatError for what is malformed."""
    if len(payload) < 3:
        raise _bad(f"it has {len(payload)} bytes")
    reference, flags, step = payload[:3]
    if flags > _MOTION + _COEFFICIENTS or step > MAX_STEP:
        raise _bad(f"flags {flags} or step number {step} are unknown")
    if width * height > MAX_PIXELS:
        raise _bad(f"it covers {width}x{height} pixels, at most {MAX_PIXELS} in all")
    if not flags:
        if len(payload) > 3:
            raise _bad(f"{len(payload) - 3} bytes follow it")
        return Latents(reference, step, (0,) * 6, None, None)
    layout, decoder = LAYOUTS[kind], Decoder(payload[3:])
    affine: tuple[int, ...] = (0,) * 6
    offsets, planes = None, None
    if flags & _MOTION:
        affine = _restored(decoder.numbers(2 if kind is LayerKind.OBJECT else 6))
        if max(abs(value) for value in affine) > _MAX_AFFINE:
            raise _bad(f"a motion of {affine} leaves every frame")
        offsets = read_field(decoder, blocks_of(height, layout.block), blocks_of(width, layout.block))
    if flags & _COEFFICIENTS:
        y, b, r = (
            read_plane(decoder, *shape, 2 * kind + (number > 0))
            for number, shape in enumerate(layout.planes(width, height))
        )
        planes = y, b, r
    decoder.finish()
    return Latents(reference, step, affine, offsets, planes)


def _stored(affine: tuple[int, ...], kind: LayerKind) -> tuple[int, ...]:
    return (affine[0], affine[3]) if kind is LayerKind.OBJECT else affine


def _restored(numbers: list[int]) -> tuple[int, ...]:
    return (numbers[0], 0, 0, numbers[1], 0, 0) if len(numbers) == 2 else tuple(numbers)


def _bad(what: str) -> FormatError:
    return FormatError(f"latent layer is malformed: {what}; fetch the record again, or encode the image again")
