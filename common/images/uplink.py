"""What an edge may send of a captured frame, and how the fog node reads it. Works without torch.

`original` is the JPEG as captured. The other forms are made at the coded size and travel in the record's container:
it names the captured frame, so the same bytes are never two images, and its checks hold here too. Camera, time and
boxes are in the offer and therefore not in the container. `resized` has one `jpeg2` layer, `avif` one of `avif2`, `roi`
an `avif2` background of low quality and an object layer of high quality for each box.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from fogline.common.boxes import Box, check_boxes
from fogline.common.errors import FormatError, FormError, InputError
from fogline.common.images import avif2, jpeg2
from fogline.common.images.codec import SourceImage
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.forms import Form, Qualities
from fogline.common.images.jpeg import MAX_BYTES, MAX_PIXELS, decode_jpeg, resize
from fogline.common.images.raster import PairEncoder, RasterCodec, composed
from fogline.common.images.record import ImageRecord, Layer
from fogline.common.images.sizes import coded_size

FRAME_SPEED = 8  # of libaom, for whole frames: 9 % more bytes than its 6 for little more than a quarter of the time


@dataclass(frozen=True)
class Uploaded:
    """A decoded upload."""

    pixels: NDArray[np.uint8]  # (H, W, 3) RGB, at the coded size that the edge knew; of an original at its own
    source_size: tuple[int, int]  # width, height of the captured frame, by the edge's word except for an original
    layers: tuple[Layer, ...] = ()  # of a coded form


def encode(
    form: Form,
    jpeg: bytes,
    content_id: bytes,
    boxes: Sequence[Box],
    width: int,
    qualities: Qualities,
    *,
    max_bytes: int = MAX_BYTES,
    max_pixels: int = MAX_PIXELS,
) -> bytes:
    """A captured JPEG in a coded form, `width` pixels wide or as wide as it is; the same bytes for the same input.

    `boxes` are in pixels of the captured frame. Raises InputError for a JPEG or a box that the fog node would refuse.
    """
    pixels = decode_jpeg(jpeg, max_bytes=max_bytes, max_pixels=max_pixels)
    source = (pixels.shape[1], pixels.shape[0])
    size = coded_size(*source, width)
    regions: tuple[tuple[float, float, float, float], ...] = ()
    if form is Form.ROI:
        inside = check_boxes(boxes, *source, where=f"image {content_id.hex()[:16]}…")
        scaled = (box.scaled(size[0] / source[0], size[1] / source[1]) for box in inside)
        regions = tuple((box.x, box.y, box.w, box.h) for box in scaled)
    try:
        (image,) = _encoder(form, qualities).encode([SourceImage(resize(pixels, *size), regions)])
        return to_bytes(ImageRecord(content_id, 0, "", source, size, (), image.layers))
    except (FormatError, OSError, ValueError, RuntimeError) as error:
        raise InputError(f"image {content_id.hex()[:16]}… has no form {form.text}: {error}") from error


def decode(
    form: Form, data: bytes, content_id: bytes, *, max_bytes: int = MAX_BYTES, max_pixels: int = MAX_PIXELS
) -> Uploaded:
    """Pixels of an upload. Raises InputError for whatever `encode` would not have written; decodes nothing before.

    It is a FormError where the image might do as captured.
    """
    if form is Form.ORIGINAL:
        pixels = decode_jpeg(data, max_bytes=max_bytes, max_pixels=max_pixels)
        return Uploaded(pixels, (pixels.shape[1], pixels.shape[0]))
    if len(data) > max_bytes:
        raise _bad(form, f"{len(data)} bytes, at most {max_bytes}")
    try:
        record = from_bytes(data)
        _check(form, record, content_id, max_pixels)
        pixels = composed(record.layers, [_codec(form)] * len(record.layers))
    except FormatError as error:
        raise _bad(form, str(error)) from error
    return Uploaded(pixels, record.source_size, record.layers)


def _encoder(form: Form, qualities: Qualities) -> PairEncoder:
    if form is Form.RESIZED:
        write = partial(jpeg2.encode_payload, quality=qualities.resized, full_chroma=True)
        return PairEncoder(jpeg2.Jpeg2, background=write, object=write)
    frame = qualities.avif if form is Form.AVIF else qualities.roi_background
    # Where objects have no layer of their own, colours at half the resolution would cost them most.
    return PairEncoder(
        avif2.Avif2,
        background=partial(avif2.encode_payload, quality=frame, full_chroma=form is Form.AVIF, speed=FRAME_SPEED),
        object=partial(avif2.encode_payload, quality=qualities.roi_object, full_chroma=True),
    )


def _check(form: Form, record: ImageRecord, content_id: bytes, max_pixels: int) -> None:
    """What a well-formed record must be besides, to be an upload of this form."""
    if record.content_id != content_id:
        raise _bad(form, f"it is of image {record.content_id.hex()[:16]}…, its offer of {content_id.hex()[:16]}…")
    if record.camera or record.capture_time_us or record.boxes or record.shared:
        raise _bad(form, "it names a camera, a time, boxes or shared state, which belong in the offer")
    width, height = record.source_size
    if width * height > max_pixels:
        raise InputError(f"a frame of {width}x{height}, more than {max_pixels} pixels; capture at a lower resolution")
    if record.size != (expected := coded_size(width, height, record.size[0])):
        raise _bad(form, f"{record.size} is no size of a {width}x{height} frame; as wide it would be {expected}")
    codec = _codec(form)
    if len(record.layers) > 1 and form is not Form.ROI:
        raise _bad(form, f"{len(record.layers)} layers instead of one")
    for layer in record.layers:
        known = 1 <= layer.version <= codec.version  # an edge of before writes an older one
        if (layer.codec, layer.scale) != (codec.number, 1.0) or not known:
            raise _bad(form, f"a layer of codec {layer.codec}, version {layer.version}; it takes {codec.name} alone")


def _codec(form: Form) -> RasterCodec:
    return jpeg2.Jpeg2() if form is Form.RESIZED else avif2.Avif2()


def _bad(form: Form, what: str) -> FormError:
    return FormError(f"upload as {form.text}: {what}; send the JPEG as captured, or update the edge")
