"""The nerv encoder: what a short training reaches, groups, and inputs of every kind."""

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fogline.common.data import load_sequence
from fogline.common.data.clip import write_clip
from fogline.common.errors import ConfigError
from fogline.common.images.avif2 import Avif2
from fogline.common.images.codec import EncodedImage, SourceImage
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import decode_jpeg
from fogline.common.images.nerv import Nerv
from fogline.common.images.nerv_payload import Shape, unpack_frame, unpack_network
from fogline.common.images.quality import Quality, mean, measure
from fogline.common.images.record import ImageRecord, LayerKind
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.nerv import latent_tables, shape_of
from fogline.fog_node.encoders.nerv_fit import Fitted, show
from fogline.fog_node.encoders.nerv_params import NervParams, nerv_params

QUICK: dict[str, Any] = {"steps": 6, "channels": 4}


def clip(count: int, size: tuple[int, int] = (64, 48), camera: str = "a", boxes: int = 1) -> list[SourceImage]:
    """A square that moves over a fixed gradient."""
    width, height = size
    y, x = np.mgrid[0:height, 0:width]
    scene = np.stack([x * 255 / max(1, width - 1), y * 255 / max(1, height - 1), 128 + 60 * np.sin(x / 5)], axis=-1)
    out = []
    for t in range(count):
        pixels = scene.copy()
        places = tuple((5.0 + 3 * t + 20 * n, 10.0 + t, 12.0, 10.0) for n in range(boxes))
        for left, top, w, h in places:
            pixels[int(top) : int(top + h), int(left) : int(left + w)] = 230
        out.append(SourceImage(pixels.round().astype(np.uint8), places, camera))
    return out


def quality(images: Sequence[SourceImage], encoded: Sequence[EncodedImage]) -> Quality:
    """Through records as they are sent."""
    decoder, found = BatchDecoder(), []
    for source, image in zip(images, encoded, strict=True):
        height, width = source.pixels.shape[:2]
        shared = {state.digest: state.data for state in image.shared}
        record = ImageRecord(
            hashlib.sha256(source.pixels.tobytes()).digest(), 0, "c", (width, height), (width, height), (),
            image.layers, tuple(shared),
        )  # fmt: skip
        shown = decoder.decode([decoder.prepare(from_bytes(to_bytes(record)), shared)])[0]
        found.append(measure(source.pixels, shown.permute(1, 2, 0).numpy() * 255, source.boxes))
    return mean(found)


def blobs(encoded: Sequence[EncodedImage]) -> list[bytes]:
    return list({state.digest: state.data for image in encoded for state in image.shared}.values())


def test_a_short_training_shows_the_built_in_clip(tmp_path: Path) -> None:
    (folder, *_) = write_clip(tmp_path / "clip", cameras=1, frames=8, width=96, height=54)
    images = []
    for frame in load_sequence(folder).frames:
        pixels = decode_jpeg(frame.path.read_bytes())
        images.append(SourceImage(pixels, tuple((b.x, b.y, b.w, b.h) for b in frame.boxes), "a"))
    encoded = build_encoder("nerv", {"steps": 400, "channels": 8, "quality": 50}).encode(images)
    found = quality(images, encoded)
    assert found.background is not None
    assert found.background > 25
    assert found.object is not None
    assert found.object > 30
    (blob,) = blobs(encoded)
    assert len(blob) < 20_000
    assert sum(len(image.layers[0].payload) for image in encoded) < 8 * 100


def test_what_is_trained_is_what_is_received() -> None:
    images = clip(2, boxes=0)
    encoded = build_encoder("nerv", {**QUICK, "seed": 3}).encode(images)
    (blob,) = blobs(encoded)
    network = unpack_network(blob)
    frames = [unpack_frame(image.layers[0].payload, network) for image in encoded]
    assert [frame.index for frame in frames] == [0, 1]
    fitted = Fitted(network.steps, network.tensors, np.stack([frame.latents for frame in frames]))
    decoder = BatchDecoder()
    for index, image in enumerate(encoded):
        shared = {state.digest: state.data for state in image.shared}
        record = ImageRecord(bytes(32), 0, "", (64, 48), (64, 48), (), image.layers, tuple(shared))
        shown = decoder.decode([decoder.prepare(record, shared)])[0]
        assert torch.allclose(shown, show(fitted, network.shape, index), atol=1 / 255)


