"""Views, objects and damaged parts of `latent` records: what is shown is a part of the whole frame, or refused."""

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_sets import H, W, background, coded, record, reference, texture, thing

from fogline.common.errors import FormatError
from fogline.common.images import avif2
from fogline.common.images.codec import SharedBlobs
from fogline.common.images.decode import BatchDecoder, PreparedImage
from fogline.common.images.latent_picture import pack_picture
from fogline.common.images.record import LayerKind
from fogline.common.images.shared_cache import SharedCache
from fogline.common.images.views import View

CLOSE = 1e-4  # of 1: far below half a grey level; positions are float32


def image(
    decoder: BatchDecoder, regions: list[tuple[int, int, int, int]], size: tuple[int, int] = (W, H), seed: int = 0
) -> PreparedImage:
    layers = [
        background(coded(LayerKind.BACKGROUND, *size, seed), size),
        *(thing(region, seed + i) for i, region in enumerate(regions)),
    ]
    return decoder.prepare(*record(layers, [reference(texture(*size))], size))


def crop(whole: torch.Tensor, view: View) -> torch.Tensor:
    x, y, w, h = (int(v) for v in (view.x, view.y, view.w, view.h))
    part = whole[:, y : y + h, x : x + w]
    return part.flip(-1) if view.flip else part


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_a_view_is_that_part_of_the_frame(data: st.DataObject) -> None:
    decoder = BatchDecoder()
    made = image(decoder, [(11, 5, 21, 17), (25, 10, 20, 24), (0, 30, 9, 10)])
    w, h = data.draw(st.integers(1, W)), data.draw(st.integers(1, H))
    corners = data.draw(st.lists(st.tuples(st.integers(0, W - w), st.integers(0, H - h)), min_size=1, max_size=4))
    views = [View(x, y, w, h, data.draw(st.booleans())) for x, y in corners]
    shown = decoder.decode([made] * len(views), (w, h), views=views)
    (whole,) = decoder.decode([made])
    for view, part in zip(views, shown, strict=True):
        assert (part - crop(whole, view)).abs().max() < CLOSE


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (8000, 6), (6, 4000)])
def test_frames_of_every_shape_show_the_same_in_views(size: tuple[int, int]) -> None:
    decoder = BatchDecoder()
    width, height = size
    made = image(decoder, [(width - 1, height - 1, 1, 1)], size)
    (whole,) = decoder.decode([made])
    w, h = min(width, 300), min(height, 300)
    for view in (View(0, 0, w, h), View(width - w, height - h, w, h, True)):
        (part,) = decoder.decode([made], (w, h), views=[view])
        assert (part - crop(whole, view)).abs().max() < CLOSE


def test_objects_that_overlap_are_shown_in_their_order() -> None:
    decoder = BatchDecoder()
    regions = [(5, 5, 30, 25), (20, 10, 30, 20), (25, 15, 8, 8), (0, 0, W, H), (0, 0, 10, 10)]
    made = image(decoder, regions)
    alone = [decoder.decode([image(decoder, [])])[0]]
    for i, region in enumerate(regions):
        (x, y, w, h), single = region, image(decoder, [])
        layer = decoder.prepare(
            *record([background(bytes([0, 0, 40])), thing(region, i)], [reference(texture(W, H))])
        ).layers[1]
        shown = PreparedImage(single.size, single.source_size, (), (single.layers[0], layer))
        alone.append(decoder.decode([shown])[0][:, y : y + h, x : x + w])
    expected = alone[0].clone()
    for (x, y, w, h), pixels in zip(regions, alone[1:], strict=True):
        expected[:, y : y + h, x : x + w] = pixels
    assert torch.equal(decoder.decode([made])[0], expected)


def test_a_camera_that_changes_its_resolution_decodes_in_one_batch() -> None:
    decoder = BatchDecoder()
    sizes = [(W, H), (W // 2, H), (W, H), (33, 21)]
    images = [image(decoder, [(3, 3, 12, 9)], size, seed) for seed, size in enumerate(sizes)]
    together = decoder.decode(images, (40, 30))
    for made, shown in zip(images, together, strict=True):
        assert torch.equal(decoder.decode([made], (40, 30))[0], shown)


def refused_or_shown(bad: bytes, blob: bytes) -> None:
    """An object's payload and a reference, one of them damaged, are refused, or decode to some picture."""
    decoder, whole = BatchDecoder(), thing((11, 5, 21, 17))
    layers = [background(coded(LayerKind.BACKGROUND)), replace(whole, payload=bad)]
    try:
        shown = decoder.decode([decoder.prepare(*record(layers, [blob]))])
    except FormatError:
        return
    assert torch.isfinite(shown).all()
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1


def flip(data: st.DataObject, whole: bytes) -> bytes:
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    bad = bytearray(whole)
    bad[at // 8] ^= 1 << at % 8
    return bytes(bad)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_in_an_object(data: st.DataObject) -> None:
    refused_or_shown(flip(data, thing((11, 5, 21, 17)).payload), reference())


@cache
def with_crops() -> bytes:
    pixels = texture()
    crops = [
        ((x, y, w, h), avif2.encode_payload(np.ascontiguousarray(pixels[y : y + h, x : x + w]), 60, full_chroma=True))
        for x, y, w, h in ((4, 4, 20, 16), (18, 10, 24, 20))
    ]
    return pack_picture(W, H, avif2.encode_payload(pixels, 40, full_chroma=False), crops)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_in_a_reference_with_crops(data: st.DataObject) -> None:
    refused_or_shown(thing((11, 5, 21, 17)).payload, flip(data, with_crops()))


def test_crops_replace_what_the_frame_of_a_reference_shows() -> None:
    blob = with_crops()
    made, shared = record([background(bytes([0, 0, 40]))], [blob])
    decoder = BatchDecoder()
    (shown,) = decoder.decode([decoder.prepare(made, shared)])
    wanted = torch.from_numpy(texture()).permute(2, 0, 1).float() / 255
    error = (shown - wanted).square().mean(0)
    assert error[10:30, 18:42].mean() < 0.5 * error[32:].mean()


def test_a_reference_that_no_one_needs_any_more_is_parsed_anew() -> None:
    blobs = SharedBlobs({b"d": b"x"}, [b"d"], SharedCache())
    count = []

    class Parsed:
        def __init__(self, blob: bytes) -> None:
            count.append(blob)

    first = blobs.open(0, "kind", Parsed)
    assert blobs.open(0, "kind", Parsed) is first
    del first
    blobs.open(0, "kind", Parsed)
    assert len(count) == 2
