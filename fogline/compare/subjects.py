"""What is compared: the product's codecs by name, and baselines that exist only for comparison."""

from __future__ import annotations

import difflib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fogline.common.errors import ConfigError
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.decode import BatchDecoder, PreparedImage
from fogline.common.images.record import ImageRecord
from fogline.fog_node.encoders import CHOICES, build_encoder


class Subject(ABC):
    """One codec at one setting, from pixels to records and back. Frames of a camera come in order, in batches."""

    batch: int = 32  # frames that are encoded, and later decoded, together

    @abstractmethod
    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """Encode a batch: one result for each image."""

    @abstractmethod
    def prepare(self, records: Sequence[ImageRecord], shared: Mapping[bytes, bytes]) -> Any:
        """What a device does once with the records of a batch, on arrival."""

    @abstractmethod
    def decode(self, prepared: Any, size: tuple[int, int] | None = None) -> list[torch.Tensor]:
        """Decode a batch at `size` (width, height), or each image at its coded size: (3, H, W) in [0, 1]."""


class ProductCodec(Subject):
    """A codec of the fog node, decoded as devices decode it."""

    def __init__(self, name: str, params: Mapping[str, Any], device: str) -> None:
        self._encoder: ImageEncoder = build_encoder(name, params, device)
        self._decoder = BatchDecoder(device)
        self.batch = max(self.batch, self._encoder.together)

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See Subject.encode."""
        return self._encoder.encode(images)

    def prepare(self, records: Sequence[ImageRecord], shared: Mapping[bytes, bytes]) -> list[PreparedImage]:
        """See Subject.prepare."""
        return [self._decoder.prepare(record, shared) for record in records]

    def decode(self, prepared: Sequence[PreparedImage], size: tuple[int, int] | None = None) -> list[torch.Tensor]:
        """See Subject.decode; images of one size are decoded together."""
        sizes: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(prepared):
            sizes.setdefault(size or image.size, []).append(index)
        found: dict[int, torch.Tensor] = {}
        for target, indices in sizes.items():
            found.update(zip(indices, self._decoder.decode([prepared[i] for i in indices], target), strict=True))
        return [found[index] for index in range(len(prepared))]


Build = Callable[[Mapping[str, Any]], Subject]


def _av1_video(params: Mapping[str, Any]) -> Subject:
    from fogline.compare.av1_video import build  # needs PyAV

    return build(params, crops=False)


def _av1_video2(params: Mapping[str, Any]) -> Subject:
    from fogline.compare.av1_video import build

    return build(params, crops=True)


BASELINES: Mapping[str, Build] = {"av1-video": _av1_video, "av1-video2": _av1_video2}


def names() -> tuple[str, ...]:
    """Everything that can be compared."""
    return (*CHOICES, *BASELINES)


def build_subject(name: str, params: Mapping[str, Any], device: str = "cpu") -> Subject:
    """A codec at a setting. Raises ConfigError for an unknown name or parameter, and when a package is missing."""
    if name in BASELINES:
        return BASELINES[name](params)
    if name in CHOICES:
        return ProductCodec(name, params, device)
    close = difflib.get_close_matches(name, names(), n=1)
    hint = f"did you mean {close[0]!r}?" if close else f"known: {', '.join(names())}"
    raise ConfigError(f"image codec {name!r} is unknown; {hint}")