def test_a_seed_gives_the_same_bytes() -> None:
    images = clip(3)
    first, second = (build_encoder("nerv", QUICK).encode(images) for _ in range(2))
    assert first == second
    assert blobs(build_encoder("nerv", {**QUICK, "seed": 1}).encode(images)) != blobs(first)


def test_cameras_sizes_and_groups_have_networks_of_their_own() -> None:
    images = clip(5) + clip(2, camera="b") + clip(2, (80, 48)) + clip(2)
    encoded = build_encoder("nerv", {**QUICK, "group": 4}).encode(images)
    shapes = [unpack_network(blob).shape for blob in blobs(encoded)]
    # Seven frames of camera a in one size are cut into equal parts.
    assert [(shape.width, shape.frames) for shape in shapes] == [(64, 4), (64, 3), (64, 2), (80, 2)]
    assert encoded[9].shared == encoded[10].shared == encoded[4].shared
    assert quality(images, encoded).full > 8


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (400, 2), (2, 300), (16, 16), (17, 15)])
def test_sizes_of_every_kind(size: tuple[int, int]) -> None:
    images = clip(1, size, boxes=0)
    encoded = build_encoder("nerv", QUICK).encode(images)
    assert np.isfinite(quality(images, encoded).full)


@pytest.mark.parametrize("boxes", [0, 1, 3])
def test_each_box_has_a_layer(boxes: int) -> None:
    images = clip(2, (96, 48), boxes=boxes)
    for image in build_encoder("nerv", QUICK).encode(images):
        assert [layer.kind for layer in image.layers] == [LayerKind.BACKGROUND] + [LayerKind.OBJECT] * boxes
        assert [layer.codec for layer in image.layers] == [Nerv.number] + [Avif2.number] * boxes


def test_no_images() -> None:
    assert build_encoder("nerv", {}).encode([]) == []


def test_too_large_frames_get_fewer_channels() -> None:
    params = NervParams(channels=64, grid=32)
    assert shape_of(params, 320, 240, 9).channels == 64
    large = shape_of(params, 16_384, 1024, 9)
    assert large.problem() is None
    assert large.channels < 64


def test_tables_suit_the_latents() -> None:
    rng = np.random.default_rng(0)
    latents = np.stack([np.zeros((9, 8, 8)), np.rint(rng.laplace(0, 6, (9, 8, 8)))], axis=1).astype(np.int16)
    quiet, loud = latent_tables(latents)
    assert quiet[0] > loud[0]  # tables are sorted by how likely zero is


def test_a_frame_that_no_stream_holds_is_an_avif(monkeypatch: pytest.MonkeyPatch) -> None:
    from fogline.common.images.static_rans import StreamTooLongError
    from fogline.fog_node.encoders import nerv

    packed = nerv.pack_frame

    def refuse(frame: Any, tables: Any) -> bytes:
        if frame.index == 1:
            raise StreamTooLongError("too long")
        return packed(frame, tables)

    monkeypatch.setattr(nerv, "pack_frame", refuse)
    images = clip(3)
    encoded = build_encoder("nerv", QUICK).encode(images)
    assert [image.layers[0].codec for image in encoded] == [Nerv.number, Avif2.number, Nerv.number]
    assert [len(image.shared) for image in encoded] == [1, 0, 1]
    assert quality(images[1:2], encoded[1:2]).full > 20


@pytest.mark.parametrize(
    ("params", "said"),
    [({"step": 3}, "`step` is unknown"), ({"steps": 0}, "codec nerv: .*steps"), ({"bits": 9}, "codec nerv: .*bits")],
)
def test_wrong_parameters_are_named(params: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        nerv_params(params)


def test_shapes_count_their_numbers() -> None:
    shape = Shape(320, 240, 100, 6, 8, 16)
    assert shape.latent_size == (6, 15, 20)
    assert shape.grid_size == (8, 30, 40)
    assert sum(shape.tensors) == (9 * 14 + 1) * 128 + (9 * 40 + 1) * 96 + (9 * 24 + 1) * 64 + (9 * 16 + 1) * 12 + 9600
