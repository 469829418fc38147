"""Which networks an image or an object gets."""

from __future__ import annotations

from bisect import bisect_right
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.siren_payload import Grid, Shape

REFERENCE_BACKGROUND = Shape(10, 28), Grid(1, 1)
# Object networks by box area in coded pixels: Residual-INR's, and ours on the same classes, which are shallower and
# have up to 1.7 times the parameters, because objects are few bytes of a record and what matters in it.
_AREAS = (1001, 3001, 10001)
_REFERENCE_OBJECTS = (Shape(3, 10), Shape(3, 15), Shape(5, 17), Shape(5, 24))
_OBJECTS = (Shape(3, 12), Shape(3, 20), Shape(3, 24), Shape(3, 32))
_FINE_OBJECTS = (Shape(3, 12), Shape(3, 20), Shape(5, 18), Shape(5, 24))  # better once they get thousands of steps
# Networks per frame and their width, by number of parameters. Small networks side by side reach the quality of a large
# one of as many parameters, in a fraction of its operations.
_BACKGROUNDS = (
    (1, 10), (1, 12), (1, 14), (1, 16), (1, 20), (2, 16), (2, 20), (4, 16), (6, 16), (6, 20), (12, 16), (12, 20),
    (20, 16), (20, 20), (30, 20), (48, 20), (70, 20), (96, 20),
)  # fmt: skip
_DEPTH = 3
# Measured on four tracking sequences: a network needs 0.3 to 0.8 parameters for each coefficient that a cosine
# transform of the frame needs to reach the same PSNR.
_PARAMETERS_PER_COEFFICIENT = 0.6


def object_shape(area: int, kind: Literal["reference", "quick", "fine"]) -> Shape:
    """The network for an object whose region has this many coded pixels."""
    shapes = {"reference": _REFERENCE_OBJECTS, "quick": _OBJECTS, "fine": _FINE_OBJECTS}[kind]
    return shapes[bisect_right(_AREAS, area)]


def background_networks(pixels: NDArray[np.uint8], target_db: float) -> tuple[Shape, Grid]:
    """The fewest and smallest networks that should reach `target_db` on pixels (H, W, 3)."""
    height, width = pixels.shape[:2]
    needed = _PARAMETERS_PER_COEFFICIENT * coefficients_for(pixels, target_db)
    for networks, units in _BACKGROUNDS:
        shape, grid = Shape(_DEPTH, units), _grid(networks, width, height)
        if grid.networks * shape.parameters >= needed:
            break
    return shape, grid


def coefficients_for(pixels: NDArray[np.uint8], target_db: float) -> int:
    """How many coefficients of the whole frame's cosine transform reach `target_db`: its difficulty."""
    height, width = pixels.shape[:2]
    planes = pixels.transpose(2, 0, 1) / np.float32(255)
    spectrum = _cosines(height) @ planes @ _cosines(width).T
    energy = np.sort((spectrum**2).ravel())
    dropped = np.searchsorted(np.cumsum(energy, dtype=np.float64), 10 ** (-target_db / 10) * pixels.size)
    return int(energy.size - dropped)


def _grid(networks: int, width: int, height: int) -> Grid:
    """About this many networks, with about square parts of the frame."""
    columns = min(max(1, round((networks * width / height) ** 0.5)), 16)
    return Grid(columns, min(max(1, round(networks / columns)), 16))


def _cosines(size: int) -> NDArray[np.float32]:
    """Orthonormal DCT-II matrix (size, size)."""
    angle = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.cos(angle) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    out: NDArray[np.float32] = matrix.astype(np.float32)
    return out
