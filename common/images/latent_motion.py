"""The motion of a `latent` layer: where each block of a frame lies in its reference picture, and how that is coded.

A vector is (x, y) in quarter pixels, from the block's centre to the same place in the reference. A field is coded as the
difference to an affine motion of the whole frame, coarse grid first: each finer point is predicted from the four
around it that are known already, so that all points of a step are decoded together.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from fogline.common.images import static_rans
from fogline.common.images.latent_tables import MOTION

MAX_VECTOR = 1 << 13  # quarter pixels of a vector, the affine part included
AFFINE_UNIT = 8  # of an affine parameter to a pixel of displacement at the frame's edge
_COARSEST = 8

Field = NDArray[np.int32]  # (rows, columns, 2): x, y in quarter pixels


def blocks_of(length: int, block: int) -> int:
    """Blocks along a side."""
    return -(-length // block)


def affine_field(affine: tuple[int, ...], width: int, height: int, block: int) -> Field:
    """Vectors of an affine motion at the blocks' centres, integers only.

    `affine` is (a, b, c, d, e, f) in AFFINE_UNIT parts of a pixel: x moves by a + b u + c v, y by d + e u + f v, where u
    and v run from -1 to 1 over the frame's width and in the same unit over its height.
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
        predicted, spread = _predict(offsets, known, points)
        wanted = offsets[points] - predicted
        previous = np.zeros(len(wanted), np.int64)
        for axis in (0, 1):
            encoder.values(MOTION[axis, spread, np.minimum(previous, 1)], np.abs(wanted[:, axis]))
            encoder.signs(wanted[:, axis][wanted[:, axis] != 0] < 0)
            previous = np.abs(wanted[:, axis])
        known[points] = True


def read_field(decoder: static_rans.Decoder, rows: int, columns: int) -> Field:
    """The field that `write_field` coded. Values are bounded by the coder's largest number."""
    offsets = np.zeros((rows, columns, 2), np.int32)
    known = np.zeros((rows, columns), bool)
    for points in _steps(rows, columns):
        predicted, spread = _predict(offsets, known, points)
        previous = np.zeros(len(predicted), np.int64)
        for axis in (0, 1):
            found = decoder.values(MOTION[axis, spread, np.minimum(previous, 1)])
            previous = found.copy()
            nonzero = found != 0
            found[nonzero] *= np.where(decoder.signs(int(nonzero.sum())), -1, 1)
            offsets[(*points, axis)] = np.clip(predicted[:, axis] + found, -4 * MAX_VECTOR, 4 * MAX_VECTOR)
        known[points] = True
    return offsets


def _steps(rows: int, columns: int) -> Iterator[tuple[NDArray[np.int64], NDArray[np.int64]]]:
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


def _predict(
    offsets: Field, known: NDArray[np.bool_], points: tuple[NDArray[np.int64], NDArray[np.int64]]
) -> tuple[NDArray[np.int32], NDArray[np.int64]]:
    """Predictions (n, 2) from the nearest known points in eight directions, and how far those disagree, in classes."""
    rows, columns = known.shape
    y, x = points
    if not known.any():
        return np.zeros((len(y), 2), np.int32), np.zeros(len(y), np.int64)
    # The step's stride is the distance to the nearest known point; it is the same for all points of a step.
    stride = _COARSEST // 2
    while stride > 1 and not ((y % stride == 0) & (x % stride == 0)).all():
        stride //= 2
    diagonal = bool(((y // stride) % 2 == 1).all() and ((x // stride) % 2 == 1).all())
    around = ((-1, -1), (-1, 1), (1, -1), (1, 1)) if diagonal else ((-1, 0), (1, 0), (0, -1), (0, 1))
    total = np.zeros((len(y), 2), np.int64)
    count = np.zeros((len(y), 1), np.int64)
    largest = np.full((len(y), 2), -(1 << 30), np.int64)
    smallest = -largest
    for dy, dx in around:
        ny, nx = y + dy * stride, x + dx * stride
        inside = (ny >= 0) & (ny < rows) & (nx >= 0) & (nx < columns)
        ny, nx = np.clip(ny, 0, rows - 1), np.clip(nx, 0, columns - 1)
        use = (inside & known[ny, nx])[:, None]
        value = offsets[ny, nx].astype(np.int64)
        total += np.where(use, value, 0)
        count += use
        largest = np.where(use, np.maximum(largest, value), largest)
        smallest = np.where(use, np.minimum(smallest, value), smallest)
    trimmed = np.where(count > 2, total - largest - smallest, total)  # without the outliers: between mean and median
    predicted = np.where(count > 0, _rounded(trimmed, np.maximum(np.where(count > 2, count - 2, count), 1)), 0)
    spread = np.where(count > 0, largest - smallest, 0).max(axis=1)
    return predicted.astype(np.int32), np.digitize(spread, (1, 4, 16))


def _rounded(value: NDArray[np.int64], by: NDArray[np.int64] | int) -> NDArray[np.int64]:
    """Nearest integer of a quotient, halves up."""
    return (2 * value + by) // (2 * by)
