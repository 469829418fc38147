"""How a placement is sampled from a layer that is only good on its own grid of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images import resample
from fogline.common.images.codec import Placement

_EXACT = 1e-6  # pixels


@dataclass(frozen=True)
class Window:
    """The part of a layer that is wanted, in its pixels."""

    x: int
    y: int
    w: int
    h: int


@dataclass(frozen=True)
class Sampling:
    """The window of the layer that a placement needs, and what is done to it."""

    window: Window
    down: NDArray[np.float32] | None  # weights (rows of the placement, rows of the window); None: one for one
    across: NDArray[np.float32] | None

    @classmethod
    def of(cls, place: Placement, size: tuple[int, int]) -> Sampling:
        """For a placement of a layer of `size` (width, height)."""
        x0, y0, x1, y1 = place.source
        left, wide, across = _axis(place.w, x0 * size[0], x1 * size[0], size[0])
        top, tall, down = _axis(place.h, y0 * size[1], y1 * size[1], size[1])
        return cls(Window(left, top, wide, tall), down, across)

    def take(self, pixels: torch.Tensor, within: Window) -> torch.Tensor:
        """The placement's pixels (3, h, w) from those of a window around what it needs; they may overshoot a little."""
        x, y = self.window.x - within.x, self.window.y - within.y
        part = pixels[:, y : y + self.window.h, x : x + self.window.w]
        if self.across is not None:
            part = part @ torch.from_numpy(self.across.T).to(part.device)
        return part if self.down is None else torch.from_numpy(self.down).to(part.device) @ part


def _axis(count: int, low: float, high: float, length: int) -> tuple[int, int, NDArray[np.float32] | None]:
    """First pixel of the window, how many, and the weights, where pixels are not taken one for one."""
    first = round(low)
    if max(abs(low - first), abs(high - first - count)) < _EXACT:
        return first, count, None
    first, weights = resample.weights(count, low, high, length)
    return first, weights.shape[1], weights
