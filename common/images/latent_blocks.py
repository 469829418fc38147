"""The coefficients of a `latent` layer: which blocks have any, how far each goes, and their values, entropy-coded.

A plane is cut into square blocks of cosine-transform coefficients. A block's *reach* says how many anti-diagonals of
it, from the constant towards higher frequencies, are coded; most are 0, which costs a fraction of a bit. Reaches are
coded in the two colours of a chessboard, the second knowing its four neighbours; coefficients diagonal by diagonal, all
blocks together, each under a table chosen by its neighbours of lower frequency. Nothing waits for what is coded in the
same step.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images import static_rans
from fogline.common.images.latent_tables import COEFFICIENTS, REACH

Points = tuple[NDArray[Any], ...]  # rows and columns

LIMIT = 4095  # largest magnitude of a coefficient
_DIAGONAL_CLASS = np.array([0, 1, 2, 3, 3, 4, 4, 5, 5, 5, 6] + [7] * 32)
_NEAR_CLASS = np.array([0, 1, 2, 3, 3, 4, 4, 5])


@dataclass(frozen=True)
class Plane:
    """Quantised coefficients of one plane, without the blocks that are zero."""

    rows: int  # of blocks
    columns: int
    size: int  # of a block's side
    index: NDArray[np.int32]  # (n,) blocks that have coefficients, row by row
    values: NDArray[np.int16]  # (n, size, size), vertical frequency first


def write_plane(encoder: static_rans.Encoder, plane: Plane, kind: int) -> None:
    """Code a plane; `kind` picks the tables: 0 luma and 1 chroma of a background, 2 and 3 of an object."""
    magnitudes = np.abs(plane.values.astype(np.int64))
    reaches = np.zeros(plane.rows * plane.columns, np.int64)
    reaches[plane.index] = reach_of(magnitudes)
    grid = reaches.reshape(plane.rows, plane.columns)
    for colour in (0, 1):
        points, context = _reach_contexts(grid, colour)
        encoder.values(REACH[kind, context], grid[points])
    own = reaches[plane.index]
    for d in range(int(own.max(initial=0))):
        active, at = np.flatnonzero(own > d), diagonal(plane.size, d)
        context = coefficient_contexts(magnitudes[active], at, d, own[active])
        found = magnitudes[active][:, at[0], at[1]]
        encoder.values(COEFFICIENTS[kind, context], found)
        values = plane.values[active][:, at[0], at[1]]
        encoder.signs(values[values != 0] < 0)


def read_plane(decoder: static_rans.Decoder, rows: int, columns: int, size: int, kind: int) -> Plane:
    """The plane that `write_plane` coded. Raises FormatError where blocks reach further than they can."""
    grid = np.zeros((rows, columns), np.int64)
    for colour in (0, 1):
        points, context = _reach_contexts(grid, colour)
        grid[points] = decoder.values(REACH[kind, context])
    if int(grid.max(initial=0)) > 2 * size - 1:
        raise FormatError(f"latent layer is malformed: a block of side {size} has {int(grid.max())} diagonals")
    index = np.flatnonzero(grid).astype(np.int32)
    own = grid.ravel()[index]
    ends = np.add.outer(np.arange(size), np.arange(size)).ravel()
    decoder.expect(int(np.searchsorted(np.sort(ends), own, side="left").sum()))
    magnitudes = np.zeros((len(index), size, size), np.int64)
    values = np.zeros((len(index), size, size), np.int16)
    for d in range(int(own.max(initial=0))):
        active, at = np.flatnonzero(own > d), diagonal(size, d)
        context = coefficient_contexts(magnitudes[active], at, d, own[active])
        found = decoder.values(COEFFICIENTS[kind, context])
        if int(found.max(initial=0)) > LIMIT:
            raise FormatError(f"latent layer is malformed: a coefficient of {int(found.max())}, at most {LIMIT}")
        signed = found.copy()
        signed[found != 0] *= np.where(decoder.signs(int((found != 0).sum())), -1, 1)
        magnitudes[active[:, None], at[0][None], at[1][None]] = found
        values[active[:, None], at[0][None], at[1][None]] = signed
    return Plane(rows, columns, size, index, values)


def reach_of(magnitudes: NDArray[np.int64]) -> NDArray[np.int64]:
    """Diagonals up to the last coefficient that is not zero, for blocks (n, size, size)."""
    size = magnitudes.shape[-1]
    ends = np.add.outer(np.arange(size), np.arange(size)) + 1
    out: NDArray[np.int64] = np.where(magnitudes > 0, ends, 0).max(axis=(1, 2), initial=0)
    return out


def diagonal(size: int, d: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Rows and columns of the coefficients of anti-diagonal `d`."""
    rows = np.arange(max(0, d - size + 1), min(d, size - 1) + 1)
    return rows, d - rows


def coefficient_contexts(
    magnitudes: NDArray[np.int64], at: tuple[NDArray[np.int64], NDArray[np.int64]], d: int, reach: NDArray[np.int64]
) -> NDArray[np.int64]:
    """Contexts (n, m) of the m coefficients of diagonal `d` in n blocks: frequency, lower neighbours, last diagonal."""
    v, u = at

    def lower(dv: int, du: int) -> NDArray[np.int64]:
        inside = (v >= dv) & (u >= du)
        out: NDArray[np.int64] = magnitudes[:, np.maximum(v - dv, 0), np.maximum(u - du, 0)] * inside
        return out

    near = 2 * (lower(1, 0) + lower(0, 1)) + lower(1, 1) + lower(2, 0) + lower(0, 2)
    last = (reach - 1 == d)[:, None]
    out: NDArray[np.int64] = (_DIAGONAL_CLASS[d] * 6 + _NEAR_CLASS[np.minimum(near, 7)]) * 2 + last
    return out


def block_contexts(magnitudes: NDArray[np.int64], reach: NDArray[np.int64]) -> NDArray[np.int64]:
    """`coefficient_contexts` of all coefficients of blocks (n, size, size) at once, for an encoder."""
    size = magnitudes.shape[-1]
    padded = np.pad(magnitudes, ((0, 0), (2, 0), (2, 0)))
    near = (
        2 * (padded[:, 1:-1, 2:] + padded[:, 2:, 1:-1])
        + padded[:, 1:-1, 1:-1]
        + padded[:, :-2, 2:]
        + padded[:, 2:, :-2]
    )
    ends = np.add.outer(np.arange(size), np.arange(size))
    last = reach[:, None, None] - 1 == ends
    out: NDArray[np.int64] = (_DIAGONAL_CLASS[ends] * 6 + _NEAR_CLASS[np.minimum(near, 7)]) * 2 + last
    return out


def _reach_contexts(grid: NDArray[np.int64], colour: int) -> tuple[Points, NDArray[np.int64]]:
    """The blocks of one colour of the chessboard and their contexts."""
    rows, columns = grid.shape
    points: Points = np.nonzero(np.add.outer(np.arange(rows), np.arange(columns)) % 2 == colour)
    if colour == 0:
        return points, np.zeros(len(points[0]), np.int64)
    padded = np.pad(grid, 1)
    around: NDArray[np.int64] = padded[:-2, 1:-1] + padded[2:, 1:-1] + padded[1:-1, :-2] + padded[1:-1, 2:]
    return points, np.digitize(around[points], (1, 3, 6, 11)).astype(np.int64) + 1
