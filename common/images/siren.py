"""Codec 3, `siren`: an image layer as the quantised weights of a sine network (decoding half).

A network maps a position in the layer's region, (x, y) in [-1, 1] over pixel centres, to three values: `depth` sine layers of
`width` units, sin(x W + b), then a linear layer (SIREN, arXiv:2006.09661; Residual-INR, arXiv:2408.05617, where the frequency
w0 = 30 is a factor beside W; here it is folded into the weights). A background's values are RGB mapped to [-1, 1];
an object's are the residual to the decoded background, divided by the layer's scale.

Payload, version 1: depth u8, width u8, one step number u8 for each of the depth + 1 layers, an entropy table u8 for each
layer's weights and biases, then one rANS stream of the int8 weights: layer by layer, weights (inputs, outputs) in C order,
then biases. A weight is its int8 times its layer's step, 2 ** (number / 8 - 24).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images import rans
from fogline.common.images.codec import LayerCodec, Placement, register
from fogline.common.images.record import Layer, LayerKind

MAX_DEPTH = 16
MAX_WIDTH = 128
STEPS: NDArray[np.float32] = np.exp2(np.arange(256) / 8 - 24).astype(np.float32)
_CPU_ELEMENTS = 1 << 18  # activations of one tensor call: they should stay in a core's cache
_GPU_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Shape:
    """A network's shape: `depth` sine layers of `width` units."""

    depth: int
    width: int

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every layer, the linear one last."""
        sizes = (2, *(self.width,) * self.depth, 3)
        return tuple(zip(sizes, sizes[1:], strict=False))

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)


@dataclass(frozen=True)
class Network:
    """One network, entropy-decoded: int8 weights (parameters,) and the step number of each layer."""

    shape: Shape
    steps: tuple[int, ...]
    weights: NDArray[np.int8]


def _tensors(shape: Shape) -> Iterator[tuple[int, int]]:
    """Start and end of each layer's weights, then biases, in the flat order."""
    start = 0
    for inputs, outputs in shape.layers:
        for count in (inputs * outputs, outputs):
            yield start, start + count
            start += count


def pack(network: Network) -> bytes:
    """The payload of a network."""
    runs = []
    for start, end in _tensors(network.shape):
        symbols = network.weights[start:end]
        runs.append((rans.best_table(symbols), symbols))
    head = bytes([network.shape.depth, network.shape.width, *network.steps, *(table for table, _ in runs)])
    return head + rans.encode(runs)


def unpack(payload: bytes) -> Network:
    """The network of a payload. Raises FormatError for anything that `pack` doesn't write."""
    if len(payload) < 2:
        raise FormatError(f"siren payload of {len(payload)} bytes has no shape; the record is damaged")
    shape = Shape(payload[0], payload[1])
    if not (1 <= shape.depth <= MAX_DEPTH and 1 <= shape.width <= MAX_WIDTH):
        raise FormatError(
            f"siren network of depth {shape.depth} and width {shape.width} is outside 1 to {MAX_DEPTH} "
            f"and 1 to {MAX_WIDTH}; the record is damaged"
        )
    linear = shape.depth + 1
    head = 2 + 3 * linear
    if len(payload) < head:
        raise FormatError(f"siren payload of {len(payload)} bytes is shorter than its header of {head}; it is damaged")
    steps, tables = tuple(payload[2 : 2 + linear]), payload[2 + linear : head]
    counts = [end - start for start, end in _tensors(shape)]
    weights = rans.decode(payload[head:], list(zip(tables, counts, strict=True)))
    return Network(shape, steps, np.concatenate(weights))


