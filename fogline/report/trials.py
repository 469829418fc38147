"""The same few frames through every codec."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.codec import SourceImage
from fogline.common.images.container import to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.record import ImageRecord
from fogline.deploy.local.plan import PlannedImage
from fogline.fog_node.encoders import build_encoder
from fogline.report.findings import CodecTrial, Score, mean
from fogline.report.frames import boxes_at, coded_size, original
from fogline.report.measure import Received, Rendering, decode_rate, prepare, renderings, score


@dataclass(frozen=True)
class Trial:
    """One codec's figures on the frames, and each frame's decoded pixels with its score, by content id."""

    figures: CodecTrial
    decoded: Mapping[bytes, tuple[NDArray[np.uint8], Score]]


def encode(
    images: Sequence[PlannedImage], width: int, codec: str, params: Mapping[str, Any]
) -> tuple[list[tuple[ImageRecord, int, PlannedImage]], dict[bytes, bytes], float]:
    """Records with their sizes, the shared state they need, and images a second."""
    sizes = [coded_size(image.frame.width, image.frame.height, width) for image in images]
    sources = [
        SourceImage(original(image, size), boxes_at(image, size), image.camera)
        for image, size in zip(images, sizes, strict=True)
    ]
    encoder = build_encoder(codec, params, "cpu")
    began = time.perf_counter()
    encoded = encoder.encode(sources)
    rate = len(images) / max(1e-9, time.perf_counter() - began)
    records = []
    for image, size, result in zip(images, sizes, encoded, strict=True):
        record = ImageRecord(
            content_id=image.content_id,
            capture_time_us=0,
            camera=image.camera,
            source_size=(image.frame.width, image.frame.height),
            size=size,
            boxes=image.frame.boxes,
            layers=result.layers,
            shared=tuple(state.digest for state in result.shared),
        )
        records.append((record, len(to_bytes(record)), image))
    return records, {state.digest: state.data for result in encoded for state in result.shared}, rate


def trial(images: Sequence[PlannedImage], width: int, codec: str, params: Mapping[str, Any]) -> Trial:
    """Encode and decode the frames with another codec."""
    records, shared, encode_rate = encode(images, width, codec, params)
    decoder = BatchDecoder()
    received, _ = prepare(decoder, records, shared)
    return _trial(codec, params, received, decoder, encode_rate, parts_of(records, shared), this_run=False)


def parts_of(
    records: Sequence[tuple[ImageRecord, int, PlannedImage]], shared: Mapping[bytes, bytes]
) -> dict[bytes, float]:
    """Bytes of each blob of shared state that an image has to bear: those of the blob over the images that need it."""
    uses = Counter(digest for record, _, _ in records for digest in set(record.shared))
    return {digest: len(shared[digest]) / count for digest, count in uses.items()}


def trial_of_this_run(
    codec: str,
    params: Mapping[str, Any],
    received: Sequence[Received],
    decoder: BatchDecoder,
    encode_rate: float | None,
    parts: Mapping[bytes, float],
) -> Trial:
    """The same figures from the records that the edges received; `parts` as by `parts_of` all records of the run."""
    return _trial(codec, params, received, decoder, encode_rate, parts, this_run=True)


def _trial(
    codec: str,
    params: Mapping[str, Any],
    received: Sequence[Received],
    decoder: BatchDecoder,
    encode_rate: float | None,
    parts: Mapping[bytes, float],
    *,
    this_run: bool,
) -> Trial:
    shown: dict[bytes, tuple[Rendering, Score]] = {
        image.record.content_id: (pixels, score(image, pixels)) for image, pixels in renderings(decoder, received)
    }
    scores = [figures for _, figures in shown.values()]
    figures = CodecTrial(
        codec=codec,
        params=params,
        bytes_per_image=mean(
            [image.record_bytes + sum(parts[d] for d in set(image.record.shared)) for image in received]
        )
        or 0.0,
        full_db=mean([s.full_db for s in scores]) or 0.0,
        background_db=mean([s.background_db for s in scores]),
        object_db=mean([s.object_db for s in scores]),
        encode_per_s=encode_rate,
        decode_per_s=decode_rate(decoder, received),
        this_run=this_run,
        source_bytes_per_image=mean([image.captured.size for image in received]) or 0.0,
    )
    return Trial(figures, {content_id: (pixels.decoded, s) for content_id, (pixels, s) in shown.items()})
