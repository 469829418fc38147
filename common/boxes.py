"""Object boxes, and the one place that decides whether a box is acceptable."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from fogline.common.errors import InputError

MAX_BOXES = 1024
MAX_LABEL_BYTES = 64


@dataclass(frozen=True)
class Box:
    """An axis-aligned box in pixels of the captured frame: 0-based top-left corner, width and height."""

    x: float
    y: float
    w: float
    h: float
    label: str = "object"

    @property
    def area(self) -> float:
        """Area in square pixels."""
        return self.w * self.h

    def scaled(self, sx: float, sy: float) -> Box:
        """The same box in a frame scaled by `sx` horizontally and `sy` vertically."""
        return Box(self.x * sx, self.y * sy, self.w * sx, self.h * sy, self.label)


def check_boxes(boxes: Iterable[Box], width: int, height: int, *, where: str) -> tuple[Box, ...]:
    """Refuse NaN, empty and out-of-frame boxes; clip what a rounding annotator left up to one pixel outside.

    `where` names the image in the error. Raises InputError that names the box, its value and the frame.
    """
    checked = []
    for index, box in enumerate(boxes):
        if index >= MAX_BOXES:
            raise InputError(f"{where}: more than {MAX_BOXES} boxes; split the image or drop boxes")
        if not all(math.isfinite(v) for v in (box.x, box.y, box.w, box.h)):
            raise InputError(
                f"{where}: box {index} {box} has a value that is not a finite number; fix the annotation", number=305
            )
        if box.w <= 0 or box.h <= 0:
            raise InputError(f"{where}: box {index} {box} has no area; width and height must be above 0", number=305)
        if len(box.label.encode()) > MAX_LABEL_BYTES:
            raise InputError(f"{where}: box {index}: label {box.label[:40]!r}… exceeds {MAX_LABEL_BYTES} bytes")
        if box.x < -1 or box.y < -1 or box.x + box.w > width + 1 or box.y + box.h > height + 1:
            raise InputError(
                f"{where}: box {index} {box} lies outside the {width}x{height} frame; fix or clip it", number=305
            )
        x0, y0 = max(0.0, box.x), max(0.0, box.y)
        x1, y1 = min(float(width), box.x + box.w), min(float(height), box.y + box.h)
        if x1 - x0 <= 0 or y1 - y0 <= 0:
            raise InputError(
                f"{where}: box {index} {box} lies outside the {width}x{height} frame; fix or clip it", number=305
            )
        checked.append(Box(x0, y0, x1 - x0, y1 - y0, box.label))
    return tuple(checked)
