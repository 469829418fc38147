"""The forms of an upload: what edges make is what the fog node reads, and nothing else is."""

from __future__ import annotations

import hashlib
import io
import random
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from fogline.common.boxes import Box
from fogline.common.errors import InputError
from fogline.common.images import avif2, quality
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.forms import CODED_FORMS, Form, Qualities
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.record import ImageRecord, Layer, LayerKind
from fogline.common.images.uplink import decode, encode

BOX = Box(40, 30, 60, 40, "cat")
FINE = Qualities()


def captured(width: int = 320, height: int = 180, seed: int = 0) -> bytes:
    """A JPEG with a smooth background and a textured object in `BOX`."""
    rng = np.random.default_rng(seed)
    coarse = Image.fromarray(rng.integers(60, 200, (5, 8, 3), np.uint8))
    image = coarse.resize((width, height), Image.Resampling.BICUBIC)
    texture = Image.fromarray(rng.integers(0, 255, (10, 15, 3), np.uint8)).resize((60, 40), Image.Resampling.BICUBIC)
    image.paste(texture, (40, 30))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=92)
    return out.getvalue()


def made(form: Form, jpeg: bytes, width: int = 160, boxes: tuple[Box, ...] = (BOX,)) -> tuple[bytes, bytes]:
    content_id = hashlib.sha256(jpeg).digest()
    return content_id, encode(form, jpeg, content_id, boxes, width, FINE)


@pytest.mark.parametrize("form", CODED_FORMS)
def test_a_form_is_smaller_and_close_to_the_captured_frame(form: Form) -> None:
    jpeg = captured()
    content_id, data = made(form, jpeg)
    assert len(data) < len(jpeg)
    found = decode(form, data, content_id)
    assert found.source_size == (320, 180)
    assert found.pixels.shape == (90, 160, 3)
    original = resize(decode_jpeg(jpeg), 160, 90)
    got = quality.measure(original, found.pixels, [(20, 15, 30, 20)])
    assert got.full > 30
    if form is Form.ROI:  # the others have the object's colours at half the resolution
        assert got.object is not None
        assert got.object > 32


def test_roi_spends_on_objects() -> None:
    jpeg = captured()
    content_id = hashlib.sha256(jpeg).digest()
    poor = replace(FINE, roi_background=5)
    with_object = decode(Form.ROI, encode(Form.ROI, jpeg, content_id, (BOX,), 160, poor), content_id)
    without = decode(Form.ROI, encode(Form.ROI, jpeg, content_id, (), 160, poor), content_id)
    original = resize(decode_jpeg(jpeg), 160, 90)
    one, other = (quality.measure(original, x.pixels, [(20, 15, 30, 20)]) for x in (with_object, without))
    assert one.object is not None
    assert other.object is not None
    assert one.object > other.object + 5
    assert [layer.region for layer in with_object.layers] == [(0, 0, 160, 90), (20, 15, 30, 20)]


@pytest.mark.parametrize("form", CODED_FORMS)
def test_the_same_frame_gives_the_same_bytes(form: Form) -> None:
    jpeg = captured()
    assert made(form, jpeg) == made(form, jpeg)


@pytest.mark.parametrize("form", CODED_FORMS)
@pytest.mark.parametrize("size", [(1, 1), (1, 40), (33, 7), (2000, 9)])
def test_frames_of_any_shape(form: Form, size: tuple[int, int]) -> None:
    jpeg = captured(*size)
    content_id, data = made(form, jpeg, boxes=(Box(0, 0, *size),))
    found = decode(form, data, content_id)
    assert found.source_size == size


def test_a_frame_is_never_enlarged() -> None:
    content_id, data = made(Form.AVIF, captured(), width=4000)
    assert decode(Form.AVIF, data, content_id).pixels.shape == (180, 320, 3)


def test_an_original_is_the_jpeg() -> None:
    jpeg = captured()
    found = decode(Form.ORIGINAL, jpeg, hashlib.sha256(jpeg).digest())
    assert found.source_size == (320, 180)
    assert np.array_equal(found.pixels, decode_jpeg(jpeg))
    with pytest.raises(InputError, match="not a JPEG"):
        decode(Form.ORIGINAL, made(Form.AVIF, jpeg)[1], hashlib.sha256(jpeg).digest())


