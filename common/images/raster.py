"""What the classical codecs share: encoding a background and crops, and turning decoded rasters into tensors."""

from __future__ import annotations

import os
from abc import abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from fogline.common.errors import ConfigError
from fogline.common.images.codec import EncodedImage, ImageEncoder, LayerCodec, Placement, SourceImage
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.regions import object_regions

if TYPE_CHECKING:
    import torch

T = TypeVar("T")
R = TypeVar("R")


class RasterCodec(LayerCodec):
    """A codec whose layers are pictures, which can be had without torch; objects replace the background."""

    additive: ClassVar[bool] = False

    @abstractmethod
    def picture(self, prepared: Any) -> Image.Image:
        """Decode a layer at its own size, RGB. Raises FormatError."""

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """See `LayerCodec.render`."""
        return render(self.picture, prepared, places, device)


def composed(layers: Sequence[Layer], codecs: Sequence[RasterCodec]) -> NDArray[np.uint8]:
    """The picture of one image's layers at their own size, (H, W, 3) RGB, without torch. Raises FormatError.

    Every header is read before any pixel is decoded.
    """
    prepared = [codec.prepare(layer, {}) for layer, codec in zip(layers, codecs, strict=True)]
    canvas = codecs[0].picture(prepared[0])
    for layer, codec, one in zip(layers[1:], codecs[1:], prepared[1:], strict=True):
        canvas.paste(codec.picture(one), layer.region[:2])
    return np.asarray(canvas)


@dataclass(frozen=True)
class PairEncoder(ImageEncoder):
    """The whole frame at a low quality, and the pixels of each box again at a higher one, which replace it there."""

    codec: type[LayerCodec]
    background: Callable[[NDArray[np.uint8]], bytes]  # (H, W, 3) RGB to a payload
    object: Callable[[NDArray[np.uint8]], bytes]

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """Encode a batch, on as many threads as there are cores."""
        return _map(self._encode, images)

    def _encode(self, image: SourceImage) -> EncodedImage:
        height, width = image.pixels.shape[:2]
        layers = [self._layer(LayerKind.BACKGROUND, (0, 0, width, height), self.background(image.pixels))]
        for x, y, w, h in object_regions(image.boxes, width, height):
            payload = self.object(image.pixels[y : y + h, x : x + w])
            layers.append(self._layer(LayerKind.OBJECT, (x, y, w, h), payload))
        return EncodedImage(tuple(layers))

    def _layer(self, kind: LayerKind, region: tuple[int, int, int, int], payload: bytes) -> Layer:
        return Layer(kind, self.codec.number, self.codec.version, region, 1.0, payload)


def qualities(name: str, params: Mapping[str, Any], defaults: Mapping[str, int]) -> dict[str, int]:
    """The two qualities of a pair codec from its parameters, 1 to 100 each. Raises ConfigError for any other."""
    if unknown := sorted(set(params) - set(defaults)):
        raise ConfigError(f"codec {name}: parameter {unknown[0]!r} is unknown; it takes {', '.join(defaults)}")
    chosen = {**defaults, **params}
    for key, value in chosen.items():
        if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= 100:
            raise ConfigError(f"codec {name}: {key} is {value!r}; give a whole number from 1 to 100")
    return chosen


def render(
    decode: Callable[[T], Image.Image],
    prepared: Sequence[T],
    places: Sequence[Placement],
    device: torch.device,
    resample: Image.Resampling = Image.Resampling.BICUBIC,
) -> list[torch.Tensor]:
    """Decode rasters and resample them to their places: float32 (3, h, w) in [0, 1] each.

    All pixels travel to the device in one transfer and become floats in one call.
    """
    import torch  # here, so that encoders run without it

    offsets = np.cumsum([0, *(3 * place.w * place.h for place in places)]).tolist()
    pixels = np.empty(offsets[-1], np.uint8)

    def one(index: int) -> None:
        image = _resample(decode(prepared[index]), places[index], resample)
        pixels[offsets[index] : offsets[index + 1]] = np.asarray(image).reshape(-1)

    _map(one, range(len(prepared)))
    floats = torch.from_numpy(pixels).to(device).to(torch.float32).div_(255)
    return [
        floats[start:end].view(place.h, place.w, 3).permute(2, 0, 1)
        for (start, end), place in zip(pairwise(offsets), places, strict=True)
    ]


def _resample(image: Image.Image, place: Placement, method: Image.Resampling) -> Image.Image:
    box = (0.0, 0.0, 1.0, 1.0)
    if place.source == box and image.size == (place.w, place.h):
        return image
    # Pillow reads no pixel outside the image: edges that lie half a target pixel beyond it are pulled in.
    u0, v0, u1, v1 = (min(max(v, 0.0), 1.0) for v in place.source)
    box = (u0 * image.width, v0 * image.height, u1 * image.width, v1 * image.height)
    return image.resize((place.w, place.h), method, box)


def _map(function: Callable[[T], R], items: Sequence[T]) -> list[R]:
    """`map` on all cores: Pillow's codecs and resampling release the interpreter's lock."""
    workers = min(len(items), os.cpu_count() or 1)
    if workers < 2:
        return [function(item) for item in items]
    with ThreadPoolExecutor(workers) as pool:
        return list(pool.map(function, items))
