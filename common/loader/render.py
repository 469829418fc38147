"""A batch's pixels: decoded straight at the views' size, or cut from pixels that were decoded once."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from PIL import Image
from torch import Tensor

from fogline.common.errors import FormatError
from fogline.common.images import raster
from fogline.common.images.codec import Placement
from fogline.common.images.decode import BatchDecoder, PreparedImage
from fogline.common.loader.pixels import PixelCache
from fogline.common.models.augment import Cuts, views_of

_log = logging.getLogger(__name__)


@dataclass
class Renderer:
    """Renders images of a dataset at one size. `cache` may be set at any time between two batches."""

    images: Sequence[PreparedImage]
    decoder: BatchDecoder
    size: tuple[int, int]  # width, height
    cache: PixelCache | None = None

    def sizes(self, augmented: bool) -> list[tuple[int, int]]:
        """The sizes to keep decoded images at: coded ones, to cut views from, or the final one."""
        return [image.size if augmented else self.size for image in self.images]

    def render(self, indices: Sequence[int], cuts: Cuts | None) -> Tensor:
        """Float32 (B, 3, H, W) in [0, 1] on the device: the views `cuts`, or whole frames.

        Decoding is in float32 whatever the training around it uses: in bfloat16, sine networks are three grey levels
        off. Raises FormatError for a payload that only decoding shows to be damaged.
        """
        with torch.no_grad(), torch.autocast(self.decoder.device.type, enabled=False):
            if self.cache is None:
                return self._decode(indices, cuts)
            self._fill(self.cache, indices, whole=cuts is None)
            return self._cut(self.cache, indices, cuts)

    def _decode(self, indices: Sequence[int], cuts: Cuts | None) -> Tensor:
        images = [self.images[index] for index in indices]
        return self.decoder.decode(
            images, self.size, views=None if cuts is None else views_of([image.size for image in images], cuts)
        )

    def _fill(self, cache: PixelCache, indices: Sequence[int], whole: bool) -> None:
        missing = cache.missing(indices)
        for size, places in _by_size([self.images[i].size for i in missing]).items():
            some = [missing[place] for place in places]
            cache.put(some, self.decoder.decode([self.images[i] for i in some], self.size if whole else size))

    def _cut(self, cache: PixelCache, indices: Sequence[int], cuts: Cuts | None) -> Tensor:
        if cuts is None:
            return _floats(cache.get(indices))
        groups = [
            (places, cache.get([indices[place] for place in places]))
            for places in _by_size([self.images[i].size for i in indices]).values()
        ]
        if self.decoder.device.type == "cpu":
            return self._cut_by_pillow(groups, cuts)
        if len(groups) == 1:
            return cut_smooth(_floats(groups[0][1]), cuts, self.size)
        out = torch.empty((len(indices), 3, self.size[1], self.size[0]), device=self.decoder.device)
        for places, pixels in groups:
            rows = torch.tensor(places).to(out.device, non_blocking=True)
            out[rows] = cut_smooth(_floats(pixels), cuts.of(places), self.size)
        return out

    def _cut_by_pillow(self, groups: Sequence[tuple[Sequence[int], Tensor]], cuts: Cuts) -> Tensor:
        """As `cut_smooth`, on a CPU: it needs no floats of what is out of view, and takes half the time."""
        images = {
            place: image for places, pixels in groups for place, image in zip(places, pixels.numpy(), strict=True)
        }
        columns = torch.stack((cuts.x0, cuts.y0, cuts.x0 + cuts.wide, cuts.y0 + cuts.tall), 1).tolist()
        shown = raster.render(
            Image.fromarray,
            [images[place] for place in range(len(columns))],
            [Placement(0, 0, *self.size, (x0, y0, x1, y1)) for x0, y0, x1, y1 in columns],
            self.decoder.device,
            Image.Resampling.BILINEAR,
        )
        return torch.stack(
            [i.flip(-1) if mirrored else i for i, mirrored in zip(shown, cuts.flip.tolist(), strict=True)]
        )


def cut_smooth(images: Tensor, cuts: Cuts, size: tuple[int, int]) -> Tensor:
    """The views' pixels from images (B, 3, H, W): (B, 3, h, w), bilinear, and antialiased where a view is reduced.

    As Pillow's `resize` does it: the kernel is as wide as a pixel of the view.
    """
    device = images.device
    across = _triangles(cuts.x0.to(device), cuts.wide.to(device), images.shape[3], size[0])
    down = _triangles(cuts.y0.to(device), cuts.tall.to(device), images.shape[2], size[1])
    across = torch.where(cuts.flip.to(device)[:, None, None], across.flip(1), across)
    return down[:, None] @ (images @ across.mT[:, None])


def _triangles(start: Tensor, extent: Tensor, length: int, count: int) -> Tensor:
    """Weights (B, count, length) of samples of a line that fill `extent` from `start`, shares of its length."""
    scale = (extent * length / count)[:, None, None]
    samples = start[:, None, None] * length + (torch.arange(count, device=start.device) + 0.5)[:, None] * scale
    pixels = torch.arange(length, device=start.device) + 0.5
    weights = (1 - (pixels - samples).abs() / scale.clamp(min=1)).clamp_(min=0)
    return weights / weights.sum(-1, keepdim=True)


def _floats(pixels: Tensor) -> Tensor:
    """Pixels (B, H, W, 3) as float32 (B, 3, H, W) in [0, 1]."""
    return pixels.permute(0, 3, 1, 2).to(torch.float32, memory_format=torch.contiguous_format).div_(255)


class Substitute:
    """Renders batches in which damaged images are replaced by the next sound one of the dataset."""

    def __init__(self, renderer: Renderer) -> None:
        self._renderer = renderer
        self._instead: dict[int, int] = {}

    @property
    def damaged(self) -> tuple[int, ...]:
        """Indices of the images that turned out to be damaged."""
        return tuple(sorted(self._instead))

    def resolve(self, indices: Sequence[int]) -> list[int]:
        """What to render for these."""
        return [self._instead.get(index, index) for index in indices]

    def find(self, indices: Sequence[int]) -> None:
        """Look for the damaged ones among `indices`, after a batch failed. Raises FormatError when nothing is sound."""
        for index in dict.fromkeys(indices):
            if (error := self._error_of(index)) is None:
                continue
            _log.warning("not learned from: image %d can't be decoded: %s", index, error)
            total = len(self._renderer.images)
            others = ((index + step) % total for step in range(1, total))
            sound = next((o for o in others if o not in self._instead and self._error_of(o) is None), None)
            if sound is None:
                raise FormatError(f"none of {total} images can be decoded; the last: {error}") from error
            self._instead = {old: sound if new == index else new for old, new in self._instead.items()}
            self._instead[index] = sound

    def _error_of(self, index: int) -> FormatError | None:
        image = self._renderer.images[index]
        try:
            self._renderer.decoder.decode([image], image.size)
        except FormatError as error:
            return error
        return None


def _by_size(sizes: Sequence[tuple[int, int]]) -> dict[tuple[int, int], list[int]]:
    groups: dict[tuple[int, int], list[int]] = {}
    for place, size in enumerate(sizes):
        groups.setdefault(size, []).append(place)
    return groups
