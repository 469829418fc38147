"""The motion of a `latent` layer: where each block of a frame lies in its reference picture, and how that is coded.

A vector is (x, y) in quarter pixels, from the block's centre to the same place in the reference. A field is coded as
the difference to an affine motion of the whole frame, coarse grid first: each finer point is predicted from the four
around it that are known already, so that all points of a step are decoded together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images import static_rans
from fogline.common.images.latent_blocks import Points
from fogline.common.images.latent_tables import CHOICE, LENGTH

MAX_VECTOR = 1 << 13  # quarter pixels of a vector, the affine part included
AFFINE_UNIT = 8  # of an affine parameter to a pixel of displacement at the frame's edge
_COARSEST = 8
_NEW = 5  # neither the predicted vector nor a neighbour's
_SPREADS = (1, 4, 16, 64)  # quarter pixels between the neighbours, for five contexts
_START = 5  # a sixth: nothing is known yet

Field = NDArray[np.int32]  # (rows, columns, 2): x, y in quarter pixels


def blocks_of(length: int, block: int) -> int:
    """Blocks along a side."""
    return -(-length // block)


def affine_field(affine: tuple[int, ...], width: int, height: int, block: int) -> Field:
    """Vectors of an affine motion at the blocks' centres, integers only.

    `affine` is (a, b, c, d, e, f) in AFFINE_UNIT parts of a pixel: x moves by a + b u + c v, y by d + e u + f v, where
    u runs from -1 to 1 over the frame's width, and v has the same unit over its height.
    """
    columns, rows = blocks_of(width, block), blocks_of(height, block)
    u = (np.arange(columns, dtype=np.int64) * 2 + 1) * block - width
    v = ((np.arange(rows, dtype=np.int64) * 2 + 1) * block - height)[:, None]
    a, b, c, d, e, f = affine
    scale = 4, width * AFFINE_UNIT  # quarter pixels; u and v are in `width`ths
    parts = [(p * width + q * u + r * v) * scale[0] for p, q, r in ((a, b, c), (d, e, f))]
    out = np.stack([np.broadcast_to(_rounded(part, scale[1]), (rows, columns)) for part in parts], axis=-1)
    return np.clip(out, -MAX_VECTOR, MAX_VECTOR).astype(np.int32)


def write_field(encoder: static_rans.Encoder, offsets: Field) -> None:
    """Code a field of differences."""
    known = np.zeros(offsets.shape[:2], bool)
    for points in _steps(offsets.shape[0], offsets.shape[1]):
        around = _Around.of(offsets, known, points)
        wanted = offsets[points]
        equal = (around.choices == wanted[:, None]).all(axis=2) & around.valid
        choice = np.where(equal.any(axis=1), equal.argmax(axis=1), _NEW)
        encoder.values(CHOICE[around.context], choice)
        new = choice == _NEW
        for axis in (0, 1):
            difference = wanted[new, axis] - around.choices[new, 0, axis]
            encoder.lengths(LENGTH[axis, around.context[new]], np.abs(difference))
            encoder.signs(difference[difference != 0] < 0)
        known[points] = True


def read_field(decoder: static_rans.Decoder, rows: int, columns: int) -> Field:
    """The field that `write_field` coded. Raises FormatError for a neighbour that is not there."""
    offsets = np.zeros((rows, columns, 2), np.int32)
    known = np.zeros((rows, columns), bool)
    for points in _steps(rows, columns):
        around = _Around.of(offsets, known, points)
        choice = decoder.values(CHOICE[around.context])
        new = choice == _NEW
        if int(choice.max(initial=0)) > _NEW:
            raise FormatError(f"latent layer is malformed: a vector of kind {int(choice.max())}, at most {_NEW}")
        chosen = np.where(new, 0, choice)
        index = np.arange(len(choice))
        if not around.valid[index, chosen].all():
            raise FormatError("latent layer is malformed: a vector is that of a block outside the frame")
        found = around.choices[index, chosen].astype(np.int64)
        for axis in (0, 1):
            difference = decoder.lengths(LENGTH[axis, around.context[new]])
            difference[difference != 0] *= np.where(decoder.signs(int((difference != 0).sum())), -1, 1)
            found[new, axis] += difference
        offsets[points] = np.clip(found, -4 * MAX_VECTOR, 4 * MAX_VECTOR)
        known[points] = True
    return offsets


def _steps(rows: int, columns: int) -> Iterator[Points]:
    """Points (rows, columns) that are coded together: a coarse grid, then in each octave centres and edges."""
    y, x = np.mgrid[0:rows, 0:columns]
    yield np.nonzero((y % _COARSEST == 0) & (x % _COARSEST == 0))
    stride = _COARSEST
    while stride > 1:
        half = stride // 2
        odd_y, odd_x = y % stride == half, x % stride == half
        even_y, even_x = y % stride == 0, x % stride == 0
        for chosen in (odd_y & odd_x, (odd_y & even_x) | (even_y & odd_x)):
            if chosen.any():
                yield np.nonzero(chosen)
        stride = half


@dataclass(frozen=True)
class _Around:
    """What is known where the points of a step lie: the choices for a vector, and how far the neighbours disagree."""

    choices: NDArray[np.int64]  # (n, 5, 2): the predicted vector, then those of the four neighbours
    valid: NDArray[np.bool_]  # (n, 5)
    context: NDArray[np.int64]  # (n,)

    @classmethod
    def of(cls, offsets: Field, known: NDArray[np.bool_], points: Points) -> _Around:
        (rows, columns), (y, x) = known.shape, points
        choices = np.zeros((len(y), 5, 2), np.int64)
        valid = np.zeros((len(y), 5), bool)
        valid[:, 0] = True
        if not known.any():
            return cls(choices, valid, np.full(len(y), _START, np.int64))
        # A step's stride is the distance to the nearest known points; it is the same for all points of the step.
        stride = _COARSEST // 2
        while not ((y % stride == 0) & (x % stride == 0)).all():
            stride //= 2
        diagonal = bool(((y // stride) % 2 == 1).all() and ((x // stride) % 2 == 1).all())
        directions = ((-1, -1), (-1, 1), (1, -1), (1, 1)) if diagonal else ((-1, 0), (1, 0), (0, -1), (0, 1))
        for number, (dy, dx) in enumerate(directions, 1):
            ny, nx = y + dy * stride, x + dx * stride
            inside = (ny >= 0) & (ny < rows) & (nx >= 0) & (nx < columns)
            ny, nx = np.clip(ny, 0, rows - 1), np.clip(nx, 0, columns - 1)
            valid[:, number] = inside & known[ny, nx]
            choices[:, number] = offsets[ny, nx]
        there, four = valid[:, 1:, None], choices[:, 1:]
        count = there.sum(axis=1)
        largest = np.where(there, four, -(1 << 30)).max(axis=1)
        smallest = np.where(there, four, 1 << 30).min(axis=1)
        total = np.where(there, four, 0).sum(axis=1)
        # Without the outliers where there are enough: between mean and median.
        total = np.where(count > 2, total - largest - smallest, total)
        count = np.where(count > 2, count - 2, count)
        choices[:, 0] = np.where(count > 0, _rounded(total, np.maximum(count, 1)), 0)
        spread = np.where(count > 0, largest - smallest, 0).max(axis=1)
        return cls(choices, valid, np.digitize(spread, _SPREADS).astype(np.int64))


def _rounded(value: NDArray[np.int64], by: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Nearest integer of a quotient, halves up."""
    return (2 * value + by) // (2 * by)
