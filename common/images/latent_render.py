"""Decodes `latent` layers to pixels: prediction from reference pictures, plus transformed coefficients.

A pixel's prediction blends what the vectors of the four nearest blocks point to, bilinearly by their centres' distance
(overlapped block motion compensation), so that blocks leave no edges. Coefficients are those of an orthonormal
DCT-II. Luma and colour differences are BT.601's, full range.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fogline.common.images.latent_blocks import Plane
from fogline.common.images.latent_motion import Field
from fogline.common.images.latent_payload import Latents, Layout, step_size
from fogline.common.images.sampling import Window

BLUE, RED = 1.772, 1.402  # of BT.601: B = Y + BLUE Cb, R = Y + RED Cr
GREEN_BLUE, GREEN_RED = -0.344136, -0.714136
_CELLS = 128  # that are predicted together: as many as a core's cache holds


@lru_cache(maxsize=8)
def cosines(size: int) -> torch.Tensor:
    """Orthonormal DCT-II matrix (frequencies, samples), float32."""
    angle = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.cos(angle) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return torch.from_numpy(matrix.astype(np.float32))


def predict(
    references: torch.Tensor,
    origins: torch.Tensor,
    fields: torch.Tensor,
    block: int,
    corners: torch.Tensor,
    shape: tuple[int, int],
) -> torch.Tensor:
    """Predictions of windows (B, 3, h, w) from references float (B, 3, H, W), all of a batch in a few calls.

    `origins` (B, 2) are x, y of each layer in its reference; `fields` (B, rows, columns, 2) vectors in quarter pixels;
    `corners` int64 (B, 2) x, y of each window in its layer, and `shape` (w, h) the size of all of them.
    """
    device, (rows, columns) = references.device, fields.shape[1:3]
    size = references.new_tensor([references.shape[3], references.shape[2]])
    xs = corners[:, :1] + torch.arange(shape[0], device=device)  # (B, w)
    ys = corners[:, 1:] + torch.arange(shape[1], device=device)
    left, right, across = _neighbours(xs, columns, block)
    top, below, down = _neighbours(ys, rows, block)
    full = len(corners), shape[1], shape[0]
    pixels = torch.stack([(xs + 0.5)[:, None].expand(full), (ys + 0.5)[:, :, None].expand(full)], dim=-1)
    pixels = pixels + origins[:, None, None]
    quarter, image = fields.to(torch.float32) / 4, torch.arange(len(corners), device=device)[:, None, None]
    out: torch.Tensor | None = None
    for row, row_weight in ((top, 1 - down), (below, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            at = (pixels + quarter[image, row[:, :, None], column[:, None]]) * (2 / size) - 1
            found = functional.grid_sample(references, at, mode="bicubic", padding_mode="border", align_corners=False)
            found *= (row_weight[:, :, None] * column_weight[:, None])[:, None]
            out = found if out is None else out.add_(found)
    assert out is not None
    return out


def predict_one(
    reference: torch.Tensor, origin: tuple[int, int], field: Field, block: int, window: Window
) -> torch.Tensor:
    """The prediction of one window (3, h, w) from a reference uint8 (3, H, W) on a CPU, in no more samples than needed.

    As `predict`, but by the cells between the centres of four blocks. Where their vectors are one, a sample does for
    four; and the most frequent vector of whole pixels, as still cameras have it, takes none at all.
    """
    half = block // 2
    x0, x1 = (window.x + half) // block, (window.x + window.w - 1 + half) // block + 1
    y0, y1 = (window.y + half) // block, (window.y + window.h - 1 + half) // block + 1
    grown = np.pad(field, ((1, 1), (1, 1), (0, 0)), mode="edge")[y0 : y1 + 1, x0 : x1 + 1]
    corners = [grown[i : y1 - y0 + i, j : x1 - x0 + j] for i in (0, 1) for j in (0, 1)]
    uniform = np.all([(corner == corners[0]).all(axis=-1) for corner in corners[1:]], axis=0)
    whole = uniform & (corners[0] % 4 == 0).all(axis=-1)
    left = np.ones(uniform.shape, bool)
    area = Window(x0 * block - half, y0 * block - half, (x1 - x0) * block, (y1 - y0) * block)
    out = torch.empty((3, y1 - y0, block, x1 - x0, block))
    if whole.any():
        vectors, counts = np.unique(corners[0][whole], axis=0, return_counts=True)
        most = vectors[counts.argmax()]
        left = ~(whole & (corners[0] == most).all(axis=-1))
        by = origin[0] + int(most[0]) // 4, origin[1] + int(most[1]) // 4
        if not left.any():
            return _shifted(reference, window, by).to(torch.float32)
        out.view(3, area.h, area.w).copy_(_shifted(reference, area, by))
    part, start = _reach(reference, origin, area, grown)
    part = functional.pad(part[None], (block + 3,) * 4, mode="replicate")[0]
    row, column = np.nonzero(left)
    base = np.stack([column * block + area.x + origin[0] - start[0], row * block + area.y + origin[1] - start[1]], -1)
    vectors = np.stack([corner[row, column] for corner in corners])  # (4, n, 2)
    cells = out.permute(1, 3, 0, 2, 4)
    for first in range(0, len(row), _CELLS):
        some = slice(first, first + _CELLS)
        at = torch.from_numpy(row[some]), torch.from_numpy(column[some])
        cells[at] = _blended(part, 4 * base[some], vectors[:, some], block)
    x, y = window.x - area.x, window.y - area.y
    return out.view(3, area.h, area.w)[:, y : y + window.h, x : x + window.w]


def residual(
    latents: Sequence[Latents],
    layout: Layout,
    size: tuple[int, int],
    corners: Sequence[tuple[int, int]],
    shape: tuple[int, int],
    device: torch.device,
) -> torch.Tensor:
    """What is added to the predictions of windows of layers of one size (width, height): RGB (B, 3, h, w).

    In grey levels. `corners` are x, y of each window, `shape` the (w, h) of all, both in luma blocks: blocks out of
    view are not transformed. A window may go beyond the layer.
    """
    planes = []
    for number, (rows, columns, side) in enumerate(layout.planes(*size)):
        factor = layout.chroma_step if number else 1.0
        halved = bool(number) and layout.halved
        # A chroma block covers as many pixels as one of luma; enlarging takes a sample from the next one.
        margin = int(halved)
        windows = [(x - margin, y - margin, shape[0] + 2 * margin, shape[1] + 2 * margin) for x, y in corners]
        chosen = [None if one.planes is None else one.planes[number] for one in latents]
        plane = _inverse(chosen, [step_size(one.step) * factor for one in latents], windows, side, device)
        planes.append(_enlarged(plane, windows, (rows, columns, side)) if halved else plane)
    luma, blue, red = planes
    return torch.stack([luma + RED * red, luma + GREEN_BLUE * blue + GREEN_RED * red, luma + BLUE * blue], dim=1)


Blocks = tuple[int, int, int, int]  # x, y, w, h of a window, in blocks


def _inverse(
    planes: Sequence[Plane | None], steps: Sequence[float], windows: Sequence[Blocks], size: int, device: torch.device
) -> torch.Tensor:
    """Samples (B, h * size, w * size) of windows of planes, from the coefficients of the blocks in them."""
    _, _, wide, tall = windows[0]
    out = torch.zeros((len(planes), tall, size, wide, size), device=device)
    index, values, scale = [], [], []
    for i, (plane, step, (x, y, _, _)) in enumerate(zip(planes, steps, windows, strict=True)):
        if plane is None or not plane.index.size:
            continue
        row, column = np.divmod(plane.index, plane.columns)
        row, column = row - y, column - x
        inside = (row >= 0) & (row < tall) & (column >= 0) & (column < wide)
        row, column = row[inside], column[inside]
        index.append(np.stack([np.full(len(row), i), row, column]))
        values.append(plane.values[inside])
        scale.append(np.full(len(row), step, np.float32))
    if index:
        image, rows, columns = torch.from_numpy(np.concatenate(index, axis=1).astype(np.int64)).to(device)
        step_of = torch.from_numpy(np.concatenate(scale)).to(device)
        coefficients = torch.from_numpy(np.concatenate(values)).to(device)
        matrix = cosines(size).to(device)
        blocks = matrix.T @ (coefficients.to(torch.float32) * step_of[:, None, None]) @ matrix
        out[image, rows, :, columns] = blocks
    return out.view(len(planes), tall * size, wide * size)


def _enlarged(planes: torch.Tensor, windows: Sequence[Blocks], shape: tuple[int, int, int]) -> torch.Tensor:
    """Windows of planes at twice the size, without the block around each that they came with."""
    rows, columns, side = shape
    _, _, wide, tall = windows[0]
    device = planes.device

    def line(starts: list[int], length: int, blocks: int) -> torch.Tensor:
        start = torch.tensor(starts, device=device)[:, None] * side
        inner = torch.arange(side - 1, (length - 1) * side + 1, device=device)  # a sample more at both ends
        # Beyond the plane its edge counts, and what lies there was not computed.
        return ((start + inner).clamp(0, blocks * side - 1) - start).clamp(0, length * side - 1)

    y, x = line([w[1] for w in windows], tall, rows), line([w[0] for w in windows], wide, columns)
    image = torch.arange(len(windows), device=device)[:, None, None]
    near = planes[image, y[:, :, None], x[:, None]]
    grown = functional.interpolate(near[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
    return grown[:, 2:-2, 2:-2]


def _neighbours(pixels: torch.Tensor, blocks: int, block: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each pixel of a line the blocks before and after it by their centres, and the weight of the second."""
    at = (pixels + 0.5) / block - 0.5
    before = at.floor()
    return (
        before.clamp(0, blocks - 1).long(),
        (before + 1).clamp(0, blocks - 1).long(),
        at - before,
    )


