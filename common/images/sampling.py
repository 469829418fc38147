"""How a placement is sampled from a layer that is only good on its own grid of pixels."""

from __future__ import annotations

from dataclasses import dataclass

import torch

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
    down: torch.Tensor | None  # weights (rows of the placement, rows of the window); None: one for one
    across: torch.Tensor | None  # (columns of the window, columns of the placement)

    def take(self, pixels: torch.Tensor, within: Window) -> torch.Tensor:
        """The placement's pixels (3, h, w) from those of a window around what it needs; they may overshoot a little."""
        x, y = self.window.x - within.x, self.window.y - within.y
        part = pixels[:, y : y + self.window.h, x : x + self.window.w]
        if self.across is not None:
            part = part @ self.across
        return part if self.down is None else self.down @ part


class Samplings:
    """The samplings of a batch: most of its placements share their weights, which are made and sent once."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._axes: dict[tuple[object, ...], tuple[int, int, torch.Tensor | None]] = {}

    def of(self, place: Placement, size: tuple[int, int]) -> Sampling:
        """For a placement of a layer of `size` (width, height)."""
        x0, y0, x1, y1 = place.source
        left, wide, across = self._axis("x", place.w, x0 * size[0], x1 * size[0], size[0])
        top, tall, down = self._axis("y", place.h, y0 * size[1], y1 * size[1], size[1])
        return Sampling(Window(left, top, wide, tall), down, across)

    def _axis(
        self, axis: str, count: int, low: float, high: float, length: int
    ) -> tuple[int, int, torch.Tensor | None]:
        """First pixel of the window, how many, and the weights, where pixels are not taken one for one."""
        key = axis, count, low, high, length
        if key not in self._axes:
            first = round(low)
            if max(abs(low - first), abs(high - first - count)) < _EXACT:
                self._axes[key] = first, count, None
            else:
                first, weights = resample.weights(count, low, high, length)
                matrix = torch.from_numpy(weights.T.copy() if axis == "x" else weights).to(self._device)
                self._axes[key] = first, weights.shape[1], matrix
        return self._axes[key]
