"""Random crops, flips and light: many views of few images. All randomness comes from one generator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fogline.common.models.detection import Target

_ZOOM = (0.6, 1.6)
_ASPECT = 0.12  # each axis by up to this much more or less
_VISIBLE = 0.5  # an object is a target when this share of it is in view
_TOWARDS_OBJECT = 0.7  # share of views that hold an object's centre; the others lie anywhere


def random_views(
    images: Tensor, targets: Sequence[Target], size: tuple[int, int], generator: torch.Generator
) -> tuple[Tensor, list[Target]]:
    """A view of `size` (w, h) of each image: float32 (B, 3, h, w) and its targets, which may be none."""
    batch, _, height, width = images.shape
    r = torch.rand(batch, 12, generator=generator)
    zoom = _ZOOM[0] * (_ZOOM[1] / _ZOOM[0]) ** r[:, 0]
    # Extent of the view, as a share of the image. A view never holds more than the whole image.
    wide = (size[0] / width / zoom * (1 + _ASPECT * (2 * r[:, 1] - 1))).clamp(max=1.0)
    tall = (size[1] / height / zoom * (1 + _ASPECT * (2 * r[:, 2] - 1))).clamp(max=1.0)
    x0, y0 = r[:, 3] * (1 - wide), r[:, 4] * (1 - tall)
    for i, target in enumerate(targets):
        if len(target.boxes) and r[i, 5] < _TOWARDS_OBJECT:
            box = target.boxes[int(r[i, 6] * len(target.boxes))]
            middle = (box[:2] + box[2:]) / 2
            x0[i] = (middle[0] - r[i, 3] * wide[i]).clamp(min=0).minimum(1 - wide[i])
            y0[i] = (middle[1] - r[i, 4] * tall[i]).clamp(min=0).minimum(1 - tall[i])
    flip = r[:, 7] < 0.5
    views = _cut(images, x0, y0, wide, tall, flip, size)
    gain = 1 + 0.3 * (r[:, 8] - 0.5)[:, None] + 0.1 * (r[:, 9:12] - 0.5)
    lift = 0.1 * (torch.rand(batch, 1, generator=generator) - 0.5)
    views = (views * gain[:, :, None, None] + lift[:, :, None, None]).clamp(0, 1)
    return views, [_seen(t, x0[i], y0[i], wide[i], tall[i], bool(flip[i])) for i, t in enumerate(targets)]


def _cut(
    images: Tensor, x0: Tensor, y0: Tensor, wide: Tensor, tall: Tensor, flip: Tensor, size: tuple[int, int]
) -> Tensor:
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.where(flip, -wide, wide)
    theta[:, 1, 1] = tall
    theta[:, 0, 2] = 2 * x0 + wide - 1
    theta[:, 1, 2] = 2 * y0 + tall - 1
    grid = F.affine_grid(theta, [len(images), 3, size[1], size[0]], align_corners=False).to(images.device)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def _seen(target: Target, x0: Tensor, y0: Tensor, wide: Tensor, tall: Tensor, flip: bool) -> Target:
    if not len(target.boxes):
        return target
    boxes = (target.boxes - torch.stack((x0, y0, x0, y0))) / torch.stack((wide, tall, wide, tall))
    if flip:
        boxes = torch.stack((1 - boxes[:, 2], boxes[:, 1], 1 - boxes[:, 0], boxes[:, 3]), 1)
    inside = boxes.clamp(0, 1)
    share = (inside[:, 2:] - inside[:, :2]).prod(1) / (boxes[:, 2:] - boxes[:, :2]).prod(1).clamp(min=1e-9)
    keep = share > _VISIBLE
    return Target(inside[keep], target.labels[keep])
