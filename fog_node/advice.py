"""Regions of interest that need no second encoding: what edges are told, and when their layers are a record's.

An upload of form `roi` has the layers of an `avif2` record. Where the fog node codes with `avif2` too, coding them
again would only lose quality: edges are asked for the codec's own qualities, and their layers are published.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from fogline.common.images import avif2
from fogline.common.images.codec import SourceImage
from fogline.common.images.record import Layer
from fogline.common.images.regions import object_regions
from fogline.fog_node.config import FogConfig

# Bits a pixel that an edge's layers may have to be published as they are; whatever needs more would cost every
# receiver, and is coded again at our own quality. Frames of a camera take a tenth of it.
MAX_BITS = 4


def roi_qualities(config: FogConfig) -> tuple[int, int]:
    """Qualities of objects and background that edges are told; 0 where they choose."""
    found = advised(config.encoder.codec, config.encoder.params)
    return (0, 0) if found is None else found


def advised(codec: str, params: Mapping[str, Any]) -> tuple[int, int] | None:
    """Qualities of objects and background that edges of a fog node with this codec are told; None: they choose."""
    if codec != avif2.Avif2.name:
        return None
    chosen = {**avif2.DEFAULTS, **params}
    return chosen["object_quality"], chosen["background_quality"]


def publishable(codec: str, layers: Sequence[Layer], size: tuple[int, int], image: SourceImage) -> bool:
    """Whether the layers of an upload of `size` are what `codec` would publish for `image`, as it is coded."""
    height, width = image.pixels.shape[:2]
    if codec != avif2.Avif2.name or size != (width, height) or not layers:
        return False
    # An edge that codes other regions than the boxes of its offer would have its objects shown as background.
    if [layer.region for layer in layers[1:]] != object_regions(image.boxes, width, height):
        return False
    pixels = sum(layer.region[2] * layer.region[3] for layer in layers)
    return 8 * sum(len(layer.payload) for layer in layers) <= MAX_BITS * pixels + 1024 * len(layers)
