"""What a receiver would see of an encoded image, for judging it at once; pictures need no torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from fogline.common.boxes import Box
from fogline.common.images.codec import EncodedImage, SourceImage, codec_of
from fogline.common.images.container import MAX_CAMERA_BYTES, to_bytes
from fogline.common.images.raster import RasterCodec, composed
from fogline.common.images.record import ImageRecord


def record_of(source: SourceImage, image: EncodedImage) -> ImageRecord:
    """A record of the image as if it had been captured at the coded size."""
    height, width = source.pixels.shape[:2]
    return ImageRecord(
        content_id=bytes(32),
        capture_time_us=0,
        camera=source.camera.encode()[:MAX_CAMERA_BYTES].decode(errors="ignore"),
        source_size=(width, height),
        size=(width, height),
        boxes=tuple(Box(*box, "object") for box in source.boxes),
        layers=image.layers,
        shared=tuple(state.digest for state in image.shared),
    )


def record_bytes(source: SourceImage, image: EncodedImage) -> int:
    """Size of the record; the label's length apart, that of the real one. Raises FormatError when none can be made."""
    return len(to_bytes(record_of(source, image)))


def render(
    sources: Sequence[SourceImage], images: Sequence[EncodedImage], shared: Mapping[bytes, bytes], device: str = "cpu"
) -> list[NDArray[np.uint8]]:
    """Decode images of one size, uint8 (H, W, 3) each. Raises FormatError."""
    pictures = [_picture(image) for image in images]
    plain = [picture for picture in pictures if picture is not None]
    return plain if len(plain) == len(images) else _tensors(sources, images, shared, device)


def _picture(image: EncodedImage) -> NDArray[np.uint8] | None:
    """The image where all of its layers are pictures, else None."""
    codecs = [codec_of(layer.codec, layer.version) for layer in image.layers]
    pictures = [codec for codec in codecs if isinstance(codec, RasterCodec)]
    return composed(image.layers, pictures) if len(pictures) == len(codecs) else None


def _tensors(
    sources: Sequence[SourceImage], images: Sequence[EncodedImage], shared: Mapping[bytes, bytes], device: str
) -> list[NDArray[np.uint8]]:
    from fogline.common.images.decode import BatchDecoder

    decoder = BatchDecoder(device)
    records = [record_of(source, image) for source, image in zip(sources, images, strict=True)]
    batch = decoder.decode([decoder.prepare(record, shared) for record in records])
    return list(batch.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy())
