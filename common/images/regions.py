"""Where layers lie: from boxes to the regions that encoders code, and from regions to the pixels of a target image."""

from __future__ import annotations

import math
from collections.abc import Iterable

from fogline.common.images.codec import Placement
from fogline.common.images.container import MAX_LAYERS, coded_pixels

Region = tuple[int, int, int, int]  # x, y, w, h in whole pixels


def pixel_region(box: tuple[float, float, float, float], width: int, height: int) -> Region:
    """The pixels of a `width` x `height` frame that a box touches; never empty."""
    x, y, w, h = box
    x0, y0 = min(max(0, math.floor(x)), width - 1), min(max(0, math.floor(y)), height - 1)
    x1, y1 = max(x0 + 1, min(width, math.ceil(x + w))), max(y0 + 1, min(height, math.ceil(y + h)))
    return x0, y0, x1 - x0, y1 - y0


def object_regions(boxes: Iterable[tuple[float, float, float, float]], width: int, height: int) -> list[Region]:
    """The regions to code as object layers, largest first.

    A region inside another one is left out, since that layer shows it already; so are those beyond what a record may
    hold (hundreds of frame-sized boxes).
    """
    found = {pixel_region(box, width, height) for box in boxes}
    kept: list[Region] = []
    pixels, limit = width * height, coded_pixels(width, height)
    for region in sorted(found, key=lambda r: (-r[2] * r[3], r)):
        if any(_inside(region, other) for other in kept):
            continue
        if len(kept) + 2 > MAX_LAYERS or pixels + region[2] * region[3] > limit:
            continue
        pixels += region[2] * region[3]
        kept.append(region)
    return kept


def place(region: Region, size: tuple[int, int], target: tuple[int, int]) -> Placement | None:
    """The target pixels whose centres a region covers, when a frame of `size` is shown at `target` (width, height).

    None where it covers none. The placement's source rectangle is that of whole target pixels, so at another scale
    its edges may lie up to half a target pixel outside the region; the pixels' centres never do.
    """
    x, x1, u0, u1 = _span(region[0], region[2], size[0], target[0])
    y, y1, v0, v1 = _span(region[1], region[3], size[1], target[1])
    if x1 <= x or y1 <= y:
        return None
    return Placement(x, y, x1 - x, y1 - y, (u0, v0, u1, v1))


def _span(start: int, length: int, full: int, target: int) -> tuple[int, int, float, float]:
    # The centre of pixel i lies at (2i + 1) / 2 * full / target: first i at or beyond `start`, in integers.
    first = -(-(2 * start * target - full) // (2 * full))
    end = -(-(2 * (start + length) * target - full) // (2 * full))
    first, end = max(first, 0), min(end, target)
    return first, end, (first * full / target - start) / length, (end * full / target - start) / length


def _inside(inner: Region, outer: Region) -> bool:
    return (
        outer[0] <= inner[0]
        and outer[1] <= inner[1]
        and inner[0] + inner[2] <= outer[0] + outer[2]
        and inner[1] + inner[3] <= outer[1] + outer[3]
    )
