"""`jpeg-input`: the model's input as JPEG images, the tail does everything: the baseline that a cut has to beat.

A batch (B, 3, H, W) or (B, H, W, 3), or with one channel, of uint8 or of floats. Floats are `pixel/255` normalised by
`mean` and `std` per channel, as torchvision does; they are brought back to pixels, coded, and normalised again at the
other end.

Payload: the length of every image (u32), then the images. A file's size and mode are read from its header and compared
with the tensor's before it is decoded.
"""

from __future__ import annotations

import io
import struct
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray
from PIL import Image

from fogline.common.codecs.base import FLOATS, Buffer, Options, Packer, Params, Spec, register
from fogline.common.errors import ConfigError, FormatError, InputError

_MAX_SIDE = 65_500  # pixels that JPEG allows
_HEADER = 4096  # bytes that a file of a tiny image may need above its pixels
_SLACK = 2.0  # grey levels outside 0 to 255 that are clipped silently

Values = Annotated[tuple[float, ...], Meta(max_length=3)]
_Pixels = NDArray[np.uint8]


class JpegOptions(Options, frozen=True):
    """`mean` and `std` of the normalisation, one value for each channel; none: floats in 0 to 1."""

    quality: Annotated[int, Meta(ge=1, le=100)] = 75
    mean: Values = ()
    std: Values = ()
    layout: Literal["bchw", "bhwc"] = "bchw"


@register
class JpegInput(Packer):
    """The image itself."""

    number = 10
    name = "jpeg-input"
    rank = 30
    training_safe = True
    dtypes: ClassVar[frozenset[torch.dtype]] = FLOATS | {torch.uint8}
    options_type: ClassVar[type[Options]] = JpegOptions
    summary = "the input image as JPEG, for a cut before the first layer: the baseline of split inference"
    ratio = "20 to 60"
    error = "JPEG's, by quality"

    def __init__(self, options: Options) -> None:
        """Options are `JpegOptions`. Raises ConfigError for a mean without a std, or one of 0."""
        self._options = cast(JpegOptions, options)
        mean, std = self._options.mean, self._options.std
        if (
            len(mean) != len(std)
            or len(mean) == 2
            or not all(s > 0 for s in std)
            or not np.isfinite([*mean, *std]).all()
        ):
            raise ConfigError(
                f"codec jpeg-input: mean {list(mean)} and std {list(std)}; give one positive std for each mean, "
                "of 1 or 3 channels, as the model's preprocessing has them"
            )

    def _images(self, spec: Spec) -> tuple[int, int, int, int]:
        """Batch, channels, height, width. Raises FormatError."""
        if len(spec.shape) != 4:
            raise FormatError(f"jpeg-input: a tensor {spec.shape} is no batch of images (B, C, H, W)")
        if self._options.layout == "bchw":
            batch, channels, height, width = spec.shape
        else:
            batch, height, width, channels = spec.shape
        if channels not in (1, 3) or max(height, width) > _MAX_SIDE:
            raise FormatError(
                f"jpeg-input: images of {channels} channels, {width} x {height}; JPEG has 1 or 3, at most {_MAX_SIDE} "
                f"(layout={self._options.layout})"
            )
        if spec.dtype != torch.uint8 and len(self._options.mean) not in (0, channels):
            raise FormatError(f"jpeg-input: mean and std of {len(self._options.mean)} channels, images of {channels}")
        return batch, channels, height, width

    def _normal(self, channels: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Mean and std in grey levels, over (B, H, W, C)."""
        mean = self._options.mean or (0.0,) * channels
        std = self._options.std or (1.0,) * channels
        return torch.tensor(mean) * 255, torch.tensor(std) * 255

    def max_bytes(self, spec: Spec) -> int:
        """Lengths, and what JPEG can need at its worst."""
        batch, channels, height, width = self._images(spec)
        return batch * (4 + _HEADER + 2 * channels * (height + 16) * (width + 16))

    def pack(self, tensor: torch.Tensor) -> tuple[Buffer, Params]:
        """Lengths, then JPEG files. Raises InputError for what is no image, or not normalised as agreed."""
        spec = Spec.of(tensor)
        try:
            _, channels, _, _ = self._images(spec)
        except FormatError as error:
            raise InputError(f"{error}; use another codec behind a cut") from error
        pixels = tensor if self._options.layout == "bhwc" else tensor.permute(0, 2, 3, 1)
        if tensor.dtype != torch.uint8:
            pixels = self._pixels(pixels.float(), channels)
        files = [self._encode(image) for image in pixels.contiguous().numpy()]
        return b"".join([struct.pack(f"<{len(files)}I", *map(len, files)), *files]), Params()

    def _pixels(self, values: torch.Tensor, channels: int) -> torch.Tensor:
        mean, std = self._normal(channels)
        levels = values * std + mean
        low, high = float(levels.min()), float(levels.max())
        if not (low >= -_SLACK and high <= 255 + _SLACK):  # also for NaN
            raise InputError(
                f"jpeg-input: pixels from {low / 255:.3g} to {high / 255:.3g} before normalisation, not 0 to 1; "
                "set mean and std to those of the model's preprocessing"
            )
        return levels.round().clamp(0, 255).to(torch.uint8)

    def _encode(self, image: _Pixels) -> bytes:
        out = io.BytesIO()
        Image.fromarray(image[:, :, 0] if image.shape[2] == 1 else image).save(
            out, "JPEG", quality=self._options.quality
        )
        return out.getvalue()

    def unpack(self, data: memoryview, params: Params, spec: Spec) -> torch.Tensor:
        """A batch of `spec`. Raises FormatError for files of another number, size or kind, and for damaged ones."""
        batch, channels, height, width = self._images(spec)
        if data.nbytes < 4 * batch:
            raise FormatError(f"jpeg-input: {data.nbytes} bytes for {batch} images")
        lengths = struct.unpack(f"<{batch}I", data[: 4 * batch])
        if 4 * batch + sum(lengths) != data.nbytes:
            raise FormatError(f"jpeg-input: {batch} images of {sum(lengths)} bytes in a payload of {data.nbytes}")
        pixels = np.empty((batch, height, width, channels), np.uint8)
        at = 4 * batch
        for i, length in enumerate(lengths):
            pixels[i] = _decode(data[at : at + length], (height, width, channels))
            at += length
        tensor = torch.from_numpy(pixels)
        if spec.dtype != torch.uint8:
            mean, std = self._normal(channels)
            tensor = ((tensor.float() - mean) / std).to(spec.dtype)
        return (tensor if self._options.layout == "bhwc" else tensor.permute(0, 3, 1, 2)).contiguous()


def _decode(data: memoryview, shape: tuple[int, int, int]) -> _Pixels:
    """One image (H, W, C) of exactly `shape`. Raises FormatError."""
    height, width, channels = shape
    try:
        with Image.open(io.BytesIO(data), formats=["JPEG"]) as image:
            if image.size != (width, height) or image.mode != ("L" if channels == 1 else "RGB"):
                raise FormatError(
                    f"jpeg-input: an image {image.size} of mode {image.mode} where {width} x {height} with {channels} "
                    "channels was announced"
                )
            return np.asarray(image, np.uint8).reshape(shape)
    except (OSError, SyntaxError, ValueError, struct.error, Image.DecompressionBombError) as error:
        raise FormatError(f"jpeg-input: a damaged image of {data.nbytes} bytes: {error}") from error
