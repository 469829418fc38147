"""The weights that a sine network starts from, the same on every device: a network is coded as its difference to them.

A fit moves most weights by less than they are large, the first layer's least of all, so the difference takes fewer bits
than the weights, and the base takes none. Random bits are those of the SplitMix64 generator, integers only; what
follows is single float32 operations, exact on any IEEE machine.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.siren_payload import Shape

# Which random numbers: a small network's luck is worth up to 1.7 dB, and of six starts tried on objects of five
# tracking sequences this was the best on four, and near it on the fifth.
_FIRST = 300_000
_OUTPUT = 30  # the linear layer starts this much smaller than a sine layer


@lru_cache(maxsize=16)
def base_weights(shape: Shape, frequency: int) -> NDArray[np.float32]:
    """Float32 (parameters,) in the order of `Networks.weights`; zeros for frequency 0.

    SIREN's initialisation (arXiv:2006.09661): the first layer's weights uniform within plus or minus `frequency`,
    which are radians from the middle of the region to its edge, and its biases within a half turn.
    """
    out = np.zeros(shape.parameters, np.float32)
    if frequency:
        start = 0
        for index, (inputs, outputs) in enumerate(shape.layers):
            sine = math.sqrt(6 / inputs)
            if index == 0:
                bounds = float(frequency), math.pi
            elif index < shape.depth:
                bounds = sine, sine
            else:
                bounds = sine / _OUTPUT, 0.0
            for bound, count in zip(bounds, (inputs * outputs, outputs), strict=True):
                out[start : start + count] = _uniform(_FIRST + start, count) * np.float32(bound)
                start += count
    out.flags.writeable = False
    return out


def _uniform(start: int, count: int) -> NDArray[np.float32]:
    """The generator's numbers `start` to `start + count`, in [-1, 1)."""
    z = (np.arange(start, start + count, dtype=np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    top = ((z ^ (z >> np.uint64(31))) >> np.uint64(40)).astype(np.int64) - (1 << 23)
    out: NDArray[np.float32] = top.astype(np.float32) * np.float32(2.0**-23)
    return out