def _shifted(reference: torch.Tensor, window: Window, by: tuple[int, int]) -> torch.Tensor:
    """A window of a picture (3, H, W), moved by whole pixels; beyond its edge, the edge."""
    x, y, (height, width) = window.x + by[0], window.y + by[1], reference.shape[1:]
    if x >= 0 and y >= 0 and x + window.w <= width and y + window.h <= height:
        return reference[:, y : y + window.h, x : x + window.w]
    rows = torch.arange(y, y + window.h).clamp_(0, height - 1)
    columns = torch.arange(x, x + window.w).clamp_(0, width - 1)
    return reference[:, rows][:, :, columns]


def _reach(
    reference: torch.Tensor, origin: tuple[int, int], window: Window, vectors: NDArray[np.int32]
) -> tuple[torch.Tensor, tuple[int, int]]:
    """The part of a picture that samples can come from, float (3, h, w), and the x, y where it begins."""
    low, high = vectors.min(axis=(0, 1)) // 4 - 2, -(-vectors.max(axis=(0, 1)) // 4) + 3
    height, width = reference.shape[1:]
    x0 = min(max(0, window.x + origin[0] + int(low[0])), width - 1)
    y0 = min(max(0, window.y + origin[1] + int(low[1])), height - 1)
    x1 = min(max(x0 + 1, window.x + origin[0] + window.w + int(high[0])), width)
    y1 = min(max(y0 + 1, window.y + origin[1] + window.h + int(high[1])), height)
    return reference[:, y0:y1, x0:x1].to(torch.float32), (x0, y0)


