"""The `siren` encoder: backgrounds first, then objects against the decoded, quantised backgrounds (Residual-INR)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.codec import EncodedImage, ImageEncoder, Placement, SourceImage
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.regions import object_regions
from fogline.common.images.siren import Network, Shape, SirenCodec, pack
from fogline.fog_node.encoders.siren_batches import Signal, fit_batches
from fogline.fog_node.encoders.siren_fit import Schedule
from fogline.fog_node.encoders.siren_params import SirenParams
from fogline.fog_node.encoders.siren_reference import fit_reference
from fogline.fog_node.encoders.siren_shapes import REFERENCE_BACKGROUND, background_shape, object_shape

_WHOLE = (0.0, 0.0, 1.0, 1.0)
_ROBUST = 99.5  # percentile of the residual that an object network's range covers


@dataclass(frozen=True)
class _Object:
    image: int
    region: tuple[int, int, int, int]
    scale: float
    signal: Signal


class SirenEncoder(ImageEncoder):
    """Encodes images as one background network and one residual network for each box."""

    def __init__(self, params: SirenParams, device: str) -> None:
        self._params, self._device = params, torch.device(device)
        self._codec = SirenCodec()

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See ImageEncoder.encode."""
        signals = [self._background(image) for image in images]
        backgrounds = self._fit(signals, LayerKind.BACKGROUND)
        decoded = self._decode(backgrounds, signals)
        objects = [
            item
            for index, (image, background) in enumerate(zip(images, decoded, strict=True))
            for item in _objects(index, image, background)
        ]
        networks = self._fit([item.signal for item in objects], LayerKind.OBJECT)
        layers = [
            [self._layer(LayerKind.BACKGROUND, _frame(i), 1.0, b)] for i, b in zip(images, backgrounds, strict=True)
        ]
        for item, network in zip(objects, networks, strict=True):
            layers[item.image].append(self._layer(LayerKind.OBJECT, item.region, item.scale, network))
        return [EncodedImage(tuple(of_image)) for of_image in layers]

    def _fit(self, signals: Sequence[Signal], kind: LayerKind) -> list[Network]:
        params, background = self._params, kind is LayerKind.BACKGROUND
        steps = params.steps if background else params.object_steps
        if params.profile == "reference":
            return [fit_reference(s, steps or 10_000, params.seed, self._device) for s in signals]
        schedule = background_schedule(params) if background else object_schedule(params)
        return fit_batches(signals, schedule, params.seed, self._device)

    def _background(self, image: SourceImage) -> Signal:
        height, width = image.pixels.shape[:2]
        target = image.pixels.reshape(-1, 3).astype(np.float32) / 127.5 - 1
        return Signal(self._background_shape(image.pixels), width, height, target)

    def _background_shape(self, pixels: NDArray[np.uint8]) -> Shape:
        if self._params.depth is not None and self._params.width is not None:
            return Shape(self._params.depth, self._params.width)
        if self._params.profile == "reference":
            return REFERENCE_BACKGROUND
        return background_shape(pixels, self._params.target_db)

    def _decode(self, networks: Sequence[Network], signals: Sequence[Signal]) -> list[NDArray[np.float32]]:
        """What a receiver decodes at the coded size: (H, W, 3) in [0, 1]."""
        places = [Placement(0, 0, s.width, s.height, _WHOLE) for s in signals]
        tensors = self._codec.render(networks, [LayerKind.BACKGROUND] * len(networks), places, self._device)
        return [tensor.permute(1, 2, 0).cpu().numpy() for tensor in tensors]

    def _layer(self, kind: LayerKind, region: tuple[int, int, int, int], scale: float, network: Network) -> Layer:
        return Layer(kind, self._codec.number, self._codec.version, region, scale, pack(network))


def background_schedule(params: SirenParams) -> Schedule:
    """How the fast profile fits backgrounds."""
    return Schedule(params.steps or 800, 1024, 0.1, 0.01, 15.0, 0.2, params.bits)


def object_schedule(params: SirenParams) -> Schedule:
    """How the fast profile fits objects."""
    return Schedule(params.object_steps or 400, 256, 0.1, 0.01, 8.0, 0.2, params.bits)


def _objects(index: int, image: SourceImage, background: NDArray[np.float32]) -> Iterator[_Object]:
    """What the image's object networks have to learn: the residual to the decoded background, pixel by pixel once.

    Residuals are added up where regions overlap, so the first (largest) region codes those pixels and the others zero.
    """
    residual = image.pixels.astype(np.float32) / np.float32(255) - background
    height, width = residual.shape[:2]
    for x, y, w, h in object_regions(image.boxes, width, height):
        view = residual[y : y + h, x : x + w]
        crop = view.reshape(-1, 3)
        scale = residual_range(crop)
        target = np.clip(crop / np.float32(scale), -1, 1)
        view[:] = 0
        yield _Object(index, (x, y, w, h), scale, Signal(object_shape(w * h), w, h, target))


def residual_range(residual: NDArray[np.float32]) -> float:
    """The range Q that an object network codes: robust, because one outlier would waste it; a float32 value."""
    return float(np.float32(max(np.percentile(np.abs(residual), _ROBUST), 1 / 255)))


def _frame(image: SourceImage) -> tuple[int, int, int, int]:
    return 0, 0, image.pixels.shape[1], image.pixels.shape[0]
