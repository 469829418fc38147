"""Small pictures for the page, and the panels that show what an image becomes."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image

Pixels = NDArray[np.uint8]  # (H, W, 3) RGB


@dataclass(frozen=True)
class Panel:
    """A picture with a caption."""

    title: str
    uri: str
    caption: str


@dataclass(frozen=True)
class Exhibit:
    """One image: the whole frame in steps, and an object up close."""

    title: str
    panels: tuple[Panel, ...]
    crops: tuple[Panel, ...] = ()


def data_uri(pixels: Pixels) -> str:
    """The pixels as they are, as a lossless WebP in a data URI."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "WEBP", lossless=True, method=3)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def difference(a: Pixels, b: Pixels, gain: float) -> Pixels:
    """`a - b` amplified by `gain` around mid-grey."""
    amplified = (a.astype(np.float32) - b.astype(np.float32)) * gain + 128
    rounded: Pixels = np.clip(np.rint(amplified), 0, 255).astype(np.uint8)
    return rounded


def crop_around(pixels: Pixels, box: tuple[float, float, float, float], margin: float = 0.35) -> Pixels:
    """The box with a margin, cut from the pixels; at least 24 pixels a side where the frame allows."""
    height, width = pixels.shape[:2]
    x, y, w, h = box
    half_w, half_h = max(12.0, w * (0.5 + margin)), max(12.0, h * (0.5 + margin))
    x0, x1 = max(0, int(x + w / 2 - half_w)), min(width, int(np.ceil(x + w / 2 + half_w)))
    y0, y1 = max(0, int(y + h / 2 - half_h)), min(height, int(np.ceil(y + h / 2 + half_h)))
    return pixels[y0:y1, x0:x1]
