"""The siren decoder against a plain one in float64, at any size and in any company; and hostile payloads."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.errors import FormatError
from fogline.common.images import rans, resample, siren
from fogline.common.images.codec import Placement, codec_of
from fogline.common.images.record import Layer, LayerKind
from fogline.common.images.siren import PreparedNetworks, SirenCodec
from fogline.common.images.siren_base import base_weights
from fogline.common.images.siren_payload import MAX_FREQUENCY, STEPS, Grid, Networks, Shape, pack, unpack
from fogline.common.images.siren_tiles import tiles

CPU = torch.device("cpu")
WHOLE = (0.0, 0.0, 1.0, 1.0)
GREY = 1 / 255


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth threads, which only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def networks(
    depth: int = 2, width: int = 8, columns: int = 1, rows: int = 1, seed: int = 0, frequency: int = 0
) -> Networks:
    rng = np.random.default_rng(seed)
    shape, grid = Shape(depth, width), Grid(columns, rows)
    weights = np.clip(np.round(rng.normal(0, 30, (grid.networks, shape.parameters))), -127, 127).astype(np.int8)
    sine = rng.integers(140, 160, (grid.networks, depth))
    steps = np.concatenate([sine, np.full((grid.networks, 1), 145)], axis=1).astype(np.uint8)
    return Networks(shape, grid, steps, weights, frequency)


def plainly(nets: Networks, place: Placement) -> np.ndarray:
    """Raw network values (h, w, 3), one pixel at a time, in float64."""
    out = np.empty((place.h, place.w, 3))
    x0, y0, x1, y1 = place.source
    for j in range(place.h):
        for i in range(place.w):
            u = (x0 + (i + 0.5) / place.w * (x1 - x0)) * nets.grid.columns
            v = (y0 + (j + 0.5) / place.h * (y1 - y0)) * nets.grid.rows
            column = min(max(int(np.floor(u)), 0), nets.grid.columns - 1)
            row = min(max(int(np.floor(v)), 0), nets.grid.rows - 1)
            network = row * nets.grid.columns + column
            value = np.array([2 * (u - column) - 1, 2 * (v - row) - 1])
            start, base = 0, base_weights(nets.shape, nets.frequency).astype(np.float64)
            for layer, (inputs, outputs) in enumerate(nets.shape.layers):
                step, at = float(STEPS[nets.steps[network, layer]]), slice(start, start + (inputs + 1) * outputs)
                flat = nets.weights[network, at].astype(np.float64) * step + base[at]
                value = flat[: inputs * outputs].reshape(outputs, inputs) @ value + flat[inputs * outputs :]
                if layer < nets.shape.depth:
                    value = np.sin(value)
                start += (inputs + 1) * outputs
            out[j, i] = value
    return out


def expected(nets: Networks, kind: LayerKind, place: Placement) -> np.ndarray:
    raw = plainly(nets, place)
    return np.clip((raw + 1) / 2, 0, 1) if kind is LayerKind.BACKGROUND else np.clip(raw, -1, 1)


def render(nets: list[Networks], places: list[Placement], kind: LayerKind = LayerKind.BACKGROUND) -> list[np.ndarray]:
    """At the size at which a placement takes the layer's pixels one for one."""
    sizes = [(round(p.w / (p.source[2] - p.source[0])), round(p.h / (p.source[3] - p.source[1]))) for p in places]
    prepared = [PreparedNetworks(net, size) for net, size in zip(nets, sizes, strict=True)]
    images = SirenCodec().render(prepared, [kind] * len(nets), places, CPU)
    assert all(image.dtype == torch.float32 for image in images)
    return [image.permute(1, 2, 0).numpy() for image in images]


@pytest.mark.parametrize("kind", list(LayerKind))
@pytest.mark.parametrize("size", [(12, 9), (31, 20)])
@pytest.mark.parametrize("grid", [(1, 1), (3, 2)])
@pytest.mark.parametrize("frequency", [0, 9])
def test_renders_what_the_weights_say(
    kind: LayerKind, size: tuple[int, int], grid: tuple[int, int], frequency: int
) -> None:
    nets, place = networks(3, 10, *grid, frequency=frequency), Placement(0, 0, *size, WHOLE)
    want = expected(nets, kind, place)
    assert want.std() > 0.05
    np.testing.assert_allclose(render([nets], [place], kind)[0], want, atol=1e-4)


def test_a_crop_is_the_slice_of_the_whole() -> None:
    nets = networks(3, 12, 4, 3)
    whole = render([nets], [Placement(0, 0, 40, 30, WHOLE)])[0]
    crop = render([nets], [Placement(5, 7, 20, 10, (5 / 40, 7 / 30, 25 / 40, 17 / 30))])[0]
    np.testing.assert_allclose(crop, whole[7:17, 5:25], atol=1e-4)


