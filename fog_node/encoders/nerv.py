"""The `nerv` encoder: one network for each run of frames of a camera, and AVIF crops for their objects.

Nothing is kept between batches: a run ends with its batch, so what a batch gives depends on its frames alone.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images import avif2, static_rans
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.nerv import Nerv
from fogline.common.images.nerv_payload import CONTEXTS, Frame, Shape, contexts, pack_frame, pack_network
from fogline.common.images.record import Layer, LayerKind, SharedState
from fogline.common.images.regions import object_regions
from fogline.fog_node.encoders.nerv_fit import Plan, fit
from fogline.fog_node.encoders.nerv_params import NervParams

_OBJECT_WEIGHT = 0.05  # of an error below an object's layer, which hides it


class NervEncoder(ImageEncoder):
    """Encodes images of any number of cameras; those of one camera and size share networks."""

    def __init__(self, params: NervParams, device: str) -> None:
        self._params, self._device = params, torch.device(device)
        self.together = params.group

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See ImageEncoder.encode."""
        runs: dict[tuple[str, int, int], list[int]] = {}
        for i, image in enumerate(images):
            runs.setdefault((image.camera, *image.pixels.shape[1::-1]), []).append(i)
        out: dict[int, EncodedImage] = {}
        for members in runs.values():
            # Of equal lengths: a rest of a few frames would pay for a network of its own.
            for group in np.array_split(members, -(-len(members) // self._params.group)):
                chosen = group.tolist()
                out.update(zip(chosen, self._group([images[i] for i in chosen]), strict=True))
        return [out[i] for i in range(len(images))]

    def _group(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        height, width = images[0].pixels.shape[:2]
        shape = shape_of(self._params, width, height, len(images))
        regions = [object_regions(image.boxes, width, height) for image in images]

        def pixels(index: int) -> torch.Tensor:
            return torch.from_numpy(images[index].pixels.astype(np.float32) / 255).permute(2, 0, 1)

        def weights(index: int) -> torch.Tensor:
            found = torch.ones(height, width)
            for x, y, w, h in regions[index]:
                found[y : y + h, x : x + w] = _OBJECT_WEIGHT
            return found

        params = self._params
        plan = Plan(params.steps, price(params.quality), params.bits, params.seed)
        fitted = fit(shape, pixels, weights, plan, self._device)
        tables = latent_tables(fitted.latents)
        blob = pack_network(replace(fitted.network(shape), tables=tables))
        whole = (0, 0, width, height)
        shared: tuple[SharedState, ...] = (SharedState(hashlib.sha256(blob).digest(), blob),)
        out = []
        for index, (image, of_image) in enumerate(zip(images, regions, strict=True)):
            layers, needed = [], shared
            try:
                payload = pack_frame(Frame(0, index, fitted.latents[index]), tables)
                layers.append(Layer(LayerKind.BACKGROUND, Nerv.number, Nerv.version, whole, 1.0, payload))
            except static_rans.StreamTooLongError:
                payload, needed = avif2.encode_payload(image.pixels, params.quality, full_chroma=False), ()
                layers.append(Layer(LayerKind.BACKGROUND, avif2.Avif2.number, avif2.Avif2.version, whole, 1.0, payload))
            for x, y, w, h in of_image:
                crop = np.ascontiguousarray(image.pixels[y : y + h, x : x + w])
                coded = avif2.encode_payload(crop, params.object_quality, full_chroma=True)
                layers.append(
                    Layer(LayerKind.OBJECT, avif2.Avif2.number, avif2.Avif2.version, (x, y, w, h), 1.0, coded)
                )
            out.append(EncodedImage(tuple(layers), needed))
        return out


def shape_of(params: NervParams, width: int, height: int, frames: int) -> Shape:
    """The network for frames of this size: as asked for, or with fewer channels where frames are too large for it."""
    shape = Shape(width, height, frames, params.latents, params.grid, params.channels)
    while shape.problem() is not None and (shape.grid or shape.channels > 1):
        shape = replace(shape, grid=shape.grid // 2, channels=max(1, shape.channels // 2))
    return shape


def price(quality: int) -> float:
    """Squared error, of pixels 0 to 1, for a bit a pixel: 1280 squared grey levels at 30, half of it 10 further."""
    return float(1280 / 255**2 * 2 ** ((30 - quality) / 10))


def latent_tables(latents: NDArray[np.int16]) -> tuple[tuple[int, ...], ...]:
    """For each channel of (frames, channels, rows, columns) and each context, the table of the fewest bits."""
    histogram = np.zeros((latents.shape[1], CONTEXTS, static_rans.ESCAPE + 1), np.int64)
    channels = np.arange(latents.shape[1])[:, None]
    for magnitudes in np.abs(latents):
        for row in range(magnitudes.shape[1]):
            symbols = np.minimum(magnitudes[:, row], static_rans.ESCAPE)
            np.add.at(histogram, (channels, contexts(magnitudes, row), symbols), 1)
    costs = static_rans.costs()[: static_rans.TABLES]
    return tuple(tuple(int(np.argmin(costs @ counts)) for counts in of_channel) for of_channel in histogram)
