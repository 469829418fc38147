"""Multi-scale structural similarity (Wang, Simoncelli, Bovik, Asilomar 2003), of a frame and of parts of it.

Convention, that of most work on learned codecs: each RGB channel by itself, then their mean; Gaussian windows of 11
pixels (sigma 1.5) that lie wholly within the image; halving by means of 2x2 pixels. Five scales need a shorter side
of more than 160 pixels. Smaller images get as many scales as fit, with the published weights of those scaled to a sum
of one, so values are comparable only at equal numbers of scales; the number is part of the result.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

WEIGHTS = (0.0448, 0.2856, 0.3001, 0.2363, 0.1333)  # the paper's, finest scale first
WINDOW, SIGMA = 11, 1.5
_C1, _C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2


@dataclass(frozen=True)
class Similarity:
    """A mean similarity, at most 1, and how many of the five scales it rests on."""

    value: float
    scales: int


def scales_of(width: int, height: int) -> int:
    """How many scales an image of this size has: 0 where it is smaller than the window."""
    shorter = min(width, height)
    return sum(shorter > (WINDOW - 1) * 2**scale for scale in range(len(WEIGHTS)))


def ms_ssim(
    original: NDArray[np.uint8], decoded: NDArray[np.uint8], part: NDArray[np.bool_] | None = None
) -> tuple[Similarity | None, Similarity | None]:
    """Compare two images (H, W, 3), and those parts of them where `part` (H, W) is true (None: everywhere).

    A part is judged by windows centred in it, which see some pixels around it; a window of a coarser scale counts by
    the share of its centre that lies in the part. None where the images are smaller than the window, and for a part
    where no window is centred in it.
    """
    height, width = original.shape[:2]
    scales = scales_of(width, height)
    if not scales:
        return None, None
    a, b = (torch.from_numpy(image.astype(np.float32)).permute(2, 0, 1)[None] for image in (original, decoded))
    mask = None if part is None else torch.from_numpy(part.astype(np.float32))[None, None]
    whole, of_part = [], []
    for scale in range(scales):
        if scale:
            a, b = _halved(a), _halved(b)
            mask = None if mask is None else _halved(mask)
        luminance, structure = _maps(a, b)
        values = structure if scale < scales - 1 else luminance * structure
        whole.append(values.mean((0, 2, 3)))
        of_part.append(whole[-1] if mask is None else _mean(values, mask))
    return _product(whole), _product(of_part)


def _product(means: Sequence[Tensor | None]) -> Similarity | None:
    """The weighted product over scales; means are those of the three channels."""
    scales = len(means)
    product = torch.ones(3)
    for mean, weight in zip(means, WEIGHTS, strict=False):
        if mean is None:
            return None
        # Anticorrelated images have a negative mean, which has no real power: it counts as 0.
        product *= mean.clamp_min(0) ** (weight / sum(WEIGHTS[:scales]))
    return Similarity(float(product.mean()), scales)


def _maps(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """The luminance term, and the product of the contrast and structure terms, of every window of (1, 3, H, W)."""
    mean_a, mean_b, square_a, square_b, both = _blurred(torch.cat((a, b, a * a, b * b, a * b), 1)).chunk(5, 1)
    luminance = (2 * mean_a * mean_b + _C1) / (mean_a**2 + mean_b**2 + _C1)
    variances = square_a - mean_a**2 + square_b - mean_b**2
    return luminance, (2 * (both - mean_a * mean_b) + _C2) / (variances + _C2)


def _mean(values: Tensor, mask: Tensor) -> Tensor | None:
    """The mean of (1, 3, H, W) over the windows whose centre the mask has: (3,)."""
    edge = WINDOW // 2
    inner = mask[..., edge : mask.shape[-2] - edge, edge : mask.shape[-1] - edge]
    total = float(inner.sum())
    return (values * inner).sum((0, 2, 3)) / total if total > 0 else None


def _blurred(image: Tensor) -> Tensor:
    offsets = torch.arange(WINDOW, dtype=torch.float32) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window /= window.sum()
    channels = image.shape[1]
    across = window.expand(channels, 1, 1, WINDOW).contiguous()
    # Channels last: ten times faster than any other layout on a CPU.
    image = F.conv2d(image.contiguous(memory_format=torch.channels_last), across, groups=channels)
    return F.conv2d(image, across.transpose(2, 3).contiguous(), groups=channels)


def _halved(image: Tensor) -> Tensor:
    return F.avg_pool2d(image, 2, ceil_mode=True)  # an odd edge is the mean of the pixels that there are
