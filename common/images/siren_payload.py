"""The payload of a `siren` layer: a grid of quantised sine networks of one shape.

Version 1: depth u8; width u8; grid u8, (columns - 1) << 4 | (rows - 1); for each network, row by row, one step number
u8 for each of its depth + 1 layers; an entropy table u8 for the weights and one for the biases of each layer; then one
rANS stream of int8: for each layer the weights of all networks, (networks, outputs, inputs) in C order, then their
biases. A weight is its int8 times its layer's step, 2 ** (number / 8 - 24).
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


def pack(networks: Networks) -> bytes:
    """The payload."""
    shape, grid = networks.shape, networks.grid
    runs = []
    for start, end in _tensors(shape):
        symbols = networks.weights[:, start:end].ravel()
        runs.append((rans.best_table(symbols), symbols))
    head = bytes([shape.depth, shape.width, grid.columns - 1 << 4 | grid.rows - 1])
    return head + networks.steps.tobytes() + bytes(table for table, _ in runs) + rans.encode(runs)


def unpack(payload: bytes) -> Networks:
    """The networks of a payload. Raises FormatError for anything that `pack` doesn't write."""
    if len(payload) < 3:
        raise FormatError(f"siren payload of {len(payload)} bytes has no shape; the record is damaged")
    shape = Shape(payload[0], payload[1])
    grid = Grid((payload[2] >> 4) + 1, (payload[2] & 15) + 1)
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
    linear = shape.depth + 1
    steps_end = 3 + grid.networks * linear
    head = steps_end + 2 * linear
    if len(payload) < head:
        raise FormatError(f"siren payload of {len(payload)} bytes is shorter than its header of {head}; it is damaged")
    steps = np.frombuffer(payload[3:steps_end], dtype=np.uint8).reshape(grid.networks, linear)
    counts = [(end - start) * grid.networks for start, end in _tensors(shape)]
    parts = rans.decode(payload[head:], list(zip(payload[steps_end:head], counts, strict=True)))
    return Networks(shape, grid, steps, np.concatenate([part.reshape(grid.networks, -1) for part in parts], axis=1))


def _tensors(shape: Shape) -> Iterator[tuple[int, int]]:
    """Start and end of each layer's weights, then biases, within a network's parameters."""
    start = 0
    for inputs, outputs in shape.layers:
        for count in (inputs * outputs, outputs):
            yield start, start + count
            start += count