def _blended(picture: torch.Tensor, base: NDArray[np.int64], vectors: NDArray[np.int32], side: int) -> torch.Tensor:
    """Cells (n, 3, side, side) of a picture: what their four vectors (4, n, 2) show, blended; `base` is where they lie.

    Each vector of a cell is sampled once, however many of its corners have it. In quarter pixels.
    """
    down, across = (torch.arange(side)[:, None] + 0.5) / side, (torch.arange(side) + 0.5) / side
    shares = (1 - down) * (1 - across), (1 - down) * across, down * (1 - across), down * across
    equal = (vectors[:, None] == vectors).all(axis=-1)  # (4, 4, n)
    leader = equal.argmax(axis=1)  # the first corner with the same vector
    out: torch.Tensor | None = None
    for corner in range(4):
        cells = np.flatnonzero(leader[corner] == corner)
        if not cells.size:
            continue
        found = _sampled(picture, base[cells] + vectors[corner, cells], side)
        followers = torch.from_numpy(equal[corner, :, cells].astype(np.float32))  # (m, 4)
        weight = (followers @ torch.stack(shares).view(4, -1)).view(-1, 1, side, side)
        if out is None:
            out = found.mul_(weight)  # the first corner leads in every cell
        else:
            out.index_add_(0, torch.from_numpy(cells), found.mul_(weight))
    assert out is not None
    return out


def _sampled(picture: torch.Tensor, corners: NDArray[np.int64], side: int) -> torch.Tensor:
    """Bicubic samples (n, 3, side, side): squares with their first pixels at x, y (n, 2), in quarter pixels.

    `picture` (3, H, W) has its edge repeated side + 3 times. All of a square's samples have the same phase, and so the
    same four taps across and the same four down.
    """
    wide = side + 3
    height, width = picture.shape[1:]
    windows = picture.as_strided(
        (height * width - (wide - 1) * (width + 1), 3, wide, wide), (1, height * width, width, 1)
    )
    whole = np.clip((corners >> 2) - 1 + wide, 0, (width - wide, height - wide))
    patches = windows[torch.from_numpy(whole[:, 1] * width + whole[:, 0])]
    taps = torch.from_numpy(_TAPS[corners & 3])[..., None, None, None]  # (n, 2, 4, 1, 1, 1)
    rows = patches[..., :side] * taps[:, 0, 0]
    for tap in range(1, 4):
        rows.addcmul_(patches[..., tap : tap + side], taps[:, 0, tap])
    out = rows[:, :, :side] * taps[:, 1, 0]
    for tap in range(1, 4):
        out.addcmul_(rows[:, :, tap : tap + side], taps[:, 1, tap])
    return out


def _cubic(phase: float) -> list[float]:
    """Weights of four pixels for a sample `phase` of a pixel beyond the second: cubic convolution, a = -0.75."""
    a = -0.75

    def near(x: float) -> float:
        return ((a + 2) * x - (a + 3)) * x * x + 1

    def far(x: float) -> float:
        return ((a * x - 5 * a) * x + 8 * a) * x - 4 * a

    return [far(1 + phase), near(phase), near(1 - phase), far(2 - phase)]


_TAPS = np.array([_cubic(phase / 4) for phase in range(4)], np.float32)


def field_tensor(fields: Sequence[Field], device: torch.device) -> torch.Tensor:
    """Fields of one shape as (B, rows, columns, 2)."""
    return torch.from_numpy(np.stack(fields).astype(np.int16)).to(device)
