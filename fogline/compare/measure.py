"""One codec at one setting over a folder: bytes, quality and speed."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.errors import FormatError
from fogline.common.images import quality
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.record import LayerKind
from fogline.common.images.regions import pixel_region
from fogline.compare.curves import Rung
from fogline.compare.frames import Captured, Folder
from fogline.compare.ms_ssim import Similarity, ms_ssim
from fogline.compare.subjects import Subject

Pixels = NDArray[np.uint8]
Progress = Callable[[int], None]  # images done


@dataclass(frozen=True)
class Measured:
    """What a setting gave: means over the images of a folder. None: no such pixels, or too few for MS-SSIM."""

    images: int
    bytes: float  # of a whole record: annotations, headers, payloads
    background_bytes: float  # payload of the background layer
    object_bytes: float  # payloads of all object layers
    shared_bytes: int  # of all distinct blobs together
    full_db: float
    background_db: float | None
    object_db: float | None
    full_similarity: Similarity | None
    background_similarity: Similarity | None
    object_similarity: Similarity | None
    encode_s: float  # wall seconds, all images
    prepare_s: float
    decode_s: float

    @property
    def delivered_bytes(self) -> float:
        """Bytes an image for one receiver, its part of the shared state included."""
        return self.bytes + self.shared_bytes / self.images

    @property
    def rung(self) -> Rung:
        """What is compared at equal quality: delivered bytes."""
        return Rung(self.delivered_bytes, self.background_db, self.object_db)


def measure(
    folder: Folder, subject: Subject, progress: Progress, view: tuple[int, int] | None = None
) -> tuple[Measured, torch.Tensor | None]:
    """Encode the frames in order, decode what was written, and compare.

    With `view`, a width and height, the frames are also decoded at that size and returned: uint8 (N, 3, H, W). Raises
    FormatError when the codec leaves an image out.
    """
    tally = _Tally()
    views: list[torch.Tensor] = []
    shared: dict[bytes, bytes] = {}
    done = 0
    for batch in folder.batches(subject.batch):
        began = time.perf_counter()
        encoded = subject.encode([captured.source for captured in batch])
        tally.encode_s += time.perf_counter() - began
        if len(encoded) != len(batch):
            raise FormatError(f"{len(encoded)} records of {len(batch)} images: the encoder left some out")
        # Each distinct blob is sent once to a receiver, however many records name it.
        shared.update((state.digest, state.data) for image in encoded for state in image.shared)
        written = [to_bytes(captured.record(image)) for captured, image in zip(batch, encoded, strict=True)]
        records = [from_bytes(data) for data in written]
        began = time.perf_counter()
        prepared = subject.prepare(records, shared)
        tally.prepare_s += time.perf_counter() - began
        if not done:
            subject.decode(prepared)  # the first call allocates and compiles
        began = time.perf_counter()
        tensors = subject.decode(prepared)
        if tensors[0].is_cuda:
            torch.cuda.synchronize()
        tally.decode_s += time.perf_counter() - began
        for captured, data, record, tensor in zip(batch, written, records, tensors, strict=True):
            tally.add(captured, len(data), record.layers, _pixels(tensor))
        if view is not None:
            views += [(image * 255).round().to(torch.uint8).cpu() for image in subject.decode(prepared, view)]
        done += len(batch)
        progress(done)
    return tally.result(sum(len(data) for data in shared.values())), torch.stack(views) if views else None


class _Tally:
    """Sums over images."""

    def __init__(self) -> None:
        self.encode_s = self.prepare_s = self.decode_s = 0.0
        self._bytes: list[int] = []
        self._payloads: dict[LayerKind, int] = dict.fromkeys(LayerKind, 0)
        self._qualities: list[quality.Quality] = []
        self._similarities: dict[str, list[Similarity]] = {"full": [], "background": [], "object": []}

    def add(self, captured: Captured, size: int, layers: Sequence[Any], decoded: Pixels) -> None:
        """Count an image."""
        original, boxes = captured.source.pixels, captured.source.boxes
        self._bytes.append(size)
        for layer in layers:
            self._payloads[layer.kind] += len(layer.payload)
        self._qualities.append(quality.measure(original, decoded, boxes))
        height, width = original.shape[:2]
        outside = np.ones((height, width), bool)
        crops: list[Similarity | None] = []
        for x, y, w, h in {pixel_region(box, width, height) for box in boxes}:
            outside[y : y + h, x : x + w] = False
            crop, _ = ms_ssim(original[y : y + h, x : x + w], decoded[y : y + h, x : x + w])
            crops.append(crop)
        full, background = ms_ssim(original, decoded, outside if boxes else None)
        self._similarities["full"] += [full] if full else []
        self._similarities["background"] += [background] if background else []
        self._similarities["object"] += [crop for crop in crops if crop]

    def result(self, shared_bytes: int) -> Measured:
        """The means."""
        mean, images = quality.mean(self._qualities), len(self._bytes)
        return Measured(
            images=images,
            bytes=fmean(self._bytes),
            background_bytes=self._payloads[LayerKind.BACKGROUND] / images,
            object_bytes=self._payloads[LayerKind.OBJECT] / images,
            shared_bytes=shared_bytes,
            full_db=mean.full,
            background_db=mean.background,
            object_db=mean.object,
            full_similarity=_mean(self._similarities["full"]),
            background_similarity=_mean(self._similarities["background"]),
            object_similarity=_mean(self._similarities["object"]),
            encode_s=self.encode_s,
            prepare_s=self.prepare_s,
            decode_s=self.decode_s,
        )


def _mean(found: Sequence[Similarity]) -> Similarity | None:
    """The mean, with the smallest number of scales that any of them rests on."""
    return Similarity(fmean(s.value for s in found), min(s.scales for s in found)) if found else None


def _pixels(image: torch.Tensor) -> Pixels:
    pixels: Pixels = (image * 255).round().to(torch.uint8).permute(1, 2, 0).cpu().numpy()
    return pixels
