"""Small sets of records for the loader's tests."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np

from fogline.common.boxes import Box
from fogline.common.errors import FormatError
from fogline.common.images.codec import SourceImage
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import resize
from fogline.common.images.record import ImageRecord, LayerKind
from fogline.fog_node.encoders import build_encoder

SIZES = ((96, 64), (64, 48), (50, 70))
QUICK = {"siren": {"steps": 30, "object_steps": 30}}
BOXES: tuple[tuple[tuple[float, float, float, float], ...], ...] = (
    (),
    ((20.0, 10.0, 22.0, 18.0),),
    ((0.0, 0.0, 10.0, 12.0), (25.5, 20.25, 20.0, 25.0), (1.0, 30.0, 6.0, 6.0)),
)


def pixels_of(number: int, size: tuple[int, int]) -> np.ndarray:
    width, height = size
    noise = np.random.default_rng(number).integers(0, 255, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return resize(noise, width, height)


@cache
def records(codec: str = "jpeg2", count: int = 10, sizes: Sequence[tuple[int, int]] = SIZES) -> list[ImageRecord]:
    """Images of mixed sizes with none, one or three boxes, source frames twice as large as coded ones."""
    chosen = [(i, sizes[i % len(sizes)], BOXES[i % len(BOXES)]) for i in range(count)]
    images = [SourceImage(pixels_of(i, size), boxes) for i, size, boxes in chosen]
    encoded = build_encoder(codec, QUICK.get(codec, {})).encode(images)
    out = []
    for (i, size, boxes), image in zip(chosen, encoded, strict=True):
        known = tuple(Box(*box, "cat" if n % 2 else "dog").scaled(2, 2) for n, box in enumerate(boxes))
        identity = hashlib.sha256(str(i).encode()).digest()
        large = (2 * size[0], 2 * size[1])
        out.append(ImageRecord(identity, i, f"cam{i % 2}", large, size, known, image.layers))
    return out


def rotten() -> ImageRecord:
    """A record that is well formed until a decoder looks at its pixels."""
    decoder = BatchDecoder()
    noise = np.random.default_rng(0).integers(0, 255, (48, 64, 3), np.uint8)
    (layer,) = build_encoder("avif2", {}).encode([SourceImage(noise, ())])[0].layers
    for kept in range(16, len(layer.payload)):
        bad = replace(layer, payload=layer.payload[:kept] + bytes(len(layer.payload) - kept))
        record = ImageRecord(b"r" * 32, 5, "cam", (64, 48), (64, 48), (), (bad,))
        try:
            decoder.decode([decoder.prepare(record, {})])
        except FormatError as error:
            if "can't be decoded" in str(error):
                return record
    raise AssertionError("AVIF takes anything")


def unknown_codec(record: ImageRecord) -> ImageRecord:
    layers = tuple(replace(layer, codec=99) if layer.kind is LayerKind.BACKGROUND else layer for layer in record.layers)
    return replace(record, layers=layers)


def equal(a: Any, b: Any) -> bool:
    """Whether two lists of batches (images, targets) are the same to the bit."""
    import torch

    return len(a) == len(b) and all(
        torch.equal(x, y)
        and [t.index for t in s] == [t.index for t in u]
        and all(torch.equal(p.boxes, q.boxes) and torch.equal(p.labels, q.labels) for p, q in zip(s, u, strict=True))
        for (x, s), (y, u) in zip(a, b, strict=True)
    )
