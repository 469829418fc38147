"""Views: rectangles of coded frames, decoded at the size that is asked for and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from fogline.common.errors import InputError
from fogline.common.images.codec import Placement
from fogline.common.images.regions import Region

_SLACK = 1e-3  # pixels that rounding may take an edge out of the frame


@dataclass(frozen=True)
class View:
    """What to show of a coded frame: a rectangle in its pixels, not necessarily whole ones, perhaps mirrored."""

    x: float
    y: float
    w: float
    h: float
    flip: bool = False  # left and right change sides

    def check(self, size: tuple[int, int]) -> None:
        """Raise InputError unless the view has an area and lies in a frame of `size` (width, height)."""
        width, height = size
        inside = (
            self.x >= -_SLACK
            and self.y >= -_SLACK
            and self.x + self.w <= width + _SLACK
            and self.y + self.h <= height + _SLACK
        )
        if not (inside and self.w > 0 and self.h > 0):  # also for NaN
            raise InputError(f"{self} has no area or leaves the frame of {width}x{height}; move it into the frame")


def place_view(region: Region, view: View, target: tuple[int, int]) -> Placement | None:
    """The target pixels whose centres a region covers, when `view` is shown at `target` (width, height), not mirrored.

    None where it covers none: such a layer need not be decoded. As `regions.place` is for whole frames, the source
    rectangle is that of whole target pixels.
    """
    x, x1, u0, u1 = _span(region[0], region[2], view.x, view.w / target[0], target[0])
    y, y1, v0, v1 = _span(region[1], region[3], view.y, view.h / target[1], target[1])
    if x1 <= x or y1 <= y:
        return None
    return Placement(x, y, x1 - x, y1 - y, (u0, v0, u1, v1))


def _span(start: int, length: int, origin: float, pitch: float, target: int) -> tuple[int, int, float, float]:
    # The centre of pixel i lies at origin + (i + 1/2) * pitch: first i at or beyond `start`.
    first = max(math.ceil((start - origin) / pitch - 0.5), 0)
    end = min(math.ceil((start + length - origin) / pitch - 0.5), target)
    return first, end, (origin + first * pitch - start) / length, (origin + end * pitch - start) / length
