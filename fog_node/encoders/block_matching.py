"""How far blocks of a frame are from a reference picture at any vectors: the inner loop of `latent`'s motion search.

The reference is kept at every quarter pixel, each of the sixteen phases as a plane of its own. So whatever a block is
held against is a slice of one of them, and a look-up for each block does for all of its pixels.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch.nn import functional

EDGE = 16  # pixels around a reference; a block's side at most, so that one beyond the edge is all edge
_CHUNK = 1 << 18  # samples that are looked up at once: 1 MiB, what a core's cache holds


@dataclass(frozen=True)
class Quarters:
    """A plane at every quarter pixel, bilinearly; beyond its edge, the edge."""

    samples: torch.Tensor  # (4, 4, H + 2 EDGE, W + 2 EDGE): vertical and horizontal phase, then whole pixels

    @classmethod
    def of(cls, plane: torch.Tensor) -> Quarters:
        """Of a plane (H, W)."""
        grown = functional.pad(plane[None, None], (EDGE, EDGE + 1, EDGE, EDGE + 1), mode="replicate")[0, 0]
        rows = torch.stack([torch.lerp(grown[:-1], grown[1:], phase / 4) for phase in range(4)])
        return cls(torch.stack([torch.lerp(rows[..., :-1], rows[..., 1:], phase / 4) for phase in range(4)], dim=1))

    @property
    def nbytes(self) -> int:
        """Bytes that it takes."""
        return self.samples.nbytes


class Blocks:
    """The blocks of a frame or of a region, at one level of the pyramid."""

    def __init__(
        self,
        plane: torch.Tensor,
        reference: Quarters,
        shape: tuple[int, int],
        side: int,
        level: int,
        origin: tuple[int, int],
    ) -> None:
        """`plane` (h, w) lies at `origin` (x, y, full-size pixels) and has `shape` (rows, columns) blocks."""
        (rows, columns), (h, w) = shape, plane.shape
        beyond = (0, columns * side - w, 0, rows * side - h)
        self._blocks = _cut(functional.pad(plane, beyond), shape, side)
        masks = _cut(functional.pad(torch.ones_like(plane), beyond), shape, side)
        self._masks, self._partial = masks, masks.amin((1, 2)) == 0
        self._any_partial = bool(self._partial.any())
        high, wide = reference.samples.shape[2:]
        self._stride, self._phase = wide, high * wide
        # Every block of samples, by where it begins.
        count = reference.samples.numel() - (side - 1) * (wide + 1)
        self._windows = reference.samples.as_strided((count, side, side), (1, wide, 1))
        self._last = wide - side, high - side
        self._side, self._level = side, level
        self._x = 4 * (torch.arange(columns).repeat(rows) * side + (origin[0] >> level) + EDGE)
        self._y = 4 * (torch.arange(rows).repeat_interleave(columns) * side + (origin[1] >> level) + EDGE)

    def errors(self, vectors: torch.Tensor, cells: torch.Tensor | None = None) -> torch.Tensor:
        """Squared errors (K, n), in full-size pixels, at vectors (2, K, n): x and y, whole quarter pixels.

        The n blocks are all, row by row, or those of the indices `cells`.
        """
        starts = self._starts(vectors.to(torch.int64), cells)
        blocks = self._blocks if cells is None else self._blocks[cells]
        partial: torch.Tensor | None = None
        if self._any_partial:
            found = self._partial if cells is None else self._partial[cells]
            partial = found.nonzero()[:, 0]
            masks = self._masks[partial if cells is None else cells[partial]]
        out = []
        for some in torch.split(starts, max(1, _CHUNK // blocks.numel())):
            difference = self._windows[some].sub_(blocks)
            if partial is not None:
                difference[:, partial] *= masks
            out.append(difference.square_().sum(dim=(2, 3)))
        return torch.cat(out) * (1 << 2 * self._level)

    def pairs(self, vectors: torch.Tensor, cells: torch.Tensor) -> torch.Tensor:
        """Squared errors (n,) of blocks `cells` (n,), each at its own of vectors (2, n)."""
        size = max(1, _CHUNK // self._side**2)
        parts = zip(torch.split(vectors, size, dim=1), torch.split(cells, size), strict=True)
        return torch.cat([self.errors(some[:, None], of)[0] for some, of in parts])

    def _starts(self, vectors: torch.Tensor, cells: torch.Tensor | None) -> torch.Tensor:
        x, y = (self._x, self._y) if cells is None else (self._x[cells], self._y[cells])
        x, y = (vectors[0] >> self._level) + x, (vectors[1] >> self._level) + y
        phase = (y & 3) * 4 + (x & 3)
        return phase * self._phase + (y >> 2).clamp(0, self._last[1]) * self._stride + (x >> 2).clamp(0, self._last[0])


def _cut(plane: torch.Tensor, shape: tuple[int, int], side: int) -> torch.Tensor:
    """Blocks (n, side, side) of a plane, row by row."""
    cut = plane.view(shape[0], side, shape[1], side).transpose(1, 2)
    return cut.reshape(-1, side, side)
