"""Where a trainer takes its images from: a pool that may grow while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fogline.common.errors import InputError
from fogline.common.models.augment import Cuts, cut
from fogline.common.models.detection import Target


class ImagePool(Protocol):
    """Annotated images of one size, numbered from 0 in order of arrival. It may grow but never reorders or shrinks."""

    def __len__(self) -> int: ...

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images. Raises InputError while there is none."""
        ...

    def views(self, indices: Sequence[int], cuts: Cuts, size: tuple[int, int], device: torch.device) -> Tensor:
        """What `cuts` show of images, at `size` (w, h): float32 (B, 3, h, w) in [0, 1] on the device."""
        ...

    def target(self, index: int) -> Target:
        """The objects in an image."""
        ...


class TensorPool:
    """Images held as uint8 in memory: 3 W H bytes each."""

    def __init__(self) -> None:
        self._images: list[Tensor] = []
        self._targets: list[Target] = []

    def add(self, image: Tensor, target: Target) -> None:
        """Append an image, (3, H, W): uint8, or float in [0, 1]. Raises InputError when it is of another size."""
        if image.dtype != torch.uint8:
            image = (image.clamp(0, 1) * 255).round().to(torch.uint8)
        if self._images and image.shape != self._images[0].shape:
            raise InputError(
                f"an image of {tuple(image.shape)} in a pool of {tuple(self._images[0].shape)}; decode all to one size"
            )
        self._images.append(image)
        self._targets.append(target)

    @classmethod
    def of(cls, images: Sequence[Tensor], targets: Sequence[Target]) -> TensorPool:
        """A pool that holds these."""
        pool = cls()
        for image, target in zip(images, targets, strict=True):
            pool.add(image, target)
        return pool

    def __len__(self) -> int:
        return len(self._images)

    @property
    def size(self) -> tuple[int, int]:
        """Width and height of the images. Raises InputError while there is none."""
        if not self._images:
            raise InputError("a pool without images has no size; add one")
        return int(self._images[0].shape[2]), int(self._images[0].shape[1])

    def views(self, indices: Sequence[int], cuts: Cuts, size: tuple[int, int], device: torch.device) -> Tensor:
        """What `cuts` show of images, at `size` (w, h): float32 (B, 3, h, w) in [0, 1] on the device."""
        return cut(torch.stack([self._images[i] for i in indices]).float().to(device) / 255, cuts, size)

    def target(self, index: int) -> Target:
        """The objects in an image."""
        return self._targets[index]
