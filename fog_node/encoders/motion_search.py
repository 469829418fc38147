"""Where the blocks of a frame lie in a reference picture: the search half of `latent`.

A frame's affine motion is found first (phase correlation for the translation, then robust Gauss-Newton from coarse to
fine), then a field of block vectors that minimises squared error plus what its vectors cost. All blocks are searched
together: a candidate is one image-wide sampling of the reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fogline.common.images.latent_motion import AFFINE_UNIT, MAX_VECTOR, Field, affine_field, blocks_of

_LEVELS = 4
_UNIT = 4.0  # a vector's units in a pixel
_MIN_SIDE = 3  # of a plane that has a slope
_MIN_OVERLAP = 0.2  # of the frame, for an affine motion to be believed
_MERGE_BITS, _NEW_BITS = 1.5, 0.3


@dataclass(frozen=True)
class _Stage:
    """One round of the search: offsets of -reach to reach strides around the vector found so far."""

    level: int  # of the pyramid
    reach: int
    stride: int  # quarter pixels
    strictness: float  # of the vectors' cost; coarse levels show less of the error


_FRAME_STAGES = (
    _Stage(3, 4, 32, 0.02), _Stage(2, 1, 16, 0.1), _Stage(1, 1, 8, 0.3), _Stage(0, 1, 4, 0.5), _Stage(0, 1, 2, 1.0),
    _Stage(0, 1, 1, 1.0),
)  # fmt: skip


def pyramid(luma: torch.Tensor) -> list[torch.Tensor]:
    """A plane (H, W) at full, half, quarter and eighth size."""
    out = [luma]
    for _ in range(_LEVELS - 1):
        out.append(functional.avg_pool2d(out[-1][None, None], 2, ceil_mode=True, count_include_pad=False)[0, 0])
    return out


def affine_motion(current: Sequence[torch.Tensor], reference: Sequence[torch.Tensor]) -> tuple[int, ...]:
    """The affine motion between two pyramids, in the units of `affine_field`."""
    best: tuple[float, torch.Tensor] | None = None
    for x, y in {(0.0, 0.0), _translation(current[2], reference[2])}:
        start = current[0].new_tensor([x / 2, 0, 0, y / 2, 0, 0])
        cost, found = _refine(current[3], reference[3], start, 10)
        if best is None or cost < best[0]:
            best = cost, found
    assert best is not None
    parameters = best[1]
    for level in (2, 1):
        parameters = _refine(current[level], reference[level], parameters * 2, 5)[1]
    numbers = (parameters * 2 * AFFINE_UNIT).round().clamp(-MAX_VECTOR, MAX_VECTOR).tolist()
    return tuple(int(n) for n in numbers)


def frame_field(
    current: Sequence[torch.Tensor],
    reference: Sequence[torch.Tensor],
    affine: tuple[int, ...],
    block: int,
    price: float,
    before: Field | None,
) -> Field:
    """Differences to the affine motion for each block of a frame.

    `reference` is its pyramid at quarter pixels (`fine`). `price` is squared error for a bit. `before` may be the
    vectors of a frame like this one, which are tried.
    """
    height, width = current[0].shape
    base = torch.from_numpy(affine_field(affine, width, height, block)).float()
    previous = None if before is None else torch.from_numpy(before).float() - base
    search = _Search(current, reference, base, block, (0, 0))
    offsets = torch.zeros_like(base)
    for stage in _FRAME_STAGES:
        extra = [torch.zeros_like(offsets), -base] if stage.level == 3 else []
        extra += [previous] if previous is not None else []
        offsets = search.improve(offsets, stage, price * stage.strictness, extra)
    return _bounded(offsets, base)


def region_field(
    current: torch.Tensor,
    reference: torch.Tensor,
    origin: tuple[int, int],
    start: tuple[int, int],
    block: int,
    price: float,
) -> tuple[tuple[int, ...], Field]:
    """Motion of a region (h, w) of luma: its translation (as an affine motion), and each block's difference to it.

    `reference` is the whole reference at quarter pixels (`fine`); `origin` is the region's place in the frame,
    `start` a vector to begin with, in quarter pixels. `price` is squared error for a bit.
    """
    h, w = current.shape
    shape = blocks_of(h, block), blocks_of(w, block), 2
    search = _Search([current], [reference], torch.zeros(shape), block, origin)
    vector = torch.tensor(start, dtype=torch.float32)
    for stride, reach in ((16, 3), (4, 4), (2, 1), (1, 1)):
        around = [vector + vector.new_tensor([x * stride, y * stride]) for y, x in _square(reach)]
        errors = torch.stack([search.error(one.expand(shape), 0).sum() for one in around])
        vector = around[int(errors.argmin())]
    unit = AFFINE_UNIT / _UNIT
    affine = (int(vector[0] * unit), 0, 0, int(vector[1] * unit), 0, 0)
    base = torch.from_numpy(affine_field(affine, w, h, block)).float()
    search = _Search([current], [reference], base, block, origin)
    offsets = torch.zeros(shape)
    for stride in (8, 4, 2, 1):
        offsets = search.improve(offsets, _Stage(0, 1, stride, 1.0), price, [])
    return affine, _bounded(offsets, base)


class _Search:
    """Blocks of one frame or region on their way to their vectors."""

    def __init__(
        self,
        current: Sequence[torch.Tensor],
        reference: Sequence[torch.Tensor],
        base: torch.Tensor,
        block: int,
        origin: tuple[int, int],
    ) -> None:
        rows, columns = base.shape[:2]
        self._base = base
        self._levels = [
            _Level(plane, whole, (rows, columns), block >> level, level, origin)
            for level, (plane, whole) in enumerate(zip(current, reference, strict=True))
        ]
        self._colour = (torch.arange(rows)[:, None] + torch.arange(columns)) % 2

    def error(self, offsets: torch.Tensor, level: int) -> torch.Tensor:
        """Squared error of every block (rows, columns), in full-size pixels."""
        return self._levels[level].error(self._base + offsets)

    def improve(self, offsets: torch.Tensor, stage: _Stage, price: float, extra: list[torch.Tensor]) -> torch.Tensor:
        """Try the stage's offsets around each vector, then the neighbours' and the most frequent vectors."""
        around = [offsets + offsets.new_tensor([x * stage.stride, y * stage.stride]) for y, x in _square(stage.reach)]
        offsets = self._choose(offsets, [*around, *extra], stage.level, price, None)
        for colour in (0, 1):  # neighbours' costs depend on each other: one colour of a chessboard at a time
            near = _neighbours(offsets)
            candidates = [*near.unbind(-1), *_frequent(offsets)]
            offsets = self._choose(offsets, candidates, stage.level, price, self._colour == colour)
        return offsets

    def _choose(
        self, offsets: torch.Tensor, candidates: list[torch.Tensor], level: int, price: float, only: torch.Tensor | None
    ) -> torch.Tensor:
        near = _neighbours(offsets)
        best = self.error(offsets, level) + price * _bits(offsets, near)
        chosen = offsets
        for candidate in candidates:
            cost = self.error(candidate, level) + price * _bits(candidate, near)
            better = cost < best - 1e-3
            if only is not None:
                better &= only
            best = torch.where(better, cost, best)
            chosen = torch.where(better[..., None], candidate, chosen)
        return chosen


class _Level:
    """One level of the pyramid: the frame's blocks, and the reference at quarter pixels: to sample is to index."""

    def __init__(
        self,
        plane: torch.Tensor,
        reference: torch.Tensor,
        shape: tuple[int, int],
        side: int,
        level: int,
        origin: tuple[int, int],
    ) -> None:
        (rows, columns), (h, w) = shape, plane.shape
        grown = functional.pad(plane, (0, columns * side - w, 0, rows * side - h))
        self._blocks = grown.view(rows, side, columns, side)
        mask = functional.pad(torch.ones_like(plane), (0, columns * side - w, 0, rows * side - h))
        self._mask = None if grown.shape == plane.shape else mask.view(rows, side, columns, side)
        self._reference, self._width = reference.reshape(-1), reference.shape[1]
        self._last = reference.shape[1] - 1, reference.shape[0] - 1
        self._scale = 1 << level
        self._x = 4 * (torch.arange(columns * side).view(columns, side) + origin[0] // self._scale)
        self._y = 4 * (torch.arange(rows * side).view(rows, side) + origin[1] // self._scale)

    def error(self, vectors: torch.Tensor) -> torch.Tensor:
        """Squared error of every block (rows, columns), in full-size pixels."""
        at = torch.div(vectors, self._scale, rounding_mode="floor").to(torch.int64)
        x = (at[:, :, None, 0] + self._x).clamp_(0, self._last[0])  # (rows, columns, side)
        y = (at[:, None, :, 1] + self._y[:, :, None]).clamp_(0, self._last[1])  # (rows, side, columns)
        index = (y * self._width)[..., None] + x[:, None]
        error = (self._reference[index] - self._blocks).square_()
        if self._mask is not None:
            error *= self._mask
        return error.sum(dim=(1, 3)) * self._scale**2


def fine(plane: torch.Tensor) -> torch.Tensor:
    """A plane (H, W) sampled at every quarter pixel, bilinearly: (4 H - 3, 4 W - 3)."""
    h, w = plane.shape
    size = 4 * h - 3, 4 * w - 3
    return functional.interpolate(plane[None, None], size=size, mode="bilinear", align_corners=True)[0, 0]


def _bits(offsets: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """About what vectors cost, given the four around each: little where they equal one of them."""
    middle = (near.sum(-1) - near.amax(-1) - near.amin(-1)) / 2
    new = (2 * torch.log2(1 + (offsets - middle).abs()) + _NEW_BITS).sum(-1)
    merged = _MERGE_BITS + 2.5 * torch.log2(1 + (offsets[..., None] - near).abs().sum(-2).amin(-1))
    return torch.minimum(new, merged)


def _neighbours(offsets: torch.Tensor) -> torch.Tensor:
    """Left, upper, right and lower vectors (rows, columns, 2, 4)."""
    padded = functional.pad(offsets.permute(2, 0, 1)[None], (1, 1, 1, 1), mode="replicate")[0].permute(1, 2, 0)
    return torch.stack([padded[1:-1, :-2], padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1]], dim=-1)


def _frequent(offsets: torch.Tensor) -> Iterator[torch.Tensor]:
    """The three most frequent vectors, everywhere."""
    found, counts = torch.unique(offsets.reshape(-1, 2), dim=0, return_counts=True)
    for index in counts.topk(min(3, len(counts))).indices:
        yield found[index].expand_as(offsets)


def _square(reach: int) -> Iterator[tuple[int, int]]:
    return ((y, x) for y in range(-reach, reach + 1) for x in range(-reach, reach + 1))


def _bounded(offsets: torch.Tensor, base: torch.Tensor) -> Field:
    total = (base + offsets).clamp(-MAX_VECTOR, MAX_VECTOR)
    most = MAX_VECTOR - 1  # so that a difference of two has at most 15 bits
    out: Field = (total - base).round().clamp(-most, most).to(torch.int32).numpy()
    return out


def _sample(plane: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    """Bilinear samples of a plane (H, W) at pixel positions; beyond its edge, the edge."""
    h, w = plane.shape
    at = torch.stack([(x + 0.5) * (2 / w) - 1, (y + 0.5) * (2 / h) - 1], dim=-1)
    return functional.grid_sample(plane[None, None], at[None], padding_mode="border", align_corners=False)[0, 0]


def _translation(current: torch.Tensor, reference: torch.Tensor) -> tuple[float, float]:
    """Displacement of the strongest phase correlation, in pixels of these planes."""
    h, w = current.shape
    window = torch.hann_window(h, periodic=False)[:, None] * torch.hann_window(w, periodic=False)
    size = (2 * h, 2 * w)
    a, b = (torch.fft.rfft2((plane - plane.mean()) * window, s=size) for plane in (current, reference))
    power = b * a.conj()
    surface = torch.fft.irfft2(power / (power.abs() + 1e-3 * power.abs().mean() + 1e-9), s=size)
    smooth = functional.avg_pool2d(functional.pad(surface[None, None], (1, 1, 1, 1), mode="circular"), 3, 1)[0, 0]
    y, x = divmod(int(smooth.argmax()), size[1])
    return float(x - size[1] if x >= w else x), float(y - size[0] if y >= h else y)


def _refine(
    current: torch.Tensor, reference: torch.Tensor, parameters: torch.Tensor, rounds: int
) -> tuple[float, torch.Tensor]:
    """Gauss-Newton on a robust (Cauchy) error; the best cost and its parameters."""
    h, w = current.shape
    if min(h, w) < _MIN_SIDE:
        return float("inf"), parameters
    x, y = torch.arange(w).expand(h, w), torch.arange(h)[:, None].expand(h, w)
    u, v = (x + 0.5 - w / 2) * (2 / w), (y + 0.5 - h / 2) * (2 / w)
    best = float("inf"), parameters
    for turn in range(rounds + 1):
        a, b, c, d, e, f = parameters
        fx, fy = x + a + b * u + c * v, y + d + e * u + f * v
        inside = (fx >= 0) & (fx <= w - 1) & (fy >= 0) & (fy <= h - 1)
        count = int(inside.sum())
        if count < _MIN_OVERLAP * h * w:
            break
        found = _sample(reference, fx, fy)
        error = current - found
        cost = float((torch.log1p((error / 8) ** 2) * inside).sum()) / count
        if cost < best[0]:
            best = cost, parameters
        if turn == rounds:
            break
        weight = inside / (1 + (error / (1.5 * float(error[inside].abs().median()) + 1)) ** 2)
        gx = functional.pad((found[:, 2:] - found[:, :-2]) / 2, (1, 1))
        gy = functional.pad((found[2:] - found[:-2]) / 2, (0, 0, 1, 1))
        slopes = torch.stack([gx, gx * u, gx * v, gy, gy * u, gy * v], dim=-1).view(-1, 6)
        weighted = slopes * weight.view(-1, 1)
        normal = weighted.T @ slopes + 1e-3 * h * w * torch.eye(6)
        parameters = parameters + torch.linalg.solve(normal, weighted.T @ error.reshape(-1))
    return best


def median_vector(field: Field) -> tuple[int, int]:
    """The middle vector of a part of a field."""
    x, y = np.median(field.reshape(-1, 2), axis=0)
    return int(x), int(y)
