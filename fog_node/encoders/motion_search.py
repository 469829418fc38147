"""Where the blocks of a frame lie in a reference picture: the search half of `latent`.

A frame's affine motion is found first (phase correlation for the translation, then robust Gauss-Newton from coarse to
fine), then a field of block vectors that minimises squared error plus what its vectors cost. All blocks are searched
together: a candidate is one image-wide sampling of the reference.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from fogline.common.images.latent_motion import AFFINE_UNIT, MAX_VECTOR, Field, affine_field, blocks_of
from fogline.fog_node.encoders.block_matching import Blocks, Quarters

_LEVELS = 4
_UNIT = 4.0  # a vector's units in a pixel
_MIN_SIDE = 3  # of a plane that has a slope
_MIN_OVERLAP = 0.2  # of the frame, for an affine motion to be believed
_STILL = 0.02  # pixels of a plane: a step so small ends a refinement
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
    reference: Sequence[Quarters],
    affine: tuple[int, ...],
    block: int,
    price: float,
    before: Field | None,
) -> Field:
    """Differences to the affine motion for each block of a frame.

    `reference` is its pyramid at quarter pixels. `price` is squared error for a bit. `before` may be the vectors of a
    frame like this one, which are tried.
    """
    height, width = current[0].shape
    field = affine_field(affine, width, height, block)
    base = _flat(field)
    search = _Search(current, reference, base, field.shape[:2], block, (0, 0))
    previous = [] if before is None else [_flat(before) - base]
    for stage in _FRAME_STAGES:
        extra = [torch.zeros_like(base), -base] if stage.level == 3 else []
        search.improve(stage, price * stage.strictness, [*extra, *previous])
    return search.found()


def region_field(
    current: torch.Tensor,
    reference: Quarters,
    origin: tuple[int, int],
    start: tuple[int, int],
    block: int,
    price: float,
) -> tuple[tuple[int, ...], Field]:
    """Motion of a region (h, w) of luma: its translation (as an affine motion), and each block's difference to it.

    `reference` is the whole reference; `origin` is the region's place in the frame, `start` a vector to begin with, in
    quarter pixels. `price` is squared error for a bit.
    """
    h, w = current.shape
    shape = blocks_of(h, block), blocks_of(w, block)
    blocks = Blocks(current, reference, shape, block, 0, origin)
    vector = torch.tensor(start, dtype=torch.float32)
    for stride, reach in ((16, 3), (4, 4), (2, 1), (1, 1)):
        around = vector[:, None] + _around(reach, stride)
        errors = blocks.errors(around[..., None].expand(2, around.shape[1], shape[0] * shape[1])).sum(-1)
        vector = around[:, errors.argmin()]
    unit = AFFINE_UNIT / _UNIT
    affine = (int(vector[0] * unit), 0, 0, int(vector[1] * unit), 0, 0)
    search = _Search([current], [reference], _flat(affine_field(affine, w, h, block)), shape, block, origin)
    for stride in (8, 4, 2, 1):
        search.improve(_Stage(0, 1, stride, 1.0), price, [])
    return affine, search.found()


class _Search:
    """Blocks of one frame or region on their way to their vectors: (2, n) x and y, row by row."""

    def __init__(
        self,
        current: Sequence[torch.Tensor],
        reference: Sequence[Quarters],
        base: torch.Tensor,
        shape: tuple[int, int],
        block: int,
        origin: tuple[int, int],
    ) -> None:
        self._base, self._shape = base, shape
        self._levels = [
            Blocks(plane, whole, shape, block >> level, level, origin)
            for level, (plane, whole) in enumerate(zip(current, reference, strict=True))
        ]
        black = torch.arange(shape[0])[:, None] + torch.arange(shape[1]) & 1
        self._colours = [(black.flatten() == colour).nonzero()[:, 0] for colour in (0, 1)]
        self._offsets = torch.zeros_like(base)  # what is searched for: differences to `base`
        self._level = -1  # of the errors
        self._errors = torch.empty(0)

    def found(self) -> Field:
        """The differences, such that no vector is longer than one may be."""
        total = (self._base + self._offsets).clamp(-MAX_VECTOR, MAX_VECTOR)
        most = MAX_VECTOR - 1  # so that a difference of two has at most 15 bits
        out = (total - self._base).round().clamp(-most, most).to(torch.int32)
        field: Field = np.ascontiguousarray(out.view(2, *self._shape).permute(1, 2, 0).numpy())
        return field

    def improve(self, stage: _Stage, price: float, extra: list[torch.Tensor]) -> None:
        """Try the stage's offsets around each vector, then `extra`, the neighbours' and the most frequent vectors."""
        blocks = self._levels[stage.level]
        if self._level != stage.level:
            self._errors = blocks.errors((self._base + self._offsets)[:, None])[0]
            self._level = stage.level
        near, offsets = self._neighbours(), self._offsets
        around = _around(stage.reach, stage.stride)
        around = around[:, around.any(0)]  # the middle is known
        candidates = offsets[:, None] + around[..., None]
        errors = blocks.errors(self._base[:, None] + candidates)
        self._choose(candidates, errors, errors + price * _bits(candidates, near), price, near, None)
        for cells in self._colours:  # neighbours' costs depend on each other: one colour of a chessboard at a time
            if cells.numel():
                self._spread(blocks, price, cells, extra)

    def _spread(self, blocks: Blocks, price: float, cells: torch.Tensor, extra: list[torch.Tensor]) -> None:
        """Try `extra`, the neighbours' and the most frequent vectors at some blocks, each where it is new."""
        near = self._neighbours()[..., cells]
        frequent = self._frequent()[..., None].expand(-1, -1, cells.numel())
        candidates = torch.cat([*(one[:, None, cells] for one in extra), near, frequent], dim=1)
        own = self._offsets[:, None, cells]
        keys = _keys(torch.cat([own, candidates], dim=1))
        same = keys[:, None] == keys
        known = torch.stack([same[k, :k].any(0) for k in range(1, len(keys))])
        bits = price * _bits(candidates, near)
        # What costs more by its bits alone need not be looked at.
        known |= bits >= self._errors[cells] + price * _bits(own, near)
        which, where = (~known).nonzero(as_tuple=True)
        if not which.numel():
            return
        pairs = candidates[:, which, where]
        errors = torch.full(known.shape, torch.inf)
        errors[which, where] = blocks.pairs(self._base[:, cells[where]] + pairs, cells[where])
        self._choose(candidates, errors, errors + bits, price, near, cells)

    def _choose(
        self,
        candidates: torch.Tensor,
        errors: torch.Tensor,
        costs: torch.Tensor,
        price: float,
        near: torch.Tensor,
        cells: torch.Tensor | None,
    ) -> None:
        """Take the cheapest of candidates (2, K, n) where it is cheaper than what is there."""
        at = slice(None) if cells is None else cells
        own, error = self._offsets[:, at], self._errors[at]
        cost, index = costs.min(0)
        better = cost < error + price * _bits(own[:, None], near)[0] - 1e-3
        self._offsets[:, at] = torch.where(better, candidates.gather(1, index.expand(2, 1, -1))[:, 0], own)
        self._errors[at] = torch.where(better, errors.gather(0, index[None])[0], error)

    def _neighbours(self) -> torch.Tensor:
        """Left, upper, right and lower vectors (2, 4, n)."""
        padded = functional.pad(self._offsets.view(1, 2, *self._shape), (1, 1, 1, 1), mode="replicate")[0]
        sides = padded[:, 1:-1, :-2], padded[:, :-2, 1:-1], padded[:, 1:-1, 2:], padded[:, 2:, 1:-1]
        return torch.stack(sides, dim=1).flatten(2)

    def _frequent(self) -> torch.Tensor:
        """The three most frequent vectors (2, 3), or fewer."""
        found, counts = torch.unique(_keys(self._offsets), return_counts=True)
        keys = found[counts.topk(min(3, len(counts))).indices]
        return torch.stack([keys >> 16, (keys & 0xFFFF) - (1 << 15)]).to(self._offsets)


