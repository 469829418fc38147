"""Records to training tensors: parse once on arrival, then decode whole batches at any size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch

from fogline.common.boxes import Box
from fogline.common.errors import FormatError, InputError
from fogline.common.images import builtin as builtin  # registers the codecs
from fogline.common.images.codec import LayerCodec, Placement, SharedBlobs, codec_of
from fogline.common.images.record import ImageRecord, LayerKind
from fogline.common.images.regions import Region, place
from fogline.common.images.shared_cache import DEFAULT_BYTES, SharedCache
from fogline.common.images.views import View, place_view


@dataclass(frozen=True)
class PreparedLayer:
    """A layer whose payload was parsed by its codec."""

    codec: LayerCodec
    kind: LayerKind
    region: Region
    scale: float
    data: Any


@dataclass(frozen=True)
class PreparedImage:
    """A record that needs no further parsing; what a device keeps in memory to decode again and again."""

    size: tuple[int, int]  # width, height of the coded frame
    source_size: tuple[int, int]
    boxes: tuple[Box, ...]  # in pixels of the captured frame
    layers: tuple[PreparedLayer, ...]

    def boxes_at(self, size: tuple[int, int] | None = None) -> tuple[Box, ...]:
        """The boxes in pixels of a decoded image of `size` (width, height); None: the coded size."""
        width, height = size or self.size
        return tuple(box.scaled(width / self.source_size[0], height / self.source_size[1]) for box in self.boxes)


class BatchDecoder:
    """Decodes batches of prepared images on one device. Safe to share between threads."""

    def __init__(self, device: str | torch.device = "cpu", shared_bytes: int = DEFAULT_BYTES) -> None:
        """`shared_bytes` is what shared state may take decoded (reference pictures, 3 bytes a pixel, on the device).

        Prepared images hold theirs as it was sent, once for all of them; what the budget has no room for is decoded
        anew where a batch needs it.
        """
        self._device = torch.device(device)
        self._shared = SharedCache(shared_bytes)

    @property
    def device(self) -> torch.device:
        """Where images are decoded to."""
        return self._device

    @property
    def shared_bytes_held(self) -> int:
        """Bytes of decoded shared state that are kept at this moment."""
        return self._shared.held_bytes

    def prepare(self, record: ImageRecord, shared: Mapping[bytes, bytes]) -> PreparedImage:
        """Parse a record's payloads, once. `shared` maps digests to blobs.

        Raises FormatError for an unknown codec, a malformed payload or a missing blob.
        """
        if missing := [digest for digest in record.shared if digest not in shared]:
            raise FormatError(
                f"record {record.content_id.hex()[:12]} needs blob {missing[0].hex()[:12]}; fetch it first"
            )
        layers, blobs = [], SharedBlobs(shared, record.shared, self._shared, record.size)
        for layer in record.layers:
            codec = codec_of(layer.codec, layer.version)
            data = codec.prepare(layer, blobs)
            layers.append(PreparedLayer(codec, layer.kind, layer.region, layer.scale, data))
        return PreparedImage(record.size, record.source_size, record.boxes, tuple(layers))

    def decode(
        self,
        prepared: Sequence[PreparedImage],
        size: tuple[int, int] | None = None,
        *,
        layers: Literal["all", "background"] = "all",
        views: Sequence[View] | None = None,
    ) -> torch.Tensor:
        """Decode a batch to float32 (B, 3, H, W) in [0, 1] on the device.

        `size` is (width, height); None takes the coded size, which must then be the same for all. Each
        codec is called once, with all of its layers in the batch. With `views`, one for each image, only these
        parts are decoded, each at `size`; layers that a view does not show are not decoded at all. Raises InputError
        for a view that leaves its frame, FormatError for a payload that only decoding shows to be malformed.
        """
        if views is not None:
            if size is None or len(views) != len(prepared):
                raise InputError(
                    f"{len(views)} views of {len(prepared)} images at {size}: give a size, and one of each"
                )
            for image, view in zip(prepared, views, strict=True):
                view.check(image.size)
        if size is None:
            sizes = {image.size for image in prepared}
            if len(sizes) != 1:
                raise InputError(f"a batch of coded sizes {sorted(sizes)}: give the size to decode at")
            (size,) = sizes
        jobs = [
            _Job(index, layer, placement)
            for index, image in enumerate(prepared)
            for layer in image.layers
            if layers == "all" or layer.kind is LayerKind.BACKGROUND
            if (placement := _place(layer.region, image.size, views[index] if views else None, size)) is not None
        ]
        pixels = self._render(jobs)
        out = torch.empty((len(prepared), 3, size[1], size[0]), device=self._device)
        for job, tensor in zip(jobs, pixels, strict=True):
            x, y, w, h = job.place.x, job.place.y, job.place.w, job.place.h
            window = out[job.image, :, y : y + h, x : x + w]
            if job.layer.kind is LayerKind.OBJECT and job.layer.codec.additive:
                window.add_(tensor, alpha=job.layer.scale)
            else:
                window.copy_(tensor)
        if flipped := [index for index, view in enumerate(views or ()) if view.flip]:
            rows = torch.tensor(flipped).to(self._device, non_blocking=True)
            out[rows] = out[rows].flip(-1)
        return out.clamp_(0, 1)

    def _render(self, jobs: Sequence[_Job]) -> list[torch.Tensor]:
        """The pixels of every job, in order."""
        groups: dict[int, list[int]] = {}
        for index, job in enumerate(jobs):
            groups.setdefault(job.layer.codec.number, []).append(index)
        pixels: dict[int, torch.Tensor] = {}
        for indices in groups.values():
            members = [jobs[i] for i in indices]
            tensors = members[0].layer.codec.render(
                [job.layer.data for job in members],
                [job.layer.kind for job in members],
                [job.place for job in members],
                self._device,
            )
            pixels.update(zip(indices, tensors, strict=True))
        return [pixels[i] for i in range(len(jobs))]


def _place(region: Region, frame: tuple[int, int], view: View | None, size: tuple[int, int]) -> Placement | None:
    return place(region, frame, size) if view is None else place_view(region, view, size)


@dataclass(frozen=True)
class _Job:
    image: int
    layer: PreparedLayer
    place: Placement
