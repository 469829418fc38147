"""Decodes the records that edges hold and compares them with what was captured. Needs torch."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images import quality
from fogline.common.images.decode import BatchDecoder, PreparedImage
from fogline.common.images.record import ImageRecord, LayerKind
from fogline.deploy.local.plan import PlannedImage
from fogline.report.findings import Score
from fogline.report.frames import boxes_at, original

BATCH = 32
_SPEED_S = 1.5  # how long decoding is repeated for its rate


@dataclass(frozen=True)
class Received:
    """A record as an edge holds it, ready to decode, with the frame that it came from."""

    record: ImageRecord
    record_bytes: int
    prepared: PreparedImage
    captured: PlannedImage

    @property
    def size(self) -> tuple[int, int]:
        """Coded width and height."""
        return self.record.size


@dataclass(frozen=True)
class Rendering:
    """What became of one image, uint8 (H, W, 3) at the coded size."""

    original: NDArray[np.uint8]
    background: NDArray[np.uint8]
    decoded: NDArray[np.uint8]


def prepare(
    decoder: BatchDecoder,
    records: Sequence[tuple[ImageRecord, int, PlannedImage]],
    shared: Mapping[bytes, bytes],
) -> tuple[list[Received], float]:
    """Parse and entropy-decode records; also returns images a second."""
    began = time.perf_counter()
    received = [Received(record, size, decoder.prepare(record, shared), captured) for record, size, captured in records]
    return received, len(received) / max(1e-9, time.perf_counter() - began)


def batches(images: Sequence[Received]) -> Iterator[list[Received]]:
    """Groups of one coded size, at most `BATCH` images each."""
    by_size: dict[tuple[int, int], list[Received]] = {}
    for image in images:
        by_size.setdefault(image.size, []).append(image)
    for group in by_size.values():
        for start in range(0, len(group), BATCH):
            yield group[start : start + BATCH]


def renderings(decoder: BatchDecoder, images: Sequence[Received]) -> Iterator[tuple[Received, Rendering]]:
    """Every image as captured, as its background layer alone, and decoded."""
    for batch in batches(images):
        prepared = [image.prepared for image in batch]
        decoded = to_pixels(decoder.decode(prepared))
        background = to_pixels(decoder.decode(prepared, layers="background"))
        for index, image in enumerate(batch):
            yield image, Rendering(original(image.captured, image.size), background[index], decoded[index])


def to_pixels(images: torch.Tensor) -> NDArray[np.uint8]:
    """(B, 3, H, W) in [0, 1] to uint8 (B, H, W, 3)."""
    pixels: NDArray[np.uint8] = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return pixels


def score(image: Received, pixels: Rendering) -> Score:
    """PSNR by region, and bytes by layer."""
    boxes = boxes_at(image.captured, image.size)
    whole = quality.measure(pixels.original, pixels.decoded, boxes)
    background = quality.measure(pixels.original, pixels.background, boxes)
    payloads = {kind: sum(len(x.payload) for x in image.record.layers if x.kind is kind) for kind in LayerKind}
    return Score(
        content_id=image.record.content_id,
        camera=image.record.camera,
        record_bytes=image.record_bytes,
        background_bytes=payloads[LayerKind.BACKGROUND],
        object_bytes=payloads[LayerKind.OBJECT],
        full_db=whole.full,
        background_db=whole.background,
        object_db=whole.object,
        object_background_db=background.object,
    )


def decode_rate(decoder: BatchDecoder, images: Sequence[Received]) -> float:
    """Images a second from prepared records to a tensor, in batches of 32 where there are so many."""
    groups = [[image.prepared for image in batch] for batch in batches(images)]
    if not groups:
        return 0.0
    largest = max(groups, key=len)
    decoder.decode(largest)  # the first call allocates
    count, began = 0, time.perf_counter()
    while time.perf_counter() - began < _SPEED_S:
        decoder.decode(largest)
        count += len(largest)
    return count / (time.perf_counter() - began)