def _flat(field: Field) -> torch.Tensor:
    """Vectors (2, n) of a field, row by row."""
    return torch.from_numpy(field.reshape(-1, 2).T.astype(np.float32))


def _keys(vectors: torch.Tensor) -> torch.Tensor:
    """One number for each vector (2, ...), in their order."""
    return vectors[0].to(torch.int64) * (1 << 16) + vectors[1].to(torch.int64) + (1 << 15)


def _bits(offsets: torch.Tensor, near: torch.Tensor) -> torch.Tensor:
    """About what vectors (2, K, n) cost, given the four (2, 4, n) around each: little where they equal one of them."""
    middle = (near.sum(1) - near.amax(1) - near.amin(1)) / 2
    new = (offsets - middle[:, None]).abs_().add_(1).log2_().sum(0).mul_(2).add_(2 * _NEW_BITS)
    least: torch.Tensor | None = None
    for one in near.unbind(1):
        distance = (offsets - one[:, None]).abs_().sum(0)
        least = distance if least is None else torch.minimum(least, distance)
    assert least is not None
    return torch.minimum(new, least.add_(1).log2_().mul_(2.5).add_(_MERGE_BITS))


def _around(reach: int, stride: int) -> torch.Tensor:
    """Vectors (2, K) of `stride` times -reach to reach, row by row; zero is one of them."""
    line = torch.arange(-reach, reach + 1, dtype=torch.float32) * stride
    y, x = torch.meshgrid(line, line, indexing="ij")
    return torch.stack([x.flatten(), y.flatten()])


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
    """Gauss-Newton on a robust (Cauchy) error, until it stands still; the best cost and its parameters."""
    h, w = current.shape
    if min(h, w) < _MIN_SIDE:
        return float("inf"), parameters
    x, y = torch.arange(w, dtype=torch.float32), torch.arange(h, dtype=torch.float32)[:, None]
    u, v = (x + 0.5 - w / 2) * (2 / w), (y + 0.5 - h / 2) * (2 / w)
    best = float("inf"), parameters
    slopes = torch.empty((6, h, w))
    for turn in range(rounds + 1):
        a, b, c, d, e, f = parameters.tolist()
        fx, fy = (x + a + b * u) + c * v, (y + d + f * v) + e * u
        inside = (fx == fx.clamp(0, w - 1)) & (fy == fy.clamp(0, h - 1))
        count = int(inside.sum())
        if count < _MIN_OVERLAP * h * w:
            break
        found = _sample(reference, fx, fy)
        error = current - found
        cost = float(((error / 8).square_().log1p_() * inside).sum()) / count
        if cost < best[0]:
            best = cost, parameters
        if turn == rounds:
            break
        sparse = error[::2, ::2][inside[::2, ::2]]
        scale = 1.5 * (float(sparse.abs_().median()) if sparse.numel() else 0.0) + 1
        weight = inside / (error / scale).square_().add_(1)
        gx = functional.pad((found[:, 2:] - found[:, :-2]) / 2, (1, 1))
        gy = functional.pad((found[2:] - found[:-2]) / 2, (0, 0, 1, 1))
        for row, (slope, place) in enumerate(((gx, None), (gx, u), (gx, v), (gy, None), (gy, u), (gy, v))):
            slopes[row] = slope if place is None else slope * place
        weighted = (slopes * weight).view(6, -1)
        normal = weighted @ slopes.view(6, -1).T + 1e-3 * h * w * torch.eye(6)
        step = torch.linalg.solve(normal, weighted @ error.reshape(-1))
        parameters = parameters + step
        if float(step.abs().max()) < _STILL:
            break
    return best


def median_vector(field: Field) -> tuple[int, int]:
    """The middle vector of a part of a field."""
    x, y = np.median(field.reshape(-1, 2), axis=0)
    return int(x), int(y)
