"""Captured originals at the coded size: what every quality figure is measured against."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.jpeg import RESIZED_QUALITY, decode_jpeg, encode_jpeg, resize
from fogline.deploy.local.plan import PlannedImage
from fogline.fog_node.encode_queue import coded_size as coded_size


def original(image: PlannedImage, size: tuple[int, int]) -> NDArray[np.uint8]:
    """The captured frame at `size` (width, height), uint8 (H, W, 3)."""
    return resize(decode_jpeg(image.frame.path.read_bytes()), *size)


def boxes_at(image: PlannedImage, size: tuple[int, int]) -> tuple[tuple[float, float, float, float], ...]:
    """The frame's boxes in pixels of `size`: x, y, w, h."""
    sx, sy = size[0] / image.frame.width, size[1] / image.frame.height
    scaled = (box.scaled(sx, sy) for box in image.frame.boxes)
    return tuple((box.x, box.y, box.w, box.h) for box in scaled)


def resized_bytes(image: PlannedImage, coded_width: int) -> int:
    """Bytes of the frame as a JPEG of quality 75 at the coded size."""
    size = coded_size(image.frame.width, image.frame.height, coded_width)
    return len(encode_jpeg(original(image, size), RESIZED_QUALITY))
