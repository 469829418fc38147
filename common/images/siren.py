"""Codec 3, `siren`: an image layer as the quantised weights of sine networks (decoding half).

A network maps a position (x, y) in [-1, 1] to three values: sine layers, sin(W x + b), then a linear layer (SIREN,
arXiv:2006.09661; Residual-INR, arXiv:2408.05617, where a factor w0 = 30 stands before W and b; here it is folded in).
A background's values are RGB mapped to [-1, 1]; an object's are the residual to the decoded background, divided by the
layer's scale. A layer may be a grid of small networks instead of one large one: a pixel then costs what one of them
costs.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.codec import LayerCodec, Placement, register
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.sampling import Sampling, Samplings
from fogline.common.images.siren_base import base_weights
from fogline.common.images.siren_canvas import Canvas, send
from fogline.common.images.siren_payload import STEPS, Networks, Shape, unpack
from fogline.common.images.siren_tiles import Tile, tiles
from fogline.common.images.threads import each

_CPU_ELEMENTS = 1 << 17  # activations of one tensor call: they should stay in a core's cache
_GPU_ELEMENTS = 1 << 27
_GROUP_ELEMENTS = 1 << 24  # weights and sines of networks evaluated together: bounds what a hostile record takes

Weights = Sequence[tuple[torch.Tensor, torch.Tensor]]  # (N, outputs, inputs) and (N, outputs, 1) of every layer


@dataclass(frozen=True)
class PreparedNetworks:
    """A layer's networks, and the size in pixels (width, height) of the region that they were fitted to."""

    networks: Networks
    size: tuple[int, int]


@register
class SirenCodec(LayerCodec):
    """Decodes `siren` layers: networks of one shape together, as batched matrix products."""

    number: ClassVar[int] = 3
    version: ClassVar[int] = 2
    name: ClassVar[str] = "siren"
    additive: ClassVar[bool] = True

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> PreparedNetworks:
        """Parse and entropy-decode; see `unpack`."""
        return PreparedNetworks(unpack(layer.payload, layer.version), layer.region[2:])

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """See LayerCodec.render.

        Networks were fitted at the centres of their layer's pixels, and between them objects are 3 to 4 dB worse: they
        are evaluated at the centres that a placement needs, and resampled from there.
        """
        made = Samplings(device)
        samplings = [made.of(place, one.size) for one, place in zip(prepared, places, strict=True)]
        evaluated = [_on_grid(sampling, one.size) for one, sampling in zip(prepared, samplings, strict=True)]
        networks = [one.networks for one in prepared]
        canvas = Canvas(kinds, evaluated, device)
        for shape, frequency, members in _groups(networks, evaluated):
            weights = np.stack([networks[i].weights[tile.network] for i, tile in members])
            steps = np.stack([networks[i].steps[tile.network] for i, tile in members])
            base = send(base_weights(shape, frequency).copy(), device)
            layers = dequantise(shape, send(weights, device), send(STEPS[steps], device), base)
            values = evaluate(
                layers, _stack([t.xs for _, t in members], device), _stack([t.ys for _, t in members], device)
            )
            canvas.fill(members, values)
        pixels = zip(samplings, canvas.layers(), strict=True)
        return [sampling.take(layer, sampling.window) for sampling, layer in pixels]


def _on_grid(sampling: Sampling, size: tuple[int, int]) -> Placement:
    """The window of a sampling, pixel for pixel."""
    window, (w, h) = sampling.window, size
    source = (window.x / w, window.y / h, (window.x + window.w) / w, (window.y + window.h) / h)
    return Placement(0, 0, window.w, window.h, source)


def dequantise(shape: Shape, weights: torch.Tensor, steps: torch.Tensor, base: torch.Tensor) -> Weights:
    """Float weights of N networks from int8 (N, parameters), step sizes (N, depth + 1) and their base (parameters,)."""
    layers, start = [], 0
    for index, (inputs, outputs) in enumerate(shape.layers):
        step = steps[:, index, None, None]
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        matrix = weights[:, start:middle].view(-1, outputs, inputs) * step + base[start:middle].view(outputs, inputs)
        layers.append((matrix, weights[:, middle:end].view(-1, outputs, 1) * step + base[middle:end].view(outputs, 1)))
        start = end
    return layers


def evaluate(layers: Weights, xs: torch.Tensor, ys: torch.Tensor) -> torch.Tensor:
    """Values (N, 3, h, w) of N networks on their own grids of columns (N, w) and rows (N, h).

    In pieces that fit a cache, units before pixels: a product with three rows is far cheaper than one with three
    columns. On a grid the first layer needs sines of columns and rows only, not of pixels:
    sin(x + y) = sin y cos x + cos y sin x.
    """
    first, *rest = layers
    x, y = first[0][:, :, :1] * xs[:, None, :], first[0][:, :, 1:] * ys[:, None, :] + first[1]
    sin_x, cos_x, sin_y, cos_y = x.sin(), x.cos(), y.sin(), y.cos()
    (count, width, h), w = y.shape, x.shape[2]
    budget = _CPU_ELEMENTS if xs.device.type == "cpu" else _GPU_ELEMENTS
    stride = max(1, min(h, budget // (w * width)))
    networks = max(1, budget // (w * width * stride))
    out = xs.new_empty(count, 3, h, w)

    def fill(piece: tuple[int, int]) -> None:
        some, rows = slice(piece[0], piece[0] + networks), slice(piece[1], piece[1] + stride)
        grid = sin_y[some, :, rows, None] * cos_x[some, :, None]
        grid.addcmul_(cos_y[some, :, rows, None], sin_x[some, :, None])
        values = grid.view(-1, width, grid.shape[2] * w)
        for weights, biases in rest[:-1]:
            values = _sine_(torch.baddbmm(biases[some], weights[some], values))
        weights, biases = rest[-1]
        out[some, :, rows] = torch.baddbmm(biases[some], weights[some], values).view(-1, 3, grid.shape[2], w)

    each(fill, [(start, top) for start in range(0, count, networks) for top in range(0, h, stride)], xs.device)
    return out


def _sine_(x: torch.Tensor) -> torch.Tensor:
    """sin in place. On a CPU by numpy, whose vectorised float32 sine takes a third of the time of torch's."""
    if x.device.type == "cpu":
        np.sin(x.numpy(), out=x.numpy())
        return x
    return x.sin_()


def _groups(
    prepared: Sequence[Networks], places: Sequence[Placement]
) -> Iterator[tuple[Shape, int, list[tuple[int, Tile]]]]:
    """(layer, tile) evaluated together: of one network shape and base, and of about the same size, to pad little."""
    groups: dict[tuple[Shape, int, int, int], list[tuple[int, Tile]]] = {}
    for i, (networks, place) in enumerate(zip(prepared, places, strict=True)):
        for tile in tiles(place, networks.grid):
            key = networks.shape, networks.frequency, len(tile.xs).bit_length(), len(tile.ys).bit_length()
            groups.setdefault(key, []).append((i, tile))
    for (shape, frequency, columns, rows), members in groups.items():
        most = max(1, _GROUP_ELEMENTS // (shape.parameters + shape.width * ((1 << columns) + (1 << rows))))
        for start in range(0, len(members), most):
            yield shape, frequency, members[start : start + most]


def _stack(rows: Sequence[NDArray[np.float32]], device: torch.device) -> torch.Tensor:
    """Rows of different lengths as one tensor, zero after the end of a shorter one."""
    out = np.zeros((len(rows), max(len(row) for row in rows)), np.float32)
    for into, row in zip(out, rows, strict=True):
        into[: len(row)] = row
    return send(out, device)