def dequantise(networks: Sequence[Network], device: torch.device) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights (N, inputs, outputs) and biases (N, 1, outputs), float32, of every layer of N networks of one shape."""
    shape = networks[0].shape
    flat = torch.from_numpy(np.stack([network.weights for network in networks])).to(device).float()
    steps = torch.from_numpy(STEPS[np.array([network.steps for network in networks])]).to(device)
    layers, start = [], 0
    for index, (inputs, outputs) in enumerate(shape.layers):
        step = steps[:, index, None, None]
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        weights = flat[:, start:middle].view(-1, inputs, outputs) * step
        layers.append((weights, flat[:, middle:end].view(-1, 1, outputs) * step))
        start = end
    return layers


def sine_(x: torch.Tensor) -> torch.Tensor:
    """sin in place. On a CPU by numpy, whose vectorised float32 sine takes a third of the time of torch's."""
    if x.device.type == "cpu":
        np.sin(x.numpy(), out=x.numpy())
        return x
    return x.sin_()


def evaluate(layers: Sequence[tuple[torch.Tensor, torch.Tensor]], positions: torch.Tensor) -> torch.Tensor:
    """Values (N, P, 3) of N networks at positions (N, P, 2), or (1, P, 2) shared by all, in slices that fit a cache."""
    count, width = layers[0][0].shape[0], layers[0][0].shape[2]
    budget = _CPU_ELEMENTS if positions.device.type == "cpu" else _GPU_ELEMENTS
    stride = max(256, budget // (count * width))
    out = positions.new_empty(count, positions.shape[1], 3)
    for start in range(0, positions.shape[1], stride):
        values = positions[:, start : start + stride].expand(count, -1, -1)
        for weights, biases in layers[:-1]:
            values = sine_(torch.baddbmm(biases, values, weights))
        torch.baddbmm(layers[-1][1], values, layers[-1][0], out=out[:, start : start + stride])
    return out


def positions_of(place: Placement) -> NDArray[np.float32]:
    """Positions (h * w, 2) in [-1, 1] of the pixel centres of a placement, row by row."""
    x0, y0, x1, y1 = place.source
    x = 2 * (x0 + (np.arange(place.w) + 0.5) / place.w * (x1 - x0)) - 1
    y = 2 * (y0 + (np.arange(place.h) + 0.5) / place.h * (y1 - y0)) - 1
    return np.stack([np.tile(x, place.h), np.repeat(y, place.w)], axis=1).astype(np.float32)


@register
class SirenCodec(LayerCodec):
    """Decodes `siren` layers: networks of one shape together, as batched matrix products."""

    number: ClassVar[int] = 3
    version: ClassVar[int] = 1
    name: ClassVar[str] = "siren"
    additive: ClassVar[bool] = True

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> Network:
        """Parse and entropy-decode; see `unpack`."""
        return unpack(layer.payload)

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        """See LayerCodec.render."""
        out: list[torch.Tensor | None] = [None] * len(prepared)
        for members in _groups(prepared, places):
            layers = dequantise([prepared[i] for i in members], device)
            values = evaluate(layers, _stack_positions([places[i] for i in members]).to(device))
            for row, i in enumerate(members):
                place = places[i]
                image = values[row, : place.h * place.w].view(place.h, place.w, 3).permute(2, 0, 1)
                out[i] = ((image + 1) / 2).clamp_(0, 1) if kinds[i] is LayerKind.BACKGROUND else image.clamp(-1, 1)
        return [image for image in out if image is not None]


def _groups(networks: Sequence[Network], places: Sequence[Placement]) -> Iterator[list[int]]:
    """Indices of networks that are evaluated together: of one shape, and of about the same number of pixels."""
    groups: dict[tuple[Shape, int], list[int]] = {}
    for i, (network, place) in enumerate(zip(networks, places, strict=True)):
        groups.setdefault((network.shape, (place.w * place.h).bit_length()), []).append(i)
    yield from groups.values()


def _stack_positions(places: Sequence[Placement]) -> torch.Tensor:
    """Positions (N, P, 2), zero after the end of a smaller placement, or (1, P, 2) where all placements agree."""
    if all((p.w, p.h, p.source) == (places[0].w, places[0].h, places[0].source) for p in places):
        return torch.from_numpy(positions_of(places[0])[None])
    out = np.zeros((len(places), max(p.w * p.h for p in places), 2), dtype=np.float32)
    for row, place in enumerate(places):
        out[row, : place.w * place.h] = positions_of(place)
    return torch.from_numpy(out)
