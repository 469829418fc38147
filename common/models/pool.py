"""Where a trainer takes its images from: a pool that may grow while it trains."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from fogline.common.errors import InputError
from fogline.common.models.detection import Target


class ImagePool(Protocol):
    """Annotated images of one size, numbered from 0 in order of arrival. It may grow but never reorders or shrinks."""

    def __len__(self) -> int: ...

    def images(self, indices: Sequence[int]) -> Tensor:
        """Float32 (B, 3, H, W) in [0, 1]."""
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

    def images(self, indices: Sequence[int]) -> Tensor:
        """Float32 (B, 3, H, W) in [0, 1]."""
        return torch.stack([self._images[i] for i in indices]).float() / 255

    def target(self, index: int) -> Target:
        """The objects in an image."""
        return self._targets[index]
