"""Decoding a part of a frame equals decoding all of it and cutting that part out."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from fogline.common.boxes import Box  # noqa: E402
from fogline.common.errors import InputError  # noqa: E402
from fogline.common.images.codec import SourceImage, codec_of  # noqa: E402
from fogline.common.images.decode import BatchDecoder, PreparedImage  # noqa: E402
from fogline.common.images.jpeg import resize  # noqa: E402
from fogline.common.images.record import ImageRecord  # noqa: E402
from fogline.common.images.regions import place  # noqa: E402
from fogline.common.images.views import View, place_view  # noqa: E402
from fogline.common.models.augment import Cuts, cut  # noqa: E402
from fogline.fog_node.encoders import build_encoder  # noqa: E402

SIZE = (96, 64)
BOXES = ((20.0, 10.0, 33.0, 21.0), (60.5, 30.25, 20.0, 30.0))
QUICK = {"siren": {"steps": 30, "object_steps": 30}}
GREY = 1 / 255


def scene(width: int, height: int, seed: int = 0) -> np.ndarray:
    noise = np.random.default_rng(seed).integers(0, 255, (height // 16 + 2, width // 16 + 2, 3), dtype=np.uint8)
    return resize(noise, width, height)


def prepared(codec: str, size: tuple[int, int] = SIZE, boxes: Sequence[Any] = BOXES) -> PreparedImage:
    encoder = build_encoder(codec, QUICK.get(codec, {}))
    (image,) = encoder.encode([SourceImage(scene(*size), tuple(boxes))])
    record = ImageRecord(bytes(32), 0, "", size, size, tuple(Box(*box) for box in boxes), image.layers)
    return BatchDecoder().prepare(record, {state.digest: state.data for state in image.shared})


@pytest.fixture(scope="module", params=["siren", "jpeg2", "avif2"])
def image(request: pytest.FixtureRequest) -> tuple[str, PreparedImage]:
    return request.param, prepared(request.param)


PARTS = [(0, 0, 96, 64), (8, 16, 40, 24), (30, 12, 5, 3), (55, 1, 41, 63), (95, 63, 1, 1)]


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_at_the_coded_scale(image: tuple[str, PreparedImage], part: tuple[int, ...], flip: bool) -> None:
    x, y, w, h = part
    whole = BatchDecoder().decode([image[1]])[..., y : y + h, x : x + w]
    found = BatchDecoder().decode([image[1]], (w, h), views=[View(x, y, w, h, flip)])
    assert found.shape == (1, 3, h, w)
    assert (found - (whole.flip(-1) if flip else whole)).abs().max() <= GREY


@pytest.mark.parametrize("scale", [2, 3])
@pytest.mark.parametrize("part", PARTS)
def test_a_part_enlarged(image: tuple[str, PreparedImage], part: tuple[int, ...], scale: int) -> None:
    x, y, w, h = (scale * v for v in part)
    whole = BatchDecoder().decode([image[1]], (scale * 96, scale * 64))[..., y : y + h, x : x + w]
    found = BatchDecoder().decode([image[1]], (w, h), views=[View(*part)])
    difference = (found - whole).abs()
    if image[0] == "siren":
        assert difference.max() <= GREY
    else:  # Pillow scales each cut of an object layer by itself, to an eighth of a pixel
        assert difference.mean() <= 2 * GREY


def test_a_part_of_no_whole_pixels(image: tuple[str, PreparedImage]) -> None:
    """Held against the whole frame, decoded at its own size and cut bilinearly."""
    view = View(10 / 3, 7 / 3, 60.0, 45.0)
    share = (view.x / 96, view.y / 64, view.w / 96, view.h / 64)
    cuts = Cuts(*(torch.tensor([v]) for v in share), torch.tensor([False]))
    found = BatchDecoder().decode([image[1]], (40, 30), views=[view])
    assert (found - cut(BatchDecoder().decode([image[1]]), cuts, (40, 30))).abs().mean() <= 5 * GREY


def test_views_of_one_batch_are_independent() -> None:
    images = [prepared("siren"), prepared("jpeg2", (50, 70), ()), prepared("avif2", (33, 21), BOXES[:1])]
    views = [View(1, 2, 30, 20, True), View(0, 0, 50, 70), View(3.5, 1.25, 20.5, 19.75, True)]
    together = BatchDecoder().decode(images, (24, 18), views=views)
    for i in range(3):
        alone = BatchDecoder().decode([images[i]], (24, 18), views=[views[i]])
        assert torch.allclose(together[i], alone[0], atol=1e-5)


def test_layers_out_of_view_are_not_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    image = prepared("siren")
    codec, calls = codec_of(3, 1), []
    render = type(codec).render

    def counted(self: Any, prepared: Any, kinds: Any, places: Any, device: Any) -> Any:
        calls.append(len(kinds))
        return render(self, prepared, kinds, places, device)

    monkeypatch.setattr(type(codec), "render", counted)
    for view in (View(0, 0, 15, 64), View(0, 0, 30, 64), View(0, 0, 96, 64)):
        BatchDecoder().decode([image], (16, 16), views=[view])
    assert calls == [1, 2, 3]


def test_one_pixel() -> None:
    image = prepared("jpeg2", (1, 1), ((0.0, 0.0, 1.0, 1.0),))
    assert BatchDecoder().decode([image], (16, 16), views=[View(0, 0, 1, 1, True)]).shape == (1, 3, 16, 16)
    assert BatchDecoder().decode([image], (1, 1), views=[View(0.25, 0.25, 0.5, 0.5)]).shape == (1, 3, 1, 1)


@pytest.mark.parametrize(
    "view", [View(-1, 0, 9, 9), View(90, 0, 9, 9), View(0, 60, 9, 9), View(0, 0, 0, 9), View(math.nan, 0, 9, 9)]
)
def test_a_view_must_lie_in_its_frame(view: View) -> None:
    image = prepared("jpeg2")
    with pytest.raises(InputError, match="into the frame"):
        BatchDecoder().decode([image], (8, 8), views=[view])
    with pytest.raises(InputError, match="one of each"):
        BatchDecoder().decode([image], (8, 8), views=[])
    with pytest.raises(InputError, match="give a size"):
        BatchDecoder().decode([image], views=[View(0, 0, 9, 9)])


def test_threads_agree_within_one_grey_level() -> None:
    images = [prepared("siren"), prepared("siren", (80, 96), ())]
    views = [View(1.5, 2.5, 80, 50), View(0, 0, 80, 96, True)]
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            found.append(BatchDecoder().decode(images, (224, 160), views=views))
    finally:
        torch.set_num_threads(before)
    assert all((other - found[0]).abs().max() <= GREY for other in found[1:])


@pytest.mark.gpu
def test_a_gpu_agrees_within_one_grey_level(image: tuple[str, PreparedImage]) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    views = [View(1.5, 2.5, 80, 50, True)]
    found = BatchDecoder("cuda").decode([image[1]], (224, 160), views=views)
    assert (found.cpu() - BatchDecoder().decode([image[1]], (224, 160), views=views)).abs().max() <= GREY


@pytest.mark.gpu
def test_tf32_is_within_50_db() -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    images, views = [prepared("siren")], [View(1.5, 2.5, 80, 50)]
    exact = BatchDecoder("cuda").decode(images, (224, 160), views=views)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high")
        found = BatchDecoder("cuda").decode(images, (224, 160), views=views)
    finally:
        torch.set_float32_matmul_precision(before)
    assert (found - exact).square().mean() <= 1e-5


regions = st.tuples(st.integers(0, 90), st.integers(0, 60), st.integers(1, 96), st.integers(1, 64)).map(
    lambda r: (r[0], r[1], min(r[2], 96 - r[0]), min(r[3], 64 - r[1]))
)


@given(regions, st.sampled_from([1, 2, 4, 8]))
def test_the_whole_frame_is_a_view(region: tuple[int, int, int, int], scale: int) -> None:
    target = (96 * scale, 64 * scale)
    assert place_view(region, View(0, 0, 96, 64), target) == place(region, SIZE, target)


@given(
    regions,
    st.tuples(st.floats(0, 0.9), st.floats(0, 0.9), st.floats(0.01, 1), st.floats(0.01, 1)),
    st.integers(1, 300),
    st.integers(1, 300),
)
@settings(max_examples=300)
def test_centres_lie_inside(region: tuple[int, ...], share: tuple[float, ...], width: int, height: int) -> None:
    view = View(96 * share[0], 64 * share[1], 96 * (1 - share[0]) * share[2], 64 * (1 - share[1]) * share[3])
    found = place_view((region[0], region[1], region[2], region[3]), view, (width, height))
    across = [view.x + (i + 0.5) * view.w / width - region[0] for i in range(width)]
    if found is None:
        return
    assert 0 <= found.x < found.x + found.w <= width
    assert 0 <= found.y < found.y + found.h <= height
    u0, v0, u1, v1 = found.source
    assert u0 + (u1 - u0) / (2 * found.w) >= -1e-9
    assert u1 - (u1 - u0) / (2 * found.w) <= 1 + 1e-9
    assert v0 + (v1 - v0) / (2 * found.h) >= -1e-9
    assert v1 - (v1 - v0) / (2 * found.h) <= 1 + 1e-9
    assert found.w >= sum(1e-6 < at < region[2] - 1e-6 for at in across)