def test_between_pixels_it_is_resampled_from_them() -> None:
    nets, size, source = networks(3, 12, 2, 2), (20, 16), (-0.02, 0.1, 0.7, 1.03)
    whole = render([nets], [Placement(0, 0, *size, WHOLE)])[0]
    place = Placement(0, 0, 13, 9, source)
    (found,) = SirenCodec().render([PreparedNetworks(nets, size)], [LayerKind.BACKGROUND], [place], CPU)
    left, across = resample.weights(13, source[0] * 20, source[2] * 20, 20)
    top, down = resample.weights(9, source[1] * 16, source[3] * 16, 16)
    part = whole[top : top + down.shape[1], left : left + across.shape[1]]
    np.testing.assert_allclose(found.permute(1, 2, 0), np.einsum("ay,yxc,bx->abc", down, part, across), atol=1e-5)


def test_a_mix_of_shapes_and_sizes_decodes_as_one_by_one() -> None:
    nets = [networks(2, 8), networks(3, 10, 3, 2, seed=1), networks(2, 8, seed=2), networks(1, 5, seed=3)]
    nets.append(networks(2, 8, frequency=10))
    places = [Placement(0, 0, w, h, WHOLE) for w, h in ((33, 20), (33, 20), (7, 50), (1, 1), (33, 20))]
    together = render(nets, places)
    for one, net, place in zip(together, nets, places, strict=True):
        np.testing.assert_allclose(one, render([net], [place])[0], atol=1e-5)


def test_few_tensor_calls_for_many_layers(monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], torch.baddbmm
    monkeypatch.setattr(torch, "baddbmm", lambda *a, **k: calls.append(1) or real(*a, **k))
    render([networks(2, 8, seed=s) for s in range(200)], [Placement(0, 0, 16 + s % 10, 20, WHOLE) for s in range(200)])
    assert len(calls) <= 24  # 3 layers, at most 8 pieces that fit a cache


def test_what_is_evaluated_together_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    nets, places = [networks(2, 8, 4, 3, seed=s) for s in range(6)], [Placement(0, 0, 16, 12, WHOLE)] * 6
    together = render(nets, places)
    counts, real = [], siren.evaluate
    monkeypatch.setattr(siren, "evaluate", lambda layers, *a: counts.append(len(a[0])) or real(layers, *a))
    monkeypatch.setattr(siren, "_GROUP_ELEMENTS", 10 * (Shape(2, 8).parameters + 8 * (8 + 8)))
    for one, bounded in zip(together, render(nets, places), strict=True):
        np.testing.assert_allclose(bounded, one, atol=1e-5)
    assert (max(counts), sum(counts)) == (10, 6 * 12)


def test_thread_counts_agree_within_a_grey_level() -> None:
    nets, place = [networks(3, 20, 4, 3)], [Placement(0, 0, 160, 120, WHOLE)]
    before = torch.get_num_threads()
    try:
        images = []
        for threads in (1, 2, 4):
            torch.set_num_threads(threads)
            images.append(render(nets, place)[0])
    finally:
        torch.set_num_threads(before)
    for image in images[1:]:
        assert np.abs(image - images[0]).max() < GREY / 10


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_it_decodes_on_several_threads_in_any_mode(mode: type) -> None:
    torch.set_num_threads(2)
    nets, place = [networks(3, 20, 4, 3)], [Placement(0, 0, 160, 120, WHOLE)]
    with mode():
        inside = render(nets, place)[0].copy()
    np.testing.assert_array_equal(inside, render(nets, place)[0])


@given(
    st.integers(1, 40), st.integers(1, 40), st.integers(1, 16), st.integers(1, 16),
    st.floats(-0.1, 0.6), st.floats(0.61, 1.1),
)  # fmt: skip
def test_tiles_cover_every_pixel_once(w: int, h: int, columns: int, rows: int, low: float, high: float) -> None:
    covered = np.zeros((h, w), int)
    for tile in tiles(Placement(0, 0, w, h, (low, low, high, high)), Grid(columns, rows)):
        covered[tile.y : tile.y + len(tile.ys), tile.x : tile.x + len(tile.xs)] += 1
        assert 0 <= tile.network < columns * rows
    assert (covered == 1).all()


@settings(max_examples=30, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 20), st.integers(1, 4), st.integers(1, 3), st.integers(0, 99),
    st.integers(0, MAX_FREQUENCY), st.booleans(),
)  # fmt: skip
def test_payload_round_trip(
    depth: int, width: int, columns: int, rows: int, seed: int, frequency: int, common: bool
) -> None:
    nets = networks(depth, width, columns, rows, seed, frequency)
    if common:
        nets = replace(nets, steps=np.repeat(nets.steps[:1], nets.grid.networks, axis=0))
    again = unpack(pack(nets))
    assert (again.shape, again.grid, again.frequency) == (nets.shape, nets.grid, nets.frequency)
    np.testing.assert_array_equal(again.steps, nets.steps)
    np.testing.assert_array_equal(again.weights, nets.weights)


