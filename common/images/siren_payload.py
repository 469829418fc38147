"""The payload of a `siren` layer: a grid of quantised sine networks of one shape.

Version 2: depth u8; width u8; grid u8, (columns - 1) << 4 | (rows - 1); base u8, frequency | 128 where all networks
share their step numbers; one step number u8 for each of the depth + 1 layers, of each network, row by row, or once;
an entropy table u8 for each layer; then one rANS stream of int8: for each layer the weights of all networks,
(networks, outputs, inputs) in C order, then their biases. A weight is its int8 times its layer's step,
2 ** (number / 8 - 24), plus its base (`siren_base`).

Version 1, which is read only: no base; step numbers for each network; two tables for each layer, for weights and for
biases; weights in the order (networks, inputs, outputs).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images import rans

MAX_DEPTH = 16
MAX_WIDTH = 128
MAX_SIDE = 16  # networks in a row or column of the grid
MAX_FREQUENCY = 127
MAX_PARAMETERS = 1 << 18  # of all networks of a layer; ten times what a hard 320-pixel frame takes
STEPS: NDArray[np.float32] = np.exp2(np.arange(256) / 8 - 24).astype(np.float32)


@dataclass(frozen=True)
class Shape:
    """A network's shape: `depth` sine layers of `width` units, then a linear layer."""

    depth: int
    width: int

    @property
    def layers(self) -> tuple[tuple[int, int], ...]:
        """(inputs, outputs) of every layer, the linear one last."""
        return tuple(pairwise((2, *(self.width,) * self.depth, 3)))

    @property
    def parameters(self) -> int:
        """Number of weights and biases."""
        return sum((inputs + 1) * outputs for inputs, outputs in self.layers)


@dataclass(frozen=True)
class Grid:
    """`columns` x `rows` networks that share a layer's region, each with an equal part of it."""

    columns: int
    rows: int

    @property
    def networks(self) -> int:
        """Number of networks."""
        return self.columns * self.rows


@dataclass(frozen=True)
class Networks:
    """A layer's networks, entropy-decoded. Parameters lie layer by layer, weights (outputs, inputs) before biases."""

    shape: Shape
    grid: Grid
    steps: NDArray[np.uint8]  # (networks, depth + 1)
    weights: NDArray[np.int8]  # (networks, parameters)
    frequency: int = 0  # of the base that the weights are differences to; 0: no base


def pack(networks: Networks) -> bytes:
    """The payload, in version 2."""
    shape, grid, steps = networks.shape, networks.grid, networks.steps
    common = bool((steps == steps[0]).all())
    tables, runs = [], []
    for (start, middle), (_, end) in _layers(shape):
        parts = [networks.weights[:, start:middle].ravel(), networks.weights[:, middle:end].ravel()]
        tables.append(rans.best_table(np.concatenate(parts)))
        runs += [(tables[-1], part) for part in parts]
    head = [shape.depth, shape.width, grid.columns - 1 << 4 | grid.rows - 1, networks.frequency | common << 7]
    return bytes(head) + (steps[0] if common else steps).tobytes() + bytes(tables) + rans.encode(runs)


def unpack(payload: bytes, version: int = 2) -> Networks:
    """The networks of a payload of this version, 1 or 2. Raises FormatError for anything that `pack` doesn't write."""
    fixed = 4 if version > 1 else 3
    if len(payload) < fixed:
        raise FormatError(f"siren payload of {len(payload)} bytes has no shape; the record is damaged")
    shape = Shape(payload[0], payload[1])
    grid = Grid((payload[2] >> 4) + 1, (payload[2] & 15) + 1)
    _check(shape, grid)
    frequency, common = (payload[3] & 127, payload[3] >> 7) if version > 1 else (0, 0)
    linear = shape.depth + 1
    steps_end = fixed + (1 if common else grid.networks) * linear
    head = steps_end + linear * (1 if version > 1 else 2)
    if len(payload) < head:
        raise FormatError(f"siren payload of {len(payload)} bytes is shorter than its header of {head}; it is damaged")
    steps = np.frombuffer(payload[fixed:steps_end], dtype=np.uint8).reshape(-1, linear)
    steps = np.broadcast_to(steps, (grid.networks, linear))
    tables = payload[steps_end:head] if version == 1 else bytes(t for t in payload[steps_end:head] for _ in range(2))
    counts = [(end - start) * grid.networks for layer in _layers(shape) for start, end in layer]
    parts = rans.decode(payload[head:], list(zip(tables, counts, strict=True)))
    weights = [part.reshape(grid.networks, -1) for part in parts]
    if version == 1:
        for index, (inputs, outputs) in enumerate(shape.layers):
            turned = weights[2 * index].reshape(-1, inputs, outputs).transpose(0, 2, 1)
            weights[2 * index] = turned.reshape(grid.networks, -1)
    return Networks(shape, grid, steps, np.concatenate(weights, axis=1), frequency)


def _check(shape: Shape, grid: Grid) -> None:
    if not (1 <= shape.depth <= MAX_DEPTH and 1 <= shape.width <= MAX_WIDTH):
        raise FormatError(
            f"siren network of depth {shape.depth} and width {shape.width} is outside 1 to {MAX_DEPTH} "
            f"and 1 to {MAX_WIDTH}; the record is damaged"
        )
    if grid.networks * shape.parameters > MAX_PARAMETERS:
        raise FormatError(
            f"siren layer has {grid.networks * shape.parameters} parameters; the most is {MAX_PARAMETERS}; "
            "the record is damaged"
        )


def _layers(shape: Shape) -> Iterator[tuple[tuple[int, int], tuple[int, int]]]:
    """Start and end of each layer's weights, and of its biases, within a network's parameters."""
    start = 0
    for inputs, outputs in shape.layers:
        middle = start + inputs * outputs
        yield (start, middle), (middle, middle + outputs)
        start = middle + outputs
