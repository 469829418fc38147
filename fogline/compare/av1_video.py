"""Baselines `av1-video` and `av1-video2`: a camera's frames as AV1 video, the sceptic's strongest for long clips.

Encoded by SVT-AV1 and decoded by dav1d, through PyAV. The unit of access and delivery is a chunk of frames, by default
32: it begins with a key frame, its frames predict each other in both directions, and one frame can't be decoded, or
sent, without the chunk. That is less than what the image codecs offer, where each record stands alone.

`av1-video` is one video, whose objects are as good as all the rest. `av1-video2` has two layers as the image codecs do:
a coarse video of the frames, and a finer one of a window that follows the object. Where a chunk's frames have not all
exactly one object region, its objects are AVIF stills, as in `avif2`.

Every frame still has a record of its own, which holds its share of the video, so that annotations and headers are
counted as with every codec.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from typing import TYPE_CHECKING, Any, cast

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.config import Config
from fogline.common.errors import ConfigError, InputError
from fogline.common.images.avif2 import Avif2, encode_payload
from fogline.common.images.codec import EncodedImage, SourceImage
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import resize
from fogline.common.images.record import ImageRecord, Layer, LayerKind
from fogline.common.images.regions import Region, object_regions
from fogline.compare.subjects import Subject

if TYPE_CHECKING:
    import av

NUMBER = 255  # in records: no codec of the product has it, and no decoder of the product reads it
_RATE = 25  # frames per second; with a constant rate factor it changes nothing but time stamps
# Pixels a side that a video is padded to. SVT-AV1 4.1 refuses sides below 4, and waits for ever on narrow frames that
# are longer than a block of 64: 66x24 does, 66x32 and 64x8 don't.
_LEAST, _LEAST_OF_LONG, _BLOCK = 8, 32, 64
_DELIMITER = b"\x12\x00"  # an empty temporal delimiter, which begins every frame's data and says nothing

Pixels = NDArray[np.uint8]


class VideoParams(Config, frozen=True):
    """What the baselines take as parameters."""

    crf: int = 50  # 0 to 63, higher is coarser
    object_crf: int = 34
    object_quality: int = 55  # of AVIF stills, 1 to 100
    chunk: int = 32
    preset: int = 4  # of SVT-AV1, 0 to 13: 6 is twice as fast for 10 % more bytes

    def __post_init__(self) -> None:
        """Check ranges."""
        ranges = (("crf", 0, 63), ("object_crf", 0, 63), ("object_quality", 1, 100), ("chunk", 1, 1024))
        for name, low, high in (*ranges, ("preset", 0, 13)):
            if not low <= getattr(self, name) <= high:
                raise ValueError(f"`{name}` is {getattr(self, name)}; give {low} to {high}")


def build(params: Mapping[str, Any], *, crops: bool) -> Subject:
    """A baseline at a setting. Raises ConfigError for a wrong parameter, or without PyAV."""
    name = "av1-video2" if crops else "av1-video"
    if unknown := sorted(set(params) - set(VideoParams.__struct_fields__)):
        known = ", ".join(VideoParams.__struct_fields__)
        raise ConfigError(f"codec {name}: parameter {unknown[0]!r} is unknown; known: {known}")
    try:
        chosen = msgspec.convert(dict(params), VideoParams)
    except msgspec.ValidationError as error:
        raise ConfigError(f"codec {name}: {error}") from error
    try:
        import av
    except ImportError as error:
        raise ConfigError(f"codec {name} needs PyAV ({error}); pip install 'fogline[compare]'") from error
    if missing := {"libsvtav1", "libdav1d"} - av.codecs_available:
        raise ConfigError(f"codec {name}: this PyAV has no {min(missing)}; install `av` from PyPI")
    return Av1Video(chosen, crops)


class Av1Video(Subject):
    """Codes consecutive frames of one size as a chunk of video."""

    def __init__(self, params: VideoParams, crops: bool) -> None:
        self._params, self._crops = params, crops
        self.batch = params.chunk
        self._stills = BatchDecoder()

    def encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        """See Subject.encode. A change of size begins another chunk."""
        encoded: list[EncodedImage] = []
        for _, run in groupby(images, key=lambda image: image.pixels.shape):
            encoded += self._encode(list(run))
        return encoded

    def _encode(self, images: Sequence[SourceImage]) -> list[EncodedImage]:
        height, width = images[0].pixels.shape[:2]
        frames = encode_video([image.pixels for image in images], self._params.crf, self._params.preset)
        layers = [[Layer(LayerKind.BACKGROUND, NUMBER, 1, (0, 0, width, height), 1.0, data)] for data in frames]
        regions = [object_regions(image.boxes, width, height) if self._crops else [] for image in images]
        if windows := _windows(regions, width, height):
            views = [image.pixels[y : y + h, x : x + w] for image, (x, y, w, h) in zip(images, windows, strict=True)]
            crops = encode_video(views, self._params.object_crf, self._params.preset)
            for of_frame, (region,), data in zip(layers, regions, crops, strict=True):
                of_frame.append(Layer(LayerKind.OBJECT, NUMBER, 1, region, 1.0, data))
        else:
            for of_frame, found, image in zip(layers, regions, images, strict=True):
                of_frame += [self._still(image.pixels, region) for region in found]
        return [EncodedImage(tuple(of_frame)) for of_frame in layers]

    def _still(self, pixels: Pixels, region: Region) -> Layer:
        x, y, w, h = region
        payload = encode_payload(pixels[y : y + h, x : x + w], self._params.object_quality, full_chroma=True)
        return Layer(LayerKind.OBJECT, Avif2.number, Avif2.version, region, 1.0, payload)

    def prepare(self, records: Sequence[ImageRecord], shared: Mapping[bytes, bytes]) -> list[_Chunk]:
        """See Subject.prepare: puts chunks together and decodes nothing."""
        return [_chunk(list(run)) for _, run in groupby(records, key=lambda record: record.size)]

    def decode(self, prepared: Sequence[_Chunk], size: tuple[int, int] | None = None) -> list[torch.Tensor]:
        """See Subject.decode. At another size than the coded one the decoded frames are resized."""
        images: list[torch.Tensor] = []
        for chunk in prepared:
            for pixels in self._decode(chunk):
                shown = pixels if size is None else resize(pixels, *size)
                images.append(torch.from_numpy(shown.copy()).permute(2, 0, 1).to(torch.float32).div_(255))
        return images

    def _decode(self, chunk: _Chunk) -> list[Pixels]:
        width, height = chunk.size
        frames = decode_video(chunk.video, width, height)
        if chunk.windows:
            _, _, w, h = chunk.windows[0]
            views = decode_video(chunk.crops, w, h)
            for frame, view, (x, y, w, h), at in zip(frames, views, chunk.regions, chunk.windows, strict=True):
                left, top = x - at[0], y - at[1]
                frame[y : y + h, x : x + w] = view[top : top + h, left : left + w]
        for frame, record in zip(frames, chunk.stills, strict=True):
            for layer in record:
                x, y, w, h = layer.region
                # As a record of its own: the still of a whole small frame.
                alone = Layer(LayerKind.BACKGROUND, layer.codec, layer.version, (0, 0, w, h), 1.0, layer.payload)
                still = ImageRecord(bytes(32), 0, "", (w, h), (w, h), (), (alone,))
                (image,) = self._stills.decode([self._stills.prepare(still, {})])
                frame[y : y + h, x : x + w] = (image * 255).round().to(torch.uint8).permute(1, 2, 0).numpy()
        return frames


@dataclass(frozen=True)
class _Chunk:
    """The data of consecutive frames, as it is taken from their records."""

    size: tuple[int, int]
    video: tuple[bytes, ...]
    crops: tuple[bytes, ...]
    regions: tuple[Region, ...]  # of the crops, where there are any
    windows: tuple[Region, ...]
    stills: tuple[tuple[Layer, ...], ...]


def _chunk(records: Sequence[ImageRecord]) -> _Chunk:
    width, height = records[0].size
    objects = [record.layers[1:] for record in records]
    crops = [layer for layers in objects for layer in layers if layer.codec == NUMBER]
    windows = _windows([[layer.region] for layer in crops], width, height)
    return _Chunk(
        size=(width, height),
        video=tuple(record.layers[0].payload for record in records),
        crops=tuple(layer.payload for layer in crops),
        regions=tuple(layer.region for layer in crops),
        windows=tuple(windows),
        stills=tuple(tuple(layer for layer in layers if layer.codec != NUMBER) for layers in objects),
    )


def _windows(regions: Sequence[Sequence[Region]], width: int, height: int) -> list[Region]:
    """A window of one size around every frame's only region; none where a frame has not exactly one.

    Encoder and decoder both derive them from the regions, so they cost nothing.
    """
    if not regions or any(len(of_frame) != 1 for of_frame in regions):
        return []
    only = [of_frame[0] for of_frame in regions]
    w, h = max(region[2] for region in only), max(region[3] for region in only)
    w, h = min(width, w + w % 2), min(height, h + h % 2)
    return [
        (min(max(0, x + (rw - w) // 2), width - w), min(max(0, y + (rh - h) // 2), height - h), w, h)
        for x, y, rw, rh in only
    ]


def encode_video(frames: Sequence[Pixels], crf: int, preset: int) -> list[bytes]:
    """Each frame's data, in the order of display; frames (H, W, 3) RGB of one size. Only all together decode.

    Raises InputError for frames that the encoder does not take.
    """
    import av

    padded = [_padded(frame) for frame in frames]
    height, width = padded[0].shape[:2]
    encoder = av.CodecContext.create("libsvtav1", "w")
    encoder.width, encoder.height, encoder.pix_fmt = width, height, "yuv420p"
    encoder.time_base, encoder.framerate = Fraction(1, _RATE), Fraction(_RATE)
    # One key frame, at the start; tuned for PSNR, which is what is compared.
    encoder.options = {
        "crf": str(crf),
        "preset": str(preset),
        "svtav1-params": f"keyint={len(frames)}:scd=0:tune=1",
    }
    packets: list[Any] = []
    try:
        with _quiet():
            for index, pixels in enumerate(padded):
                frame = av.VideoFrame.from_ndarray(pixels, "rgb24").reformat(
                    format="yuv420p", dst_colorspace="ITU601", dst_color_range="JPEG", interpolation="BICUBIC"
                )
                frame.pts = index
                packets += encoder.encode(frame)
            packets += encoder.encode(None)
    except av.FFmpegError as error:
        raise InputError(
            f"AV1 video of {width}x{height}: the encoder refuses it ({error}); choose another --width"
        ) from error
    if [packet.pts for packet in packets] != list(range(len(frames))):
        raise InputError(f"AV1 video: {len(packets)} packets of {len(frames)} frames; use another release of PyAV")
    return [bytes(packet).removeprefix(_DELIMITER) for packet in packets]


def decode_video(data: Sequence[bytes], width: int, height: int) -> list[Pixels]:
    """The frames of a chunk, (height, width, 3) RGB each. Raises InputError for data that does not decode."""
    import av

    decoder = cast("av.VideoCodecContext", av.CodecContext.create("libdav1d", "r"))
    frames: list[av.VideoFrame] = []
    try:
        for payload in data:
            frames += decoder.decode(av.Packet(payload))
        frames += decoder.decode(None)
    except av.FFmpegError as error:
        raise InputError(f"AV1 video of {width}x{height} can't be decoded: {error}; encode it again") from error
    if len(frames) != len(data):
        raise InputError(f"AV1 video: {len(frames)} frames in a chunk of {len(data)}; encode it again")
    return [
        frame.reformat(format="rgb24", src_colorspace="ITU601", src_color_range="JPEG", interpolation="BICUBIC")
        .to_ndarray()[:height, :width]
        .copy()
        for frame in frames
    ]


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the encoder from printing a page on stderr for every chunk; it has no other setting for that."""
    ours = "SVT_LOG" not in os.environ
    os.environ.setdefault("SVT_LOG", "1")
    try:
        yield
    finally:
        if ours:
            del os.environ["SVT_LOG"]


def _padded(pixels: Pixels) -> Pixels:
    """With even sides, for 4:2:0, and as large as the encoder needs; what is added repeats the edge."""
    height, width = pixels.shape[:2]
    least = _LEAST_OF_LONG if max(height, width) > _BLOCK else _LEAST
    down, right = max(least - height, height % 2), max(least - width, width % 2)
    if not down and not right:
        return np.ascontiguousarray(pixels)
    return np.pad(pixels, ((0, down), (0, right), (0, 0)), mode="edge")
