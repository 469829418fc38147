"""How close a decoded image is to its original: PSNR over the whole frame, inside boxes and outside them.

Convention: the mean squared error is taken over the pixels and channels of one image's area, turned into dB, and images
are averaged in dB. Inside means every pixel that a box touches, which is what an object layer codes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.regions import pixel_region

MAX_DB = 100.0  # reported for identical pixels, so that a mean stays finite


@dataclass(frozen=True)
class Quality:
    """PSNR in dB. `object` is None without boxes, `background` None where boxes cover the whole frame."""

    full: float
    background: float | None
    object: float | None


def measure(
    original: NDArray[np.uint8], decoded: NDArray[np.generic], boxes: Iterable[tuple[float, float, float, float]]
) -> Quality:
    """Compare two images (H, W, 3) in the range 0 to 255; boxes x, y, w, h in their pixels. `decoded` may be float."""
    height, width = original.shape[:2]
    inside = np.zeros((height, width), bool)
    for box in boxes:
        x, y, w, h = pixel_region(box, width, height)
        inside[y : y + h, x : x + w] = True
    errors = np.square(original.astype(np.float64) - decoded.astype(np.float64)).mean(axis=2)
    return Quality(
        full=_db(errors),
        background=None if inside.all() else _db(errors[~inside]),
        object=_db(errors[inside]) if inside.any() else None,
    )


def mean(qualities: Sequence[Quality]) -> Quality:
    """The mean in dB over images; each figure over those that have it. Needs at least one image."""
    return Quality(
        full=sum(q.full for q in qualities) / len(qualities),
        background=_mean([q.background for q in qualities]),
        object=_mean([q.object for q in qualities]),
    )


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _db(errors: NDArray[np.float64]) -> float:
    error = float(errors.mean())
    return MAX_DB if error == 0 else min(MAX_DB, 10 * math.log10(255**2 / error))
