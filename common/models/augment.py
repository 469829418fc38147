"""Random crops, flips and light: many views of few images. All randomness comes from numbers that are given.

What a view shows is drawn apart from its pixels, so that they may be cut from an image that is at hand or be decoded
straight from a record (`images/views.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from fogline.common.errors import ConfigError
from fogline.common.images.views import View
from fogline.common.models.detection import Target, flat

DRAWS = 13  # numbers in 0..1 that a view takes


@dataclass(frozen=True)
class Augment:
    """How views are drawn. The defaults are what the published learning figures were measured with."""

    zoom: tuple[float, float] = (0.6, 1.6)  # pixels of the view to one of the image, drawn on a logarithmic scale
    aspect: float = 0.12  # each axis by up to this share more or less
    flip: float = 0.5  # share of views that are mirrored
    towards_object: float = 0.7  # share of views that hold an object's centre; the others lie anywhere
    visible: float = 0.5  # an object is a target when this share of it is in view
    light: float = 1.0  # strength of the changes of exposure and colour; 0: none

    def __post_init__(self) -> None:
        shares = (self.flip, self.towards_object, self.visible)
        if not (
            0 < self.zoom[0] <= self.zoom[1] < float("inf")
            and 0 <= self.aspect < 1
            and all(0 <= share <= 1 for share in shares)
            and 0 <= self.light <= 2
        ):
            raise ConfigError(
                f"{self}: zoom must be two rising numbers above 0, aspect below 1, shares 0 to 1, light 0 to 2"
            )


@dataclass(frozen=True)
class Cuts:
    """What the views of a batch show of their images, as shares of their width and height, float32 (B) each."""

    x0: Tensor
    y0: Tensor
    wide: Tensor
    tall: Tensor
    flip: Tensor  # bool

    def of(self, places: Sequence[int]) -> Cuts:
        """Those of some images of the batch."""
        rows = torch.tensor(places, dtype=torch.int64)
        return Cuts(self.x0[rows], self.y0[rows], self.wide[rows], self.tall[rows], self.flip[rows])


def random_cuts(
    targets: Sequence[Target],
    frame: tuple[int, int],
    size: tuple[int, int],
    generator: torch.Generator,
    augment: Augment,
) -> tuple[Tensor, Cuts]:
    """What views of `size` (w, h) show of images of `frame` (w, h), one of each target, and the numbers behind it."""
    draws = torch.rand(len(targets), DRAWS - 1, generator=generator)
    cuts = draw_cuts(draws, (size[0] / frame[0], size[1] / frame[1]), *flat(targets), augment)
    # Apart, so that the numbers of a seed stay those of the published figures.
    return torch.cat((draws, torch.rand(len(targets), 1, generator=generator)), 1), cuts


def draw_cuts(
    draws: Tensor,
    extent: tuple[float | Tensor, float | Tensor],
    boxes: Tensor,
    owner: Tensor,
    augment: Augment,
) -> Cuts:
    """What each view shows, by `draws` (B, DRAWS).

    `extent` is the share of an image's width and height that a view takes at zoom 1: numbers, or tensors (B). A view
    never holds more than the whole image.
    """
    r, (low, high) = draws, augment.zoom
    zoom = low * (high / low) ** r[:, 0]
    wide = (extent[0] / zoom * (1 + augment.aspect * (2 * r[:, 1] - 1))).clamp(max=1.0)
    tall = (extent[1] / zoom * (1 + augment.aspect * (2 * r[:, 2] - 1))).clamp(max=1.0)
    x0, y0 = r[:, 3] * (1 - wide), r[:, 4] * (1 - tall)
    counts = torch.bincount(owner, minlength=len(r))
    aimed = torch.nonzero((counts > 0) & (r[:, 5] < augment.towards_object)).flatten()
    if len(aimed):
        first = counts.cumsum(0) - counts
        box = boxes[(first + (r[:, 6] * counts).long())[aimed]]
        middle = (box[:, :2] + box[:, 2:]) / 2
        w, h = wide[aimed], tall[aimed]
        x0[aimed] = (middle[:, 0] - r[aimed, 3] * w).clamp(min=0).minimum(1 - w)
        y0[aimed] = (middle[:, 1] - r[aimed, 4] * h).clamp(min=0).minimum(1 - h)
    return Cuts(x0, y0, wide, tall, r[:, 7] < augment.flip)


def views_of(frames: Sequence[tuple[int, int]], cuts: Cuts) -> list[View]:
    """Cuts in pixels of each image's coded frame (width, height), to decode there and nowhere else."""
    columns = torch.stack((cuts.x0, cuts.y0, cuts.wide, cuts.tall), 1).tolist()
    return [
        View(x * w, y * h, wide * w, tall * h, flip)
        for (x, y, wide, tall), flip, (w, h) in zip(columns, cuts.flip.tolist(), frames, strict=True)
    ]


