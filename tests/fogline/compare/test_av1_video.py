"""The AV1 video baselines: what is encoded comes back, frame by frame, whatever its size."""

from __future__ import annotations

import os
from collections.abc import Sequence

import numpy as np
import pytest

pytest.importorskip("torch")
pytest.importorskip("av")

from fogline.common.errors import ConfigError, InputError
from fogline.common.images import quality
from fogline.common.images.codec import SourceImage
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.record import ImageRecord, LayerKind
from fogline.compare.av1_video import NUMBER, build, decode_video, encode_video

Boxes = tuple[tuple[float, float, float, float], ...]


def moving(count: int, height: int, width: int, boxes: Boxes | None = None) -> list[SourceImage]:
    """A smooth scene with a textured square that moves over it, in a box."""
    y, x = np.mgrid[0:height, 0:width]
    scene = np.stack([x * 200 / width + 20, y * 200 / height + 20, (x + y) * 100 / (width + height) + 50], -1)
    texture = np.random.default_rng(0).integers(0, 255, (4, 4, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    images = []
    for index in range(count):
        pixels = scene.astype(np.uint8)
        left = min(4 + 2 * index, width - 16)
        if width >= 20 and height >= 40:
            pixels[20:36, left : left + 16] = texture
        found = ((float(left), 20.0, 16.0, 16.0),) if boxes is None else boxes
        images.append(SourceImage(pixels, found, "camera"))
    return images


def through(crops: bool, images: Sequence[SourceImage], **params: int) -> tuple[list[ImageRecord], list[np.ndarray]]:
    subject = build({"preset": 8, **params}, crops=crops)
    records = []
    for image, encoded in zip(images, subject.encode(images), strict=True):
        height, width = image.pixels.shape[:2]
        record = ImageRecord(bytes(32), 0, "camera", (width, height), (width, height), (), encoded.layers)
        records.append(from_bytes(to_bytes(record)))
    tensors = subject.decode(subject.prepare(records, {}))
    return records, [(t * 255).round().permute(1, 2, 0).numpy() for t in tensors]


def test_frames_come_back_in_order_and_later_ones_cost_little() -> None:
    images = moving(9, 64, 96)
    records, decoded = through(False, images, crf=30)
    for image, pixels in zip(images, decoded, strict=True):
        assert quality.measure(image.pixels, pixels, image.boxes).full > 30
    sizes = [len(record.layers[0].payload) for record in records]
    assert sizes[0] > sum(sizes[2:]) / 7  # a key frame, then differences
    assert {layer.codec for record in records for layer in record.layers} == {NUMBER}


def test_the_objects_layer_is_finer_than_the_frames() -> None:
    images = moving(6, 64, 96)
    _, coarse = through(False, images, crf=60)
    records, layered = through(True, images, crf=60, object_crf=20)
    assert all(record.layers[1].region == (4 + 2 * i, 20, 16, 16) for i, record in enumerate(records))
    for image, one, two in zip(images, coarse, layered, strict=True):
        before, after = (quality.measure(image.pixels, pixels, image.boxes) for pixels in (one, two))
        assert after.object is not None
        assert before.object is not None
        assert after.object > before.object + 5
        assert after.background == pytest.approx(before.background)


def test_objects_of_changing_number_are_stills() -> None:
    images = moving(3, 64, 96)
    images[1] = SourceImage(images[1].pixels, (), "camera")
    images[2] = SourceImage(images[2].pixels, ((0, 0, 10, 10), (8, 20, 16, 16)), "camera")
    records, decoded = through(True, images, crf=60, object_quality=90)
    assert [len(record.layers) for record in records] == [2, 1, 3]
    assert all(layer.codec != NUMBER for r in records for layer in r.layers if layer.kind is LayerKind.OBJECT)
    found = quality.measure(images[2].pixels, decoded[2], images[2].boxes)
    assert found.object is not None
    assert found.object > 30


def test_the_encoder_is_quiet_and_the_environment_stays(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    frames = [image.pixels for image in moving(2, 64, 96)]
    monkeypatch.delenv("SVT_LOG", raising=False)
    encode_video(frames, 40, 8)
    assert "SVT_LOG" not in os.environ
    monkeypatch.setenv("SVT_LOG", "0")
    encode_video(frames, 40, 8)
    assert os.environ["SVT_LOG"] == "0"
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(("height", "width"), [(2, 1), (9, 7), (12, 66), (66, 12), (33, 65), (40, 8192)])
def test_any_size(height: int, width: int) -> None:
    images = moving(2, height, width, boxes=((0, 0, min(1.0, width), 1.0),))
    for crops in (False, True):
        _, decoded = through(crops, images, crf=10)
        assert [pixels.shape for pixels in decoded] == [(height, width, 3)] * 2
        # A larger error would be a wrong place or wrong colours, not a coarse quality; a frame of two pixels has one
        # colour for both.
        assert np.abs(decoded[1] - images[1].pixels.astype(float)).mean() < (25 if width == 1 else 12)


def test_a_change_of_size_begins_another_chunk() -> None:
    images = [*moving(2, 64, 96), *moving(2, 48, 64), *moving(1, 64, 96)]
    _, decoded = through(False, images, crf=40)
    assert [pixels.shape[:2] for pixels in decoded] == [(64, 96)] * 2 + [(48, 64)] * 2 + [(64, 96)]


def test_decoding_at_another_size() -> None:
    subject = build({"preset": 8}, crops=False)
    images = moving(2, 64, 96)
    encoded = subject.encode(images)
    records = [ImageRecord(bytes(32), 0, "c", (96, 64), (96, 64), (), e.layers) for e in encoded]
    assert [t.shape for t in subject.decode(subject.prepare(records, {}), (48, 32))] == [(3, 32, 48)] * 2


def test_damage_is_an_error_and_no_frame() -> None:
    data = encode_video([image.pixels for image in moving(4, 64, 96)], 40, 8)
    with pytest.raises(InputError, match="AV1 video"):
        decode_video([b"\x0a" + bytes(20), *data[1:]], 96, 64)
    with pytest.raises(InputError, match="AV1 video"):
        decode_video(data[1:], 96, 64)  # without its key frame


@pytest.mark.parametrize(
    ("params", "says"), [({"crf": 64}, "crf.*64"), ({"qp": 3}, "'qp' is unknown"), ({"crf": "low"}, "crf")]
)
def test_wrong_parameters(params: dict[str, object], says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        build(params, crops=False)


def test_without_pyav_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "av", None)
    with pytest.raises(ConfigError, match=r"fogline\[compare\]"):
        build({}, crops=True)
