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
from torch.nn import functional

from fogline.common.images.latent_blocks import Plane
from fogline.common.images.latent_motion import Field
from fogline.common.images.latent_payload import Latents, Layout, step_size
from fogline.common.images.sampling import Window

BLUE, RED = 1.772, 1.402  # of BT.601: B = Y + BLUE Cb, R = Y + RED Cr
GREEN_BLUE, GREEN_RED = -0.344136, -0.714136


@lru_cache(maxsize=8)
def cosines(size: int) -> torch.Tensor:
    """Orthonormal DCT-II matrix (frequencies, samples), float32."""
    angle = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.cos(angle) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    return torch.from_numpy(matrix.astype(np.float32))


def predict(
    references: torch.Tensor, origins: torch.Tensor, fields: torch.Tensor, block: int, window: Window
) -> torch.Tensor:
    """Predictions of a window (B, 3, h, w) from references float (B, 3, H, W).

    `origins` (B, 2) are x, y of each layer in its reference; `fields` (B, rows, columns, 2) vectors in quarter pixels.
    """
    device, (rows, columns) = references.device, fields.shape[1:3]
    size = references.new_tensor([references.shape[3], references.shape[2]])
    top, below, down = _neighbours(window.y, window.h, rows, block, device)
    left, right, across = _neighbours(window.x, window.w, columns, block, device)
    x = torch.arange(window.x, window.x + window.w, device=device) + 0.5
    y = torch.arange(window.y, window.y + window.h, device=device) + 0.5
    shape = window.h, window.w
    pixels = torch.stack([x.expand(shape), y[:, None].expand(shape)], dim=-1) + origins[:, None, None]
    quarter = fields.to(torch.float32) / 4
    out: torch.Tensor | None = None
    for row, row_weight in ((top, 1 - down), (below, down)):
        for column, column_weight in ((left, 1 - across), (right, across)):
            at = (pixels + quarter[:, row][:, :, column]) * (2 / size) - 1
            found = functional.grid_sample(references, at, mode="bicubic", padding_mode="border", align_corners=False)
            found *= row_weight[:, None] * column_weight
            out = found if out is None else out.add_(found)
    assert out is not None
    return out


def residual(
    latents: Sequence[Latents], layout: Layout, size: tuple[int, int], window: Window, device: torch.device
) -> torch.Tensor:
    """What is added to the predictions of layers of one size (width, height): RGB (B, 3, h, w) in grey levels."""
    width, height = size
    planes = []
    for number, (rows, columns, side) in enumerate(layout.planes(width, height)):
        chosen = [None if one.planes is None else one.planes[number] for one in latents]
        factor = layout.chroma_step if number else 1.0
        plane = _inverse(chosen, [step_size(one.step) * factor for one in latents], (rows, columns, side), device)
        if number and layout.halved:
            plane = functional.interpolate(plane[:, None], scale_factor=2, mode="bilinear", align_corners=False)[:, 0]
        planes.append(plane[:, window.y : window.y + window.h, window.x : window.x + window.w])
    luma, blue, red = planes
    return torch.stack([luma + RED * red, luma + GREEN_BLUE * blue + GREEN_RED * red, luma + BLUE * blue], dim=1)


def _inverse(
    planes: Sequence[Plane | None], steps: Sequence[float], shape: tuple[int, int, int], device: torch.device
) -> torch.Tensor:
    """Planes (B, rows * size, columns * size) from their coefficients."""
    rows, columns, size = shape
    out = torch.zeros((len(planes), rows, size, columns, size), device=device)
    found = [(i, plane, steps[i]) for i, plane in enumerate(planes) if plane is not None and plane.index.size]
    if found:
        index = torch.from_numpy(np.concatenate([plane.index for _, plane, _ in found])).long().to(device)
        image = torch.from_numpy(np.repeat([i for i, _, _ in found], [p.index.size for _, p, _ in found])).to(device)
        step = torch.from_numpy(
            np.repeat(np.array([s for _, _, s in found], np.float32), [p.index.size for _, p, _ in found])
        )
        values = torch.from_numpy(np.concatenate([plane.values for _, plane, _ in found])).to(device)
        matrix = cosines(size).to(device)
        blocks = matrix.T @ (values.to(torch.float32) * step.to(device)[:, None, None]) @ matrix
        out[image, index // columns, :, index % columns] = blocks
    return out.view(len(planes), rows * size, columns * size)


def _neighbours(
    start: int, length: int, blocks: int, block: int, device: torch.device
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """For each pixel of a line the blocks before and after it by their centres, and the weight of the second."""
    at = (torch.arange(start, start + length, device=device) + 0.5) / block - 0.5
    before = at.floor()
    return (
        before.clamp(0, blocks - 1).long(),
        (before + 1).clamp(0, blocks - 1).long(),
        at - before,
    )


def field_tensor(fields: Sequence[Field], device: torch.device) -> torch.Tensor:
    """Fields of one shape as (B, rows, columns, 2)."""
    return torch.from_numpy(np.stack(fields).astype(np.int16)).to(device)
