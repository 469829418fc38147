"""jpeg2 and avif2: what is encoded decodes close to it, in few bytes; what lies about itself is refused."""

from __future__ import annotations

import io
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from fogline.common.errors import ConfigError, FormatError
from fogline.common.images import avif2, jpeg2, quality
from fogline.common.images.codec import EncodedImage, ImageEncoder, LayerCodec, Placement, SourceImage
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.jpeg_tables import quantisation
from fogline.common.images.record import Layer, LayerKind

BUILD: dict[str, Callable[..., ImageEncoder]] = {"jpeg2": jpeg2.build_jpeg2, "avif2": avif2.build_avif2}
CODECS: dict[str, LayerCodec] = {"jpeg2": jpeg2.Jpeg2(), "avif2": avif2.Avif2()}
CPU = torch.device("cpu")
both = pytest.mark.parametrize("name", ["jpeg2", "avif2"])


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    """Smooth colours with soft texture."""
    noise = np.random.default_rng(seed).integers(0, 255, (height // 8 + 2, width // 8 + 2, 3), dtype=np.uint8)
    return resize(noise, width, height)


def shown(layer: Layer) -> np.ndarray:
    """A layer's pixels (h, w, 3), 0 to 255."""
    codec = next(codec for codec in CODECS.values() if codec.number == layer.codec)
    place = Placement(0, 0, layer.region[2], layer.region[3], (0.0, 0.0, 1.0, 1.0))
    (tensor,) = codec.render([codec.prepare(layer, {})], [layer.kind], [place], CPU)
    assert tensor.dtype == torch.float32
    return tensor.permute(1, 2, 0).numpy() * 255


def layer_of(name: str, payload: bytes, width: int, height: int) -> Layer:
    return Layer(LayerKind.OBJECT, CODECS[name].number, 1, (0, 0, width, height), 1.0, payload)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return quality.measure(a, b, ()).full


@both
def test_layers_of_an_image(name: str) -> None:
    pixels = scene(96, 64)
    boxes = ((10.5, 7.25, 20.0, 15.5), (60.0, 40.0, 36.0, 24.0))
    (image,) = BUILD[name]({}).encode([SourceImage(pixels, boxes)])
    assert [layer.kind for layer in image.layers] == [LayerKind.BACKGROUND, LayerKind.OBJECT, LayerKind.OBJECT]
    assert [layer.region for layer in image.layers] == [(0, 0, 96, 64), (60, 40, 36, 24), (10, 7, 21, 16)]
    assert psnr(pixels, shown(image.layers[0])) > 20
    for layer in image.layers[1:]:
        x, y, w, h = layer.region
        assert psnr(pixels[y : y + h, x : x + w], shown(layer)) > 32


@both
def test_a_batch_of_any_sizes_and_boxes(name: str) -> None:
    images = [SourceImage(scene(40 + 7 * i, 30 + 3 * i, i), ((1.0, 1.0, 9.0, 9.0),) * i) for i in range(5)]
    encoder = BUILD[name]({})
    encoded = encoder.encode(images)
    assert encoded == [encoder.encode([image])[0] for image in images]
    assert [len(image.layers) for image in encoded] == [1, 2, 2, 2, 2]
    assert encoder.encode([]) == []


@both
def test_parameters_change_quality(name: str) -> None:
    pixels = scene(64, 64)
    source = [SourceImage(pixels, ((8.0, 8.0, 32.0, 32.0),))]

    def run(**params: int) -> list[Layer]:
        return list(BUILD[name](params).encode(source)[0].layers)

    low, high = run(background_quality=5, object_quality=20), run(background_quality=60, object_quality=95)
    for worse, better in zip(low, high, strict=True):
        assert len(worse.payload) < len(better.payload)
        x, y, w, h = worse.region
        crop = pixels[y : y + h, x : x + w]
        assert psnr(crop, shown(worse)) < psnr(crop, shown(better))


@both
@pytest.mark.parametrize("value", [0, 101, -1, 50.0, "50", True, None])
def test_bad_quality(name: str, value: object) -> None:
    with pytest.raises(ConfigError, match="object_quality"):
        BUILD[name]({"object_quality": value})


@both
def test_unknown_parameter(name: str) -> None:
    with pytest.raises(ConfigError, match="steps"):
        BUILD[name]({"steps": 5})


@both
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (40, 1), (7, 9), (16, 16), (17, 33), (321, 3)])
def test_any_crop_size(name: str, size: tuple[int, int]) -> None:
    pixels = scene(*size)
    for box in ((), ((0.0, 0.0, *map(float, size)),)):
        (image,) = BUILD[name]({"background_quality": 90, "object_quality": 90}).encode([SourceImage(pixels, box)])
        for layer in image.layers:
            assert shown(layer).shape == (size[1], size[0], 3)


