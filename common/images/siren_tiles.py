"""Which pixels of a placement each network of a grid fills, and where in its part of the region they lie."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.codec import Placement
from fogline.common.images.siren_payload import Grid


@dataclass(frozen=True)
class Tile:
    """The pixels that one network fills: a rectangle of the placement, and the positions of its columns and rows."""

    network: int  # in the grid, row by row
    x: int
    y: int
    xs: NDArray[np.float32]  # (w,) pixel centres in [-1, 1] over the network's part of the region
    ys: NDArray[np.float32]  # (h,)


def tiles(place: Placement, grid: Grid) -> Iterator[Tile]:
    """The tiles of a placement; networks that no pixel centre falls to are left out."""
    x0, y0, x1, y1 = place.source
    columns = _parts(place.w, x0, x1, grid.columns)
    for row, y, ys in _parts(place.h, y0, y1, grid.rows):
        for column, x, xs in columns:
            yield Tile(row * grid.columns + column, x, y, xs, ys)


@lru_cache(maxsize=1 << 12)  # whole frames and regions of one size come again and again
def _parts(count: int, low: float, high: float, parts: int) -> tuple[tuple[int, int, NDArray[np.float32]], ...]:
    """Index, first pixel and positions of each part that `count` pixels between `low` and `high` fall to."""
    at = (low + (np.arange(count) + 0.5) / count * (high - low)) * parts
    part = np.floor(at).clip(0, parts - 1)  # a pixel may lie half of itself outside the region
    found = []
    for index in range(parts):
        inside = np.flatnonzero(part == index)
        if inside.size:
            positions = (2 * (at[inside] - index) - 1).astype(np.float32)
            positions.flags.writeable = False
            found.append((index, int(inside[0]), positions))
    return tuple(found)