def test_step_numbers_that_all_networks_share_are_written_once() -> None:
    nets = networks(2, 8, 4, 3)
    same = replace(nets, steps=np.repeat(nets.steps[:1], 12, axis=0))
    assert len(pack(nets)) - len(pack(same)) == 11 * 3


def packed_in_version_1(nets: Networks) -> bytes:
    """As the first version's writer did: inputs before outputs, a table for weights and one for biases, no base."""
    runs, start = [], 0
    for inputs, outputs in nets.shape.layers:
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        turned = nets.weights[:, start:middle].reshape(-1, outputs, inputs).transpose(0, 2, 1)
        runs += [(rans.best_table(part), part) for part in (turned.ravel(), nets.weights[:, middle:end].ravel())]
        start = end
    head = bytes([nets.shape.depth, nets.shape.width, nets.grid.columns - 1 << 4 | nets.grid.rows - 1])
    return head + nets.steps.tobytes() + bytes(table for table, _ in runs) + rans.encode(runs)


def test_version_1_still_decodes() -> None:
    nets = networks(3, 10, 3, 2)
    payload = packed_in_version_1(nets)
    prepared = codec_of(3, 1).prepare(Layer(LayerKind.BACKGROUND, 3, 1, (0, 0, 9, 9), 1.0, payload), {})
    np.testing.assert_array_equal(prepared.networks.weights, nets.weights)
    place = Placement(0, 0, 12, 9, WHOLE)
    np.testing.assert_array_equal(render([prepared.networks], [place])[0], render([nets], [place])[0])
    for wrong in (*(payload[:n] for n in range(len(payload))), payload + b"\0"):
        with pytest.raises(FormatError):
            unpack(wrong, 1)


def test_the_base_is_the_same_everywhere() -> None:
    """SplitMix64 once more, in Python's own integers; another base would turn every record into noise."""
    shape, mask = Shape(2, 3), (1 << 64) - 1
    base = base_weights(shape, 12)
    bounds = [12.0] * 6 + [np.pi] * 3 + [2**0.5] * 12 + [2**0.5 / 30] * 9 + [0.0] * 3
    assert len(base) == len(bounds) == shape.parameters
    for index, bound in enumerate(bounds):
        z = (300_000 + index + 1) * 0x9E3779B97F4A7C15 & mask
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 & mask
        z = (z ^ z >> 27) * 0x94D049BB133111EB & mask
        uniform = ((z ^ z >> 31) >> 40) / 2**23 - 1
        assert base[index] == np.float32(uniform) * np.float32(bound)
    assert not base_weights(shape, 0).any()


def test_it_is_registered() -> None:
    codec = codec_of(3, 2)
    assert (codec.name, codec.additive) == ("siren", True)
    payload = pack(networks())
    prepared = codec.prepare(Layer(LayerKind.OBJECT, 3, 2, (0, 0, 4, 4), 1.0, payload), {})
    assert prepared.networks.weights.dtype == np.int8
    assert prepared.size == (4, 4)


def test_truncated_and_extended_payloads_are_refused() -> None:
    payload = pack(networks())
    for wrong in (*(payload[:n] for n in range(len(payload))), payload + b"\0"):
        with pytest.raises(FormatError):
            unpack(wrong)


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (bytes([0, 8, 0]), "depth 0"),
        (bytes([17, 8, 0]), "depth 17"),
        (bytes([3, 0, 0]), "width 0"),
        (bytes([3, 129, 0]), "width 129"),
        (bytes([16, 128, 0xFF]), "parameters"),
        (bytes([3, 100, 0]), "can't hold"),
    ],
)
def test_impossible_headers_are_refused_before_allocation(head: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(head + bytes(40))


@given(st.binary(max_size=300), st.integers(1, 2))
def test_random_payloads_render_or_are_refused(data: bytes, version: int) -> None:
    try:
        nets = unpack(data, version)
    except FormatError:
        return
    assert np.isfinite(render([nets], [Placement(0, 0, 5, 5, WHOLE)])[0]).all()


def test_the_largest_weights_and_steps_stay_finite() -> None:
    shape = Shape(4, 128)
    nets = Networks(
        shape, Grid(1, 1), np.full((1, 5), 255, np.uint8), np.full((1, shape.parameters), -128, dtype=np.int8)
    )
    for kind in LayerKind:
        assert np.isfinite(render([nets], [Placement(0, 0, 9, 9, WHOLE)], kind)[0]).all()
