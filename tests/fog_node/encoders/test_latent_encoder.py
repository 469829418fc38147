"""The latent encoder: bytes against AVIF stills, when references change, and inputs of every kind."""

import hashlib
from collections.abc import Sequence

import numpy as np
import pytest
import torch

from fogline.common.errors import ConfigError
from fogline.common.images.avif2 import build_avif2
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.latent_motion import affine_field
from fogline.common.images.quality import Quality, mean, measure
from fogline.common.images.record import ImageRecord
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.block_matching import Quarters
from fogline.fog_node.encoders.latent import LatentEncoder
from fogline.fog_node.encoders.latent_params import LatentParams, latent_params
from fogline.fog_node.encoders.motion_search import affine_motion, frame_field, pyramid


def scene(width: int = 400, height: int = 300, seed: int = 0) -> np.ndarray:
    """A large picture with detail of many sizes, to move a camera over; float (height, width, 3)."""
    rng = np.random.default_rng(seed)
    out = np.full((height, width, 3), 128.0)
    for size, strength in ((64, 60), (16, 35), (4, 18)):
        coarse = rng.normal(0, strength, (height // size + 2, width // size + 2, 3))
        y, x = np.arange(height) / size, np.arange(width) / size
        y0, x0 = y.astype(int), x.astype(int)
        fy, fx = (y - y0)[:, None, None], (x - x0)[None, :, None]
        rows = coarse[y0] * (1 - fy) + coarse[y0 + 1] * fy
        out += rows[:, x0] * (1 - fx) + rows[:, x0 + 1] * fx
    return out


def walk(count: int, size: tuple[int, int] = (160, 112), seed: int = 0, camera: str = "north") -> list[SourceImage]:
    """A camera that moves two pixels a frame, and a striped object that moves by itself; with sensor noise."""
    world, rng, (width, height) = scene(seed=seed), np.random.default_rng(seed), size
    stripes = 128 + 80 * np.sin(np.arange(28) * 0.9)[None, :, None] * np.ones((20, 1, 3))
    out = []
    for t in range(count):
        pixels = world[10 + t : 10 + t + height, 20 + 2 * t : 20 + 2 * t + width].copy()
        x, y = 30 + 3 * t % 90, 40 + t % 20
        pixels[y : y + 20, x : x + 28] = stripes
        pixels += rng.normal(0, 1.5, pixels.shape)
        out.append(SourceImage(pixels.clip(0, 255).round().astype(np.uint8), ((x, y, 28.0, 20.0),), camera))
    return out


def total_bytes(encoded: Sequence[EncodedImage]) -> int:
    shared = {state.digest: len(state.data) for image in encoded for state in image.shared}
    return sum(shared.values()) + sum(len(layer.payload) for image in encoded for layer in image.layers)


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


def encoder(**params: int) -> ImageEncoder:
    return build_encoder("latent", params)


def test_frames_of_a_moving_camera_take_far_fewer_bytes_than_stills() -> None:
    images = walk(8)
    encoded = encoder().encode(images)
    stills = build_avif2({"background_quality": 12, "object_quality": 50}).encode(images)
    ours, theirs = quality(images, encoded), quality(images, stills)
    assert ours.background is not None
    assert ours.object is not None
    assert theirs.background is not None
    assert theirs.object is not None
    assert ours.background > theirs.background
    assert ours.object > theirs.object
    assert total_bytes(encoded) < 0.6 * total_bytes(stills)
    assert len({state.digest for image in encoded for state in image.shared}) <= 2


def test_quality_follows_its_parameters() -> None:
    images = walk(3)
    found = [quality(images, encoder(background_quality=q, object_quality=60).encode(images)) for q in (15, 40, 65)]
    values = [one.background for one in found]
    assert values == sorted(values)
    assert values[2] - values[0] > 3
    low, high = (quality(images, encoder(object_quality=q).encode(images)).object for q in (35, 75))
    assert high > low + 3


def test_the_same_batches_give_the_same_bytes() -> None:
    images = walk(6)
    at_once = encoder().encode(images)
    one = encoder()
    assert at_once[0].layers[0] == one.encode(images[:1])[0].layers[0]
    again = encoder().encode(images)
    assert at_once == again


def test_a_scene_change_begins_a_new_reference() -> None:
    images = [*walk(4, seed=1), *walk(4, seed=2)]
    encoded = encoder().encode(images)
    digests = [image.shared[0].digest for image in encoded]
    assert len(set(digests[:4])) == 1
    assert digests[4] != digests[3]
    assert len(set(digests[5:])) == 1
    found = quality(images, encoded)
    assert found.object is not None
    assert found.object > 34


def test_cameras_have_references_of_their_own_and_keep_them_between_batches() -> None:
    north, south = walk(4, seed=1, camera="north"), walk(4, seed=2, camera="south")
    made = encoder()
    mixed = [image for pair in zip(north, south, strict=True) for image in pair]
    encoded = [*made.encode(mixed[:3]), *made.encode(mixed[3:])]
    digests = [image.shared[0].digest for image in encoded]
    assert len({*digests[::2]}) == 1
    assert len({*digests[1::2]}) == 1
    assert digests[0] != digests[1]


def test_a_camera_that_changes_its_resolution_begins_again() -> None:
    images = [*walk(2), *walk(2, size=(120, 80)), *walk(2)]
    encoded = encoder().encode(images)
    digests = [image.shared[0].digest for image in encoded]
    assert digests[0] != digests[2]
    assert quality(images, encoded).full > 28


def booked(made: LatentEncoder) -> list[tuple[int, float]]:
    return [(camera.frames, camera.total) for camera in made._cameras.values()]


def test_a_batch_that_comes_again_is_booked_once() -> None:
    images = walk(6)
    once, twice = LatentEncoder(LatentParams()), LatentEncoder(LatentParams())
    for start in (0, 3):
        once.encode(images[start : start + 3])
        twice.encode(images[start : start + 3])
        twice.encode(images[start : start + 3])  # its records found no room, say
    assert [frames for frames, _ in booked(twice)] == [frames for frames, _ in booked(once)]


def test_a_batch_that_fails_leaves_no_trace() -> None:
    images = walk(4)
    broken = SourceImage(np.zeros((8, 8), np.uint8), (), "other")  # no colours
    made = LatentEncoder(LatentParams())
    made.encode(images[:2])
    before = booked(made)
    with pytest.raises((ValueError, IndexError, RuntimeError)):
        made.encode([*images[2:], broken])
    assert booked(made) == before


def test_cameras_take_no_more_than_the_cache_s_budget() -> None:
    cameras = [walk(3, seed=i, camera=str(i)) for i in range(4)]
    mixed = [image for frames in zip(*cameras, strict=True) for image in frames]
    small, large = LatentEncoder(LatentParams(), cache_bytes=160 * 112 * 200), LatentEncoder(LatentParams())
    for start in range(0, 12, 4):
        assert small.encode(mixed[start : start + 4]) == large.encode(mixed[start : start + 4])
    assert small._cache.held_bytes <= 160 * 112 * 200 < large._cache.held_bytes


def test_max_frames_bounds_what_shares_a_reference() -> None:
    encoded = encoder(max_frames=2).encode(walk(6))
    assert len({image.shared[0].digest for image in encoded}) == 3


@pytest.mark.parametrize(
    "size",
    [(1, 1), (2, 2), (3, 17), (17, 3), (8000, 8)],
)
def test_sizes_of_every_kind(size: tuple[int, int]) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(60, 200, (size[1], size[0], 3), np.uint8)
    images = [SourceImage(pixels, ((0.0, 0.0, 1.0, 1.0),), "c"), SourceImage(pixels[::-1].copy(), (), "c")]
    assert quality(images, encoder().encode(images)).full > 10


@pytest.mark.parametrize(
    "boxes",
    [
        (),
        ((0.0, 0.0, 160.0, 112.0),),
        tuple((8.0 * i, 4.0 * i, 20.0, 12.0) for i in range(15)),
        ((-5.0, 100.5, 9.0, 30.0),),
    ],
    ids=["none", "whole frame", "fifteen that overlap", "over the edge"],
)
def test_boxes_of_every_kind(boxes: tuple[tuple[float, float, float, float], ...]) -> None:
    images = [SourceImage(image.pixels, boxes, "c") for image in walk(3)]
    found = quality(images, encoder().encode(images))
    assert found.full > 28
    if boxes:
        assert found.object is not None
        assert found.object > 33


def test_more_objects_than_a_reference_holds_are_still_coded() -> None:
    boxes = tuple((float(12 * (i % 13)), float(12 * (i // 13)), 10.0, 10.0) for i in range(100))
    images = [SourceImage(image.pixels, boxes, "c") for image in walk(1)]
    found = quality(images, encoder().encode(images))
    assert found.object is not None
    assert found.object > 34


def test_a_frame_beyond_what_a_payload_holds_is_coded_all_the_same() -> None:
    rng = np.random.default_rng(0)
    noise = [rng.integers(0, 256, (400, 640, 3), np.uint8) for _ in range(2)]
    images = [SourceImage(pixels, ((0.0, 0.0, 640.0, 400.0),), "c") for pixels in noise]
    found = quality(images, encoder(background_quality=100, object_quality=100).encode(images))
    assert found.object is not None
    assert found.object > 30


def test_flat_frames_cost_next_to_nothing() -> None:
    images = [SourceImage(np.full((64, 64, 3), 90, np.uint8), (), "c") for _ in range(3)]
    encoded = encoder().encode(images)
    assert all(len(image.layers[0].payload) < 40 for image in encoded)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"quality": 3}, "`quality` is unknown; known: background_quality"),
        ({"background_quality": 0}, "background_quality"),
        ({"object_quality": "high"}, "object_quality"),
        ({"max_frames": 0}, "max_frames"),
    ],
)
def test_bad_parameters_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        latent_params(params)


def planes(shift: tuple[int, int], size: tuple[int, int] = (128, 96)) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    world, (w, h) = scene()[..., 1].astype(np.float32), size
    x, y = shift
    current = torch.from_numpy(world[60 + y : 60 + y + h, 80 + x : 80 + x + w].copy())
    return pyramid(current), pyramid(torch.from_numpy(world[60 : 60 + h, 80 : 80 + w].copy()))


@pytest.mark.parametrize("shift", [(0, 0), (5, -3), (-21, 14), (40, 0)])
def test_the_frame_s_motion_is_found(shift: tuple[int, int]) -> None:
    current, reference = planes(shift)
    field = affine_field(affine_motion(current, reference), 128, 96, 16)
    middle = np.median(field.reshape(-1, 2), axis=0) / 4
    assert np.abs(middle - shift).max() <= 0.5


def test_an_object_that_moves_by_itself_gets_vectors_of_its_own() -> None:
    current, reference = planes((0, 0))
    moved = reference[0].clone()
    moved[32:64, 48:96] = reference[0][32:64, 36:84]  # twelve pixels to the right
    field = frame_field(pyramid(moved), [Quarters.of(p) for p in reference], (0,) * 6, 16, 50.0, None)
    assert (field[2:4, 3:6] == [-48, 0]).all()
    assert (field[4:] == 0).all()
    assert current[0].shape == moved.shape