def cut(images: Tensor, cuts: Cuts, size: tuple[int, int]) -> Tensor:
    """The views' pixels from images (B, 3, H, W), bilinear: (B, 3, h, w).

    Not antialiased: a view smaller than what it shows (3 of 8 with the defaults) is on average 0.9 grey levels off the
    antialiased one of `DecodedLoader`, at single edges up to 57. The edge trainer's published figures are of this.
    """
    theta = torch.zeros(len(images), 2, 3)
    theta[:, 0, 0] = torch.where(cuts.flip, -cuts.wide, cuts.wide)
    theta[:, 1, 1] = cuts.tall
    theta[:, 0, 2] = 2 * cuts.x0 + cuts.wide - 1
    theta[:, 1, 2] = 2 * cuts.y0 + cuts.tall - 1
    grid = F.affine_grid(theta.to(images.device), [len(images), 3, size[1], size[0]], align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="reflection", align_corners=False)


def expose(views: Tensor, draws: Tensor, augment: Augment) -> Tensor:
    """The views in another light, within [0, 1]."""
    gain = 1 + 0.3 * augment.light * (draws[:, 8] - 0.5)[:, None] + 0.1 * augment.light * (draws[:, 9:12] - 0.5)
    lift = 0.1 * augment.light * (draws[:, 12:13] - 0.5)
    gain, lift = (t[:, :, None, None].to(views.device, non_blocking=True) for t in (gain, lift))
    return (views * gain + lift).clamp(0, 1)


def seen(targets: Sequence[Target], cuts: Cuts, augment: Augment) -> list[Target]:
    """What of the objects is in view: boxes cut at its edges, and left out where too little is left."""
    boxes, owner = flat(targets)
    inside, keep = boxes_in_view(boxes, owner, cuts, augment.visible)
    counts = [len(t.boxes) for t in targets]
    parts = zip(targets, torch.split(inside, counts), torch.split(keep, counts), strict=True)
    return [Target(box[kept], target.labels[kept]) if len(box) else target for target, box, kept in parts]


def boxes_in_view(boxes: Tensor, owner: Tensor, cuts: Cuts, visible: float) -> tuple[Tensor, Tensor]:
    """Boxes (n, 4) as the views of their images show them, cut at the edges, and whether enough is left, bool (n)."""
    x0, y0, wide, tall, flip = (t[owner] for t in (cuts.x0, cuts.y0, cuts.wide, cuts.tall, cuts.flip))
    moved = (boxes - torch.stack((x0, y0, x0, y0), 1)) / torch.stack((wide, tall, wide, tall), 1)
    mirrored = torch.stack((1 - moved[:, 2], moved[:, 1], 1 - moved[:, 0], moved[:, 3]), 1)
    moved = torch.where(flip[:, None], mirrored, moved)
    inside = moved.clamp(0, 1)
    share = (inside[:, 2:] - inside[:, :2]).prod(1) / (moved[:, 2:] - moved[:, :2]).prod(1).clamp(min=1e-9)
    return inside, share > visible