def test_what_the_fog_node_would_refuse_is_not_made() -> None:
    jpeg = captured()
    with pytest.raises(InputError, match="outside the 320x180 frame"):
        made(Form.ROI, jpeg, boxes=(Box(400, 0, 10, 10),))
    with pytest.raises(InputError, match="truncated"):
        made(Form.RESIZED, jpeg[: len(jpeg) // 2])
    with pytest.raises(InputError, match="not a JPEG"):
        made(Form.AVIF, b"GIF89a" + bytes(100))


def _changed(record: ImageRecord, **fields: Any) -> bytes:
    return to_bytes(replace(record, **fields))


def test_a_record_that_is_no_upload_is_refused() -> None:
    jpeg = captured()
    content_id, data = made(Form.ROI, jpeg)
    record = from_bytes(data)
    siren = replace(record.layers[0], codec=3)
    scaled = replace(record.layers[1], scale=2.0)
    two = replace(record.layers[1], codec=1, payload=from_bytes(made(Form.RESIZED, jpeg)[1]).layers[0].payload)
    cases: list[tuple[Form, bytes, str]] = [
        (Form.ROI, _changed(record, content_id=b"x" * 32), "of image 7878"),
        (Form.ROI, _changed(record, camera="cam"), "belong in the offer"),
        (Form.ROI, _changed(record, capture_time_us=1), "belong in the offer"),
        (Form.ROI, _changed(record, boxes=(BOX,)), "belong in the offer"),
        (Form.ROI, _changed(record, shared=(b"s" * 32,)), "belong in the offer"),
        (Form.ROI, _changed(record, source_size=(320, 100)), "is no size of a 320x100 frame"),
        (Form.ROI, _changed(record, source_size=(80, 45)), "is no size of a 80x45 frame"),
        (Form.ROI, _changed(record, layers=(siren,)), "codec 3"),
        (Form.ROI, _changed(record, layers=(record.layers[0], scaled)), "it takes avif2 alone"),
        (Form.ROI, _changed(record, layers=(record.layers[0], two)), "it takes avif2 alone"),
        (Form.AVIF, data, "2 layers instead of one"),
        (Form.RESIZED, _changed(record, layers=record.layers[:1]), "it takes jpeg2 alone"),
        (Form.ROI, jpeg, "it begins with"),
        (Form.ROI, b"", "ends at byte"),
    ]
    for form, bad, message in cases:
        with pytest.raises(InputError, match=message):
            decode(form, bad, content_id)


def test_sizes_are_checked_before_anything_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = captured()
    content_id, data = made(Form.ROI, jpeg)
    record = from_bytes(data)
    decoded: list[object] = []
    monkeypatch.setattr(avif2, "_decode", decoded.append)
    with pytest.raises(InputError, match="at most 100"):
        decode(Form.ROI, data, content_id, max_bytes=100)
    with pytest.raises(InputError, match="more than 1000 pixels"):
        decode(Form.ROI, data, content_id, max_pixels=1000)
    # The AV1 header says another size than the region: a decoder that believed it would allocate that.
    huge = avif2.encode_payload(np.zeros((2, 4000, 3), np.uint8), 30, full_chroma=True)
    bomb = Layer(LayerKind.OBJECT, 2, 1, (0, 0, 8, 8), 1.0, huge)
    with pytest.raises(InputError, match="it is 4000x2, its region 8x8"):
        decode(Form.ROI, _changed(record, layers=(record.layers[0], bomb)), content_id)
    assert not decoded


@pytest.mark.parametrize("form", CODED_FORMS)
def test_damage_is_a_typed_error_or_a_picture(form: Form) -> None:
    jpeg = captured()
    content_id, data = made(form, jpeg)
    chance = random.Random(7)
    refused = 0
    for _ in range(120):
        bad = bytearray(data)
        for _ in range(chance.choice((1, 3))):
            bad[chance.randrange(len(bad))] ^= 1 << chance.randrange(8)
        if chance.random() < 0.3:
            del bad[chance.randrange(len(bad)) :]
        try:
            decode(form, bytes(bad), content_id)
        except InputError:
            refused += 1
    assert refused == 120  # checksums over header and payload see all of these


@pytest.mark.parametrize("form", CODED_FORMS)
def test_a_payload_that_lies_with_a_right_checksum(form: Form) -> None:
    content_id, data = made(form, captured())
    record = from_bytes(data)
    chance = random.Random(8)
    for _ in range(60):
        layers = list(record.layers)
        index = chance.randrange(len(layers))
        payload = bytearray(layers[index].payload)
        payload[chance.randrange(len(payload))] ^= 1 << chance.randrange(8)
        layers[index] = replace(layers[index], payload=bytes(payload))
        try:
            pixels = decode(form, _changed(record, layers=tuple(layers)), content_id).pixels
        except InputError:
            continue
        assert pixels.shape == (90, 160, 3)
