"""When the layers of an upload are a record's."""

from __future__ import annotations

import numpy as np

from fogline.common.images import avif2
from fogline.common.images.codec import SourceImage
from fogline.common.images.record import Layer
from fogline.fog_node.advice import publishable

SIZE = (64, 48)
BOXES = ((4.5, 4.5, 20.0, 20.0), (40.0, 8.0, 10.0, 10.0))
PIXELS = np.random.default_rng(1).integers(0, 255, (8, 8, 3), np.uint8).repeat(6, 0).repeat(8, 1)


def layers(*boxes: tuple[float, float, float, float]) -> tuple[Layer, ...]:
    (image,) = avif2.build_avif2({}).encode([SourceImage(PIXELS, boxes)])
    return image.layers


def test_layers_of_the_offered_boxes_alone_are_published() -> None:
    image = SourceImage(PIXELS, BOXES)
    assert publishable("avif2", layers(*BOXES), SIZE, image)
    for other in ((), BOXES[:1], (*BOXES, (0.0, 40.0, 9.0, 8.0)), (BOXES[0], (41.0, 8.0, 10.0, 10.0))):
        assert not publishable("avif2", layers(*other), SIZE, image)
    assert not publishable("jpeg2", layers(*BOXES), SIZE, image)
    assert not publishable("avif2", layers(*BOXES), (128, 96), image)
    assert not publishable("avif2", (), SIZE, image)
