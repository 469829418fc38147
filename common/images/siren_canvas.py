"""Where the values of a batch's networks go: the pixels of all layers side by side in one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from fogline.common.images.codec import Placement
from fogline.common.images.record import LayerKind
from fogline.common.images.siren_tiles import Tile


class Canvas:
    """Takes values tile by tile and gives layers.

    A GPU spends more on starting a copy than on copying a tile, so there all tiles of a group go to their pixels in one
    indexed copy, padding to a pixel that nobody sees; a CPU copies tile by tile. `indexed` says otherwise.
    """

    def __init__(
        self,
        kinds: Sequence[LayerKind],
        places: Sequence[Placement],
        device: torch.device,
        *,
        indexed: bool | None = None,
    ) -> None:
        self._kinds, self._places, self._device = kinds, places, device
        self._indexed = device.type != "cpu" if indexed is None else indexed
        order = sorted(range(len(places)), key=lambda i: kinds[i])  # backgrounds first: one range for each kind
        self._start = [0] * len(places)
        total = self._backgrounds = 0
        for i in order:
            self._start[i] = total
            total += places[i].w * places[i].h
            if kinds[i] is LayerKind.BACKGROUND:
                self._backgrounds = total
        self._flat = torch.empty(3, total + 1, device=device)

    def fill(self, members: Sequence[tuple[int, Tile]], values: torch.Tensor) -> None:
        """Put `values` (N, 3, h, w) of N tiles, each with its layer's index, into their pixels; the rest is padding."""
        if not self._indexed:
            for (i, tile), image in zip(members, values, strict=True):
                w, h = len(tile.xs), len(tile.ys)
                self._layer(i)[:, tile.y : tile.y + h, tile.x : tile.x + w] = image[:, :h, :w]
            return
        rows = [
            (self._start[i] + tile.y * self._places[i].w + tile.x, self._places[i].w, len(tile.ys), len(tile.xs))
            for i, tile in members
        ]
        first, stride, h, w = send(np.array(rows, np.int64).T, self._device)[:, :, None, None]
        y = torch.arange(values.shape[2], device=self._device)[:, None]
        x = torch.arange(values.shape[3], device=self._device)
        nobody = self._flat.shape[1] - 1
        pixels = torch.where((y < h) & (x < w), first + y * stride + x, nobody)
        self._flat.index_copy_(1, pixels.flatten(), values.transpose(0, 1).flatten(1))

    def layers(self) -> list[torch.Tensor]:
        """Every layer (3, h, w): backgrounds in [0, 1], objects in [-1, 1]."""
        self._flat[:, : self._backgrounds].add_(1).mul_(0.5).clamp_(0, 1)
        self._flat[:, self._backgrounds :].clamp_(-1, 1)
        return [self._layer(i) for i in range(len(self._places))]

    def _layer(self, index: int) -> torch.Tensor:
        place, start = self._places[index], self._start[index]
        return self._flat[:, start : start + place.w * place.h].view(3, place.h, place.w)


def send(array: np.ndarray[tuple[int, ...], np.dtype[np.generic]], device: torch.device) -> torch.Tensor:
    """An array as a tensor on the device; the host does not wait for the copy to a GPU."""
    tensor = torch.from_numpy(np.ascontiguousarray(array))
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor.to(device)
