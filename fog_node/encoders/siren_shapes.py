"""Which network an image or an object gets."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.siren import Shape

REFERENCE_BACKGROUND = Shape(10, 28)
# Residual-INR's object networks by box area in coded pixels.
_OBJECTS = ((1001, Shape(3, 10)), (3001, Shape(3, 15)), (10001, Shape(5, 17)))
_LARGEST_OBJECT = Shape(5, 24)
_BACKGROUNDS = (Shape(3, 20), Shape(3, 32), Shape(3, 48), Shape(3, 64), Shape(3, 80), Shape(3, 96))
_PARAMETERS_PER_COEFFICIENT = 1.0


def object_shape(area: int) -> Shape:
    """The network for an object whose region has this many coded pixels."""
    return next((shape for limit, shape in _OBJECTS if area < limit), _LARGEST_OBJECT)


def background_shape(pixels: NDArray[np.uint8], target_db: float) -> Shape:
    """The smallest network that should reach `target_db` on pixels (H, W, 3)."""
    needed = _PARAMETERS_PER_COEFFICIENT * coefficients_for(pixels, target_db)
    return next((shape for shape in _BACKGROUNDS if shape.parameters >= needed), _BACKGROUNDS[-1])


def coefficients_for(pixels: NDArray[np.uint8], target_db: float) -> int:
    """How many coefficients of the whole image's cosine transform reach `target_db`: its difficulty."""
    height, width = pixels.shape[:2]
    spectrum = np.einsum("vy,yxc,ux->vuc", _cosines(height), pixels / np.float32(255), _cosines(width), optimize=True)
    energy = np.sort((spectrum**2).ravel())[::-1]
    left = energy.sum() - np.cumsum(energy)
    return int(np.searchsorted(-left, -(10 ** (-target_db / 10)) * pixels.size)) + 1


def _cosines(size: int) -> NDArray[np.float32]:
    """Orthonormal DCT-II matrix (size, size)."""
    angle = np.pi / size * np.outer(np.arange(size), np.arange(size) + 0.5)
    matrix = np.cos(angle) * np.sqrt(2 / size)
    matrix[0] /= np.sqrt(2)
    out: NDArray[np.float32] = matrix.astype(np.float32)
    return out
