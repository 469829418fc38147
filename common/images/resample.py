"""Separable resampling on the device that decodes: a raster to any size, from any rectangle of it."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_SUPPORT = 2.0  # of the bicubic kernel, in source pixels where nothing is reduced
_A = -0.5


def weights(count: int, low: float, high: float, length: int) -> tuple[int, NDArray[np.float32]]:
    """Weights for `count` samples that fill `low` to `high` (in source pixels) of a line of `length` pixels.

    Bicubic, widened where the line is reduced so that nothing aliases; weights beyond the line's ends go to the rest.
    Returns the first source pixel that is needed, and weights (count, needed pixels).
    """
    scale = (high - low) / count
    width = max(scale, 1.0)
    centres = low + (np.arange(count) + 0.5) * scale
    first = int(np.clip(np.floor(centres[0] - _SUPPORT * width), 0, length - 1))
    end = int(np.clip(np.ceil(centres[-1] + _SUPPORT * width), first + 1, length))
    positions = np.arange(first, end) + 0.5
    out = _bicubic((positions[None] - centres[:, None]) / width)
    lost = out.sum(axis=1) == 0  # a sample beyond the line's end
    out[lost, np.abs(positions[None] - centres[lost, None]).argmin(axis=1)] = 1
    normalised: NDArray[np.float32] = (out / out.sum(axis=1, keepdims=True)).astype(np.float32)
    return first, normalised


def _bicubic(x: NDArray[np.float64]) -> NDArray[np.float64]:
    x = np.abs(x)
    near = ((_A + 2) * x - (_A + 3)) * x**2 + 1
    far = ((x - 5) * x + 8) * x * _A - 4 * _A
    return np.where(x < 1, near, np.where(x < 2, far, 0.0))
