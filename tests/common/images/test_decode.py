"""Batches of records to tensors: composition, scaling, mixtures of codecs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.boxes import Box
from fogline.common.errors import FormatError, InputError
from fogline.common.images import codec as registry
from fogline.common.images.avif2 import build_avif2
from fogline.common.images.codec import ImageEncoder, LayerCodec, Placement, SourceImage
from fogline.common.images.container import coded_pixels, from_bytes, to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.jpeg2 import build_jpeg2
from fogline.common.images.quality import MAX_DB, Quality, mean, measure
from fogline.common.images.record import ImageRecord, Layer, LayerKind
from fogline.common.images.regions import object_regions, pixel_region, place

SIZE = (96, 64)
SHARP = {"background_quality": 95, "object_quality": 95}


class Flat(LayerCodec):
    """A test codec: the payload is one value, 0 to 255, for all pixels; additive, so objects are 0 to 1 residuals."""

    number: ClassVar[int] = 250
    version: ClassVar[int] = 1
    name: ClassVar[str] = "flat"
    additive: ClassVar[bool] = True
    calls: ClassVar[list[int]] = []

    def prepare(self, layer: Layer, shared: Mapping[bytes, bytes]) -> float:
        return layer.payload[0] / 255

    def render(
        self, prepared: Sequence[Any], kinds: Sequence[LayerKind], places: Sequence[Placement], device: torch.device
    ) -> list[torch.Tensor]:
        self.calls.append(len(prepared))
        return [torch.full((3, p.h, p.w), value, device=device) for value, p in zip(prepared, places, strict=True)]


@pytest.fixture
def flat(monkeypatch: pytest.MonkeyPatch) -> type[Flat]:
    monkeypatch.setitem(registry._CODECS, Flat.number, Flat())
    monkeypatch.setattr(Flat, "calls", [])
    return Flat


def scene(width: int = SIZE[0], height: int = SIZE[1], seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return resize(noise, width, height)


def record(layers: Sequence[Layer], size: tuple[int, int] = SIZE, boxes: tuple[Box, ...] = ()) -> ImageRecord:
    return ImageRecord(bytes(32), 0, "", (2 * size[0], 2 * size[1]), size, boxes, tuple(layers))


def encoded(encoder: ImageEncoder, pixels: np.ndarray, *boxes: tuple[float, float, float, float]) -> ImageRecord:
    (image,) = encoder.encode([SourceImage(pixels, boxes)])
    return record(image.layers, (pixels.shape[1], pixels.shape[0]))


def flat_layer(value: int, region: tuple[int, int, int, int] | None = None, scale: float = 1.0) -> Layer:
    kind = LayerKind.OBJECT if region else LayerKind.BACKGROUND
    return Layer(kind, 250, 1, region or (0, 0, *SIZE), scale, bytes([value]))


def decode(*records: ImageRecord, **options: Any) -> torch.Tensor:
    decoder = BatchDecoder()
    return decoder.decode([decoder.prepare(r, {}) for r in records], **options)


def image_of(tensor: torch.Tensor) -> np.ndarray:
    return tensor.permute(1, 2, 0).numpy() * 255


@pytest.mark.parametrize("build", [build_jpeg2, build_avif2])
def test_objects_replace_the_background(build: Any) -> None:
    pixels = scene()
    box = (20.0, 10.0, 33.0, 21.0)
    made = encoded(build({"background_quality": 3, "object_quality": 95}), pixels, box)
    out = decode(made)
    assert out.shape == (1, 3, 64, 96)
    assert out.dtype == torch.float32
    assert out.min() >= 0
    assert out.max() <= 1
    whole = measure(pixels, image_of(out[0]), [box])
    below = measure(pixels, image_of(decode(made, layers="background")[0]), [box])
    assert whole.object is not None
    assert below.object is not None
    assert whole.object > below.object + 8
    assert whole.background == below.background


def test_a_batch_equals_its_images_one_by_one() -> None:
    encoders = [build_jpeg2({}), build_avif2({})]
    records = [
        encoded(encoders[i % 2], scene(seed=i), *[(4.0 * j, 5.0, 9.5, 11.0) for j in range(i)]) for i in range(5)
    ]
    together = decode(*records)
    assert torch.equal(together, torch.cat([decode(r) for r in records]))


def test_additive_objects_add_their_scaled_residual_in_order(flat: type[Flat]) -> None:
    out = decode(record([flat_layer(51), flat_layer(255, (10, 20, 5, 6), 0.5), flat_layer(255, (12, 20, 1, 1), 2.0)]))
    expected = torch.full((3, 64, 96), 0.2)
    expected[:, 20:26, 10:15] = 0.7
    expected[:, 20, 12] = 1.0
    assert torch.allclose(out[0], expected)


def test_every_codec_is_called_once(flat: type[Flat]) -> None:
    mixed = [
        record([flat_layer(10), flat_layer(20, (0, 0, 4, 4)), flat_layer(30, (8, 8, 4, 4))]),
        encoded(build_jpeg2({}), scene(), (1.0, 1.0, 8.0, 8.0)),
        record([flat_layer(40)]),
    ]
    decode(*mixed)
    assert flat.calls == [4]


def test_layers_of_several_codecs_in_one_image(flat: type[Flat]) -> None:
    base = encoded(build_jpeg2({}), scene())
    both = record([*base.layers, flat_layer(255, (3, 4, 5, 6))])
    out = decode(both)
    assert torch.all(out[0, :, 4:10, 3:8] == 1)
    rest = torch.ones(64, 96, dtype=torch.bool)
    rest[4:10, 3:8] = False
    assert torch.equal(out[0][:, rest], decode(base)[0][:, rest])


@pytest.mark.parametrize("target", [(48, 32), (200, 150), (33, 77), (1, 1)])
def test_any_size(target: tuple[int, int]) -> None:
    pixels = scene()
    out = decode(encoded(build_jpeg2(SHARP), pixels, (20.0, 10.0, 33.0, 21.0)), size=target)
    assert out.shape == (1, 3, target[1], target[0])
    assert np.abs(image_of(out[0]) - resize(pixels, *target)).mean() < 5


def test_sizes_of_a_batch() -> None:
    small, large = encoded(build_jpeg2({}), scene(32, 32)), encoded(build_jpeg2({}), scene(64, 48))
    with pytest.raises(InputError, match="give the size"):
        decode(small, large)
    with pytest.raises(InputError, match="give the size"):
        decode()
    assert decode(small, large, size=(20, 30)).shape == (2, 3, 30, 20)
    assert decode(size=(20, 30)).shape == (0, 3, 30, 20)


def test_boxes_follow_the_size() -> None:
    made = BatchDecoder().prepare(
        record(encoded(build_jpeg2({}), scene()).layers, boxes=(Box(20, 8, 64, 32, "a"),)), {}
    )
    assert made.boxes_at() == (Box(10, 4, 32, 16, "a"),)
    assert made.boxes_at((48, 128)) == (Box(5, 8, 16, 32, "a"),)


def test_corrupt_tables_fail_as_a_format_error_when_decoded() -> None:
    """The one thing that preparing leaves: data that the JPEG decoder itself refuses."""
    dc, ac = bytes([0, 1]) + bytes(14) + b"\x00", bytes([0, 1]) + bytes(14) + b"\xff"
    payload = b"\x32\x02" + dc + ac + dc + ac + b"\x00"
    try:
        out = decode(record([Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, *SIZE), 1.0, payload)]))
    except FormatError:
        return
    assert out.shape == (1, 3, 64, 96)


def test_shared_state_must_be_there() -> None:
    base = encoded(build_jpeg2({}), scene())
    needing = ImageRecord(**{**base.__dict__, "shared": (b"\x07" * 32,)})
    with pytest.raises(FormatError, match="0707"):
        BatchDecoder().prepare(needing, {})
    assert BatchDecoder().prepare(needing, {b"\x07" * 32: b"blob"})


@pytest.mark.parametrize("build", [build_jpeg2, build_avif2])
def test_200_boxes_through_bytes(build: Any) -> None:
    rng = np.random.default_rng(0)
    corners = rng.uniform(0, 1, (200, 2)) * (280, 200)
    boxes = [
        (*corner, *size) for corner, size in zip(corners.tolist(), rng.uniform(3, 40, (200, 2)).tolist(), strict=True)
    ]
    pixels = scene(320, 240)
    made = encoded(build({}), pixels, *boxes)
    made = ImageRecord(**{**made.__dict__, "boxes": tuple(Box(*box).scaled(2, 2) for box in boxes)})
    read = from_bytes(to_bytes(made))
    assert len(read.boxes) == 200
    assert torch.equal(decode(read), decode(made))
    found = measure(pixels, image_of(decode(read)[0]), boxes)
    assert found.object is not None
    assert found.object > 30


@pytest.mark.data
@pytest.mark.parametrize("build", [build_jpeg2, build_avif2])
def test_real_frames_of_any_size_in_one_batch(build: Any, data_root: Path) -> None:
    files = sorted((data_root / "tracking").glob("*/img/0001.jpg"))
    sources = [decode_jpeg(file.read_bytes()) for file in files]
    records = [from_bytes(to_bytes(encoded(build({}), pixels, (50.0, 60.0, 40.0, 30.0)))) for pixels in sources]
    out = decode(*records, size=(320, 240))
    for pixels, tensor in zip(sources, out, strict=True):
        found = measure(resize(pixels, 320, 240), image_of(tensor), [])
        assert found.full > 23


regions = st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(1, 96), st.integers(1, 64)).map(
    lambda r: (r[0], r[1], min(r[2], 96 - r[0]), min(r[3], 64 - r[1]))
)


@given(regions)
def test_placement_is_exact_at_scale_one(region: tuple[int, int, int, int]) -> None:
    assert place(region, SIZE, SIZE) == Placement(*region, (0.0, 0.0, 1.0, 1.0))


@given(regions, st.integers(1, 300), st.integers(1, 300))
@settings(max_examples=300)
def test_placement_has_the_pixels_whose_centres_are_inside(
    region: tuple[int, int, int, int], width: int, height: int
) -> None:
    x, y, w, h = region
    inside_x = [i for i in range(width) if x * 2 * width <= (2 * i + 1) * 96 < (x + w) * 2 * width]
    inside_y = [i for i in range(height) if y * 2 * height <= (2 * i + 1) * 64 < (y + h) * 2 * height]
    found = place(region, SIZE, (width, height))
    if not inside_x or not inside_y:
        assert found is None
        return
    assert found is not None
    assert (found.x, found.y, found.w, found.h) == (inside_x[0], inside_y[0], len(inside_x), len(inside_y))
    u0, v0, u1, v1 = found.source
    assert math.isclose(x + u0 * w, found.x * 96 / width, abs_tol=1e-9)
    assert math.isclose(y + v1 * h, (found.y + found.h) * 64 / height, abs_tol=1e-9)
    assert u0 + (u1 - u0) / (2 * found.w) >= -1e-9  # centres stay inside
    assert v1 - (v1 - v0) / (2 * found.h) <= 1 + 1e-9


@given(
    st.lists(st.tuples(st.floats(-5, 100), st.floats(-5, 70), st.floats(0.01, 110), st.floats(0.01, 80)), max_size=20)
)
def test_object_regions_cover_their_boxes_within_the_frame(boxes: list[tuple[float, float, float, float]]) -> None:
    found = object_regions(boxes, *SIZE)
    for x, y, w, h in found:
        assert 0 <= x < x + w <= 96
        assert 0 <= y < y + h <= 64
    for box in boxes:
        x, y, w, h = pixel_region(box, *SIZE)
        assert any(a <= x and b <= y and x + w <= a + c and y + h <= b + d for a, b, c, d in found)


def test_hundreds_of_frame_sized_boxes_stay_within_a_record() -> None:
    boxes = [(float(i), 0.0, 1000.0, 1000.0) for i in range(600)]
    for width, height in ((2000, 1000), (1000, 50)):
        found = object_regions(boxes, width, height)
        assert len(found) < 600
        assert width * height + sum(w * h for _, _, w, h in found) <= coded_pixels(width, height)


def test_quality() -> None:
    original = np.zeros((10, 10, 3), np.uint8)
    decoded = original.astype(np.float32)
    decoded[2:4, 2:4] = 16.0
    found = measure(original, decoded, [(2.5, 2.0, 1.0, 1.5)])
    assert found.background == MAX_DB
    assert found.object is not None
    assert found.object == pytest.approx(20 * math.log10(255 / 16))
    assert found.full == pytest.approx(20 * math.log10(255 / 16) + 10 * math.log10(25))
    assert measure(original, decoded, []).object is None
    assert measure(original, decoded, [(0.0, 0.0, 10.0, 10.0)]).background is None


def test_quality_is_averaged_in_db() -> None:
    qualities = [Quality(30.0, 20.0, None), Quality(40.0, None, 35.0)]
    assert mean(qualities) == Quality(35.0, 20.0, 35.0)