@pytest.mark.parametrize("level", [1, 5, 49, 50, 51, 92, 93, 100])
@pytest.mark.parametrize("size", [(9, 9), (320, 180)])
def test_jpeg2_is_a_jpeg_of_that_quality(level: int, size: tuple[int, int]) -> None:
    """Bit for bit what Pillow decodes of its own file, whichever tables the payload has."""
    pixels = scene(*size)
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG", quality=level, subsampling=0 if level >= 93 else 2)
    payload = jpeg2.encode_payload(pixels, level)
    assert np.allclose(shown(layer_of("jpeg2", payload, *size)), decode_jpeg(buffer.getvalue()), atol=1e-3)
    assert len(payload) < len(buffer.getvalue()) - 190


def test_quantisation_tables_are_those_of_common_encoders() -> None:
    for level in range(1, 101):
        buffer = io.BytesIO()
        Image.new("RGB", (8, 8)).save(buffer, "JPEG", quality=level)
        tables = Image.open(io.BytesIO(buffer.getvalue())).quantization  # type: ignore[attr-defined]
        assert (tuple(tables[0]), tuple(tables[1])) == quantisation(level)


@pytest.mark.parametrize("full_chroma", [False, True])
@pytest.mark.parametrize("size", [(9, 9), (320, 180)])
def test_avif2_is_an_avif_of_that_quality(full_chroma: bool, size: tuple[int, int]) -> None:
    pixels = scene(*size)
    buffer = io.BytesIO()
    sampling = "4:4:4" if full_chroma else "4:2:0"
    tune = {"tune": "psnr"} if full_chroma else {}
    Image.fromarray(pixels).save(
        buffer, "AVIF", quality=50, speed=6, subsampling=sampling, codec="aom", max_threads=1, advanced=tune
    )
    payload = avif2.encode_payload(pixels, 50, full_chroma=full_chroma)
    theirs = np.asarray(Image.open(io.BytesIO(buffer.getvalue())))
    assert np.allclose(shown(layer_of("avif2", payload, *size)), theirs, atol=1e-3)
    assert len(payload) == len(buffer.getvalue()) - 277


@both
@pytest.mark.parametrize("other", [(31, 32), (32, 33), (64, 64)])
def test_pixels_always_have_the_size_of_their_region(name: str, other: tuple[int, int]) -> None:
    payload = one_payload(name, 32, 32)
    layer = layer_of(name, payload, *other)
    if name == "avif2":
        with pytest.raises(FormatError, match="32x32"):
            CODECS[name].prepare(layer, {})
    else:  # its payload has no size
        assert shown(layer).shape == (other[1], other[0], 3)


@given(
    st.sampled_from(["jpeg2", "avif2"]),
    st.booleans(),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=3), st.integers(0, 3)), min_size=1, max_size=4),
)
@settings(max_examples=300, deadline=None)
def test_a_changed_payload_decodes_or_is_refused(name: str, small: bool, changes: list[tuple[int, bytes, int]]) -> None:
    side = 8 if small else 48
    data = bytearray(one_payload(name, side, side))
    for position, value, cut in changes:
        at = position % (len(data) + 1)
        data[at : at + cut] = value
    with suppress(FormatError):
        assert shown(layer_of(name, bytes(data), side, side)).shape == (side, side, 3)


@pytest.mark.parametrize("module", ["jpeg2", "avif2", "container", "quality"])
def test_encoding_needs_no_torch(module: str) -> None:
    code = f"import sys, fogline.common.images.{module}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.data
@both
def test_objects_of_real_frames_beat_their_background(name: str, data_root: Path) -> None:
    for sequence in ("OTB_Crossing", "OTB_Human7", "VOT15_bag", "UAV123_boat1"):
        folder = data_root / "tracking" / sequence
        pixels = decode_jpeg((folder / "img" / "0001.jpg").read_bytes())
        x, y, w, h = map(
            float, (folder / "groundtruth_rect.txt").read_text().split("\n")[0].replace("\t", ",").split(",")
        )
        height, width = pixels.shape[:2]
        scale = 320 / width
        frame = resize(pixels, 320, round(height * scale))
        box = ((x - 1) * scale, (y - 1) * scale, w * scale, h * scale)
        (image,) = BUILD[name]({}).encode([SourceImage(frame, (box,))])
        assert total(image) < 9000
        background = shown(image.layers[0])
        whole = background.copy()
        left, top, wide, high = image.layers[1].region
        whole[top : top + high, left : left + wide] = shown(image.layers[1])
        measured, below = quality.measure(frame, whole, [box]), quality.measure(frame, background, [box])
        assert measured.object is not None
        assert below.object is not None
        assert measured.object > below.object + 5
        assert measured.background == below.background


def one_payload(name: str, width: int, height: int) -> bytes:
    pixels = scene(width, height)
    return jpeg2.encode_payload(pixels, 50) if name == "jpeg2" else avif2.encode_payload(pixels, 50, full_chroma=True)


def total(image: EncodedImage) -> int:
    return sum(len(layer.payload) for layer in image.layers)
