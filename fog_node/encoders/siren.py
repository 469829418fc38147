"""The `siren` encoder: backgrounds first, then objects against the decoded, quantised backgrounds (Residual-INR)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.codec import EncodedImage, ImageEncoder, Placement, SourceImage
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.regions import object_regions
from fogline.common.images.siren import PreparedNetworks, SirenCodec
from fogline.common.images.siren_payload import Grid, Networks, Shape, pack
from fogline.common.images.siren_tiles import tiles
from fogline.fog_node.encoders.siren_batches import Signal, fit_batches
from fogline.fog_node.encoders.siren_fit import FittedNetwork, Schedule
from fogline.fog_node.encoders.siren_params import SirenParams
from fogline.fog_node.encoders.siren_reference import fit_reference
from fogline.fog_node.encoders.siren_shapes import REFERENCE_BACKGROUND, background_networks, object_shape

_DEEP = 5  # sine layers from which on the gradients' eigenbasis pays
_ROBUST = 99.5  # percentile of the residual that an object network's range covers


@dataclass(frozen=True)
class LayerSource:
    """A layer to be coded: values (h, w, 3) in [-1, 1] for its region."""

    image: int
    region: tuple[int, int, int, int]
    scale: float
    shape: Shape
    grid: Grid
    values: NDArray[np.float32]

    @property
    def place(self) -> Placement:
        """The whole layer at the coded size."""
        return Placement(0, 0, self.region[2], self.region[3], (0.0, 0.0, 1.0, 1.0))

    @property
    def signals(self) -> list[Signal]:
        """What each network of the grid has to learn."""
        return [
            Signal(self.shape, t.xs, t.ys, self.values[t.y : t.y + len(t.ys), t.x : t.x + len(t.xs)].reshape(-1, 3))
            for t in tiles(self.place, self.grid)
        ]

    def networks(self, fitted: Sequence[FittedNetwork]) -> Networks:
        """The fitted networks of the grid together."""
        steps, weights = np.stack([f.steps for f in fitted]), np.stack([f.weights for f in fitted])
        return Networks(self.shape, self.grid, steps, weights, fitted[0].frequency)


class SirenEncoder(ImageEncoder):
    """Encodes images as one background network and one residual network for each box."""

    def __init__(self, params: SirenParams, device: str) -> None:
        self._params, self._device = params, torch.device(device)
        self._codec = SirenCodec()

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See ImageEncoder.encode."""
        frames = [self.frame_source(index, image) for index, image in enumerate(images)]
        backgrounds = self.fit(frames, LayerKind.BACKGROUND)
        decoded = self.decode(backgrounds, frames, LayerKind.BACKGROUND)
        objects = [o for i, background in enumerate(decoded) for o in self.object_sources(i, images[i], background)]
        residuals = self.fit(objects, LayerKind.OBJECT)
        layers = [[self._layer(LayerKind.BACKGROUND, f, b)] for f, b in zip(frames, backgrounds, strict=True)]
        for source, networks in zip(objects, residuals, strict=True):
            layers[source.image].append(self._layer(LayerKind.OBJECT, source, networks))
        return [EncodedImage(tuple(of_image)) for of_image in layers]

    def fit(self, sources: Sequence[LayerSource], kind: LayerKind) -> list[Networks]:
        """Fit the networks of layers of one kind."""
        params, background = self._params, kind is LayerKind.BACKGROUND
        signals = [signal for source in sources for signal in source.signals]
        steps = params.steps if background else params.object_steps
        if params.profile == "reference":
            fitted = [fit_reference(signal, steps or 10_000, params.seed, self._device) for signal in signals]
        else:
            plan = background_schedule if background else object_schedule
            fitted = fit_batches(signals, partial(plan, params), params.seed, self._device)
        rest = iter(fitted)
        return [source.networks(list(islice(rest, source.grid.networks))) for source in sources]

    def frame_source(self, index: int, image: SourceImage) -> LayerSource:
        """What the image's background networks have to learn."""
        params, (height, width) = self._params, image.pixels.shape[:2]
        if params.depth and params.width and params.columns and params.rows:
            shape = Shape(params.depth, params.width)
            grid = Grid(min(params.columns, width), min(params.rows, height))
        elif params.profile == "reference":
            shape, grid = REFERENCE_BACKGROUND
        else:
            shape, grid = background_networks(image.pixels, params.target_db)
        target = image.pixels.astype(np.float32) / np.float32(127.5) - 1
        return LayerSource(index, (0, 0, width, height), 1.0, shape, grid, target)

    def object_sources(self, index: int, image: SourceImage, background: NDArray[np.float32]) -> Iterator[LayerSource]:
        """What the image's object networks have to learn: the residual to the decoded background, pixel by pixel once.

        Residuals are added up where regions overlap, so the first (largest) region codes those pixels and the others
        zero.
        """
        residual = image.pixels.astype(np.float32) / np.float32(255) - background
        height, width = residual.shape[:2]
        for x, y, w, h in object_regions(image.boxes, width, height):
            view = residual[y : y + h, x : x + w]
            shape = object_shape(w * h, "reference" if self._params.profile == "reference" else self._params.objects)
            scale = residual_range(view)
            values = np.clip(view / np.float32(scale), -1, 1)
            view[:] = 0
            yield LayerSource(index, (x, y, w, h), scale, shape, Grid(1, 1), values)

    def decode(
        self, networks: Sequence[Networks], sources: Sequence[LayerSource], kind: LayerKind
    ) -> list[NDArray[np.float32]]:
        """What a receiver decodes of layers of one kind at the coded size: (h, w, 3) of each."""
        places = [source.place for source in sources]
        prepared = [PreparedNetworks(n, s.region[2:]) for n, s in zip(networks, sources, strict=True)]
        tensors = self._codec.render(prepared, [kind] * len(sources), places, self._device)
        return [tensor.permute(1, 2, 0).cpu().numpy() for tensor in tensors]

    def _layer(self, kind: LayerKind, source: LayerSource, networks: Networks) -> Layer:
        return Layer(kind, self._codec.number, self._codec.version, source.region, source.scale, pack(networks))


def background_schedule(params: SirenParams, shape: Shape, pixels: int) -> Schedule:
    """How the fast profile fits a background network for this many pixels."""
    piece = params.slice or min(max(128, round(pixels / 40 / 64) * 64), 1024)
    return Schedule(params.steps or 1000, piece, *_rates(shape, 0.004), params.bits, shape.depth >= _DEEP)


def object_schedule(params: SirenParams, shape: Shape, pixels: int) -> Schedule:
    """How the fast profile fits an object network for this many pixels."""
    piece = min(max(64, round(pixels / 2 / 64) * 64), 512)
    return Schedule(params.object_steps or 800, piece, *_rates(shape, 0.02), params.bits, shape.depth >= _DEEP)


def _rates(shape: Shape, output_rate: float) -> tuple[float, float, int, float]:
    """Learning rates, first frequency and length of the finish, which has to round every layer.

    Shallow networks: about half of the rate at which they begin to collapse to a constant.
    """
    if shape.depth >= _DEEP:
        return 3.4 / (shape.width * shape.depth), output_rate, 15, 0.3
    return min(0.2, 5 / (shape.width * shape.depth)), output_rate, 10, 0.2


def residual_range(residual: NDArray[np.float32]) -> float:
    """The range Q that an object network codes: robust, because one outlier would waste it; a float32 value."""
    return float(np.float32(max(np.percentile(np.abs(residual), _ROBUST), 1 / 255)))
