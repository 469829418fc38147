"""The siren encoder on small synthetic images: quality, the closed loop, batching, boxes of every kind."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from fogline.common.errors import ConfigError
from fogline.common.images.codec import EncodedImage, ImageEncoder, Placement, SourceImage
from fogline.common.images.record import LayerKind
from fogline.common.images.siren import PreparedNetworks, SirenCodec
from fogline.common.images.siren_payload import Grid, Networks, Shape, unpack
from fogline.fog_node.encoders import build_encoder
from fogline.fog_node.encoders.siren import SirenEncoder
from fogline.fog_node.encoders.siren_batches import Signal
from fogline.fog_node.encoders.siren_fit import BatchFit, Schedule, pixel_order
from fogline.fog_node.encoders.siren_params import siren_params
from fogline.fog_node.encoders.siren_reference import fit_reference
from fogline.fog_node.encoders.siren_rounding import round_weights
from fogline.fog_node.encoders.siren_shapes import background_networks, coefficients_for

CPU = torch.device("cpu")
WHOLE = (0.0, 0.0, 1.0, 1.0)
SMALL = {"depth": 2, "width": 8, "columns": 1, "rows": 1, "steps": 120, "object_steps": 120}


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Tensors this small are not worth threads, which only wait for each other on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def picture(width: int = 48, height: int = 36, seed: int = 0, box: tuple[int, int, int, int] = (12, 8, 14, 16)):
    """A smooth background with a finely striped object in it."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width]
    phases = rng.uniform(0, 6, 3)
    pixels = np.stack([0.5 + 0.3 * np.sin(x / 9 + p) * np.cos(y / 7 + p) for p in phases], axis=-1)
    bx, by, bw, bh = box
    stripes = 0.5 + 0.4 * np.sin(np.arange(bw) * 1.3 + seed)[None, :, None] * np.ones((bh, 1, 3))
    pixels[by : by + bh, bx : bx + bw] = stripes
    return SourceImage((pixels * 255).round().astype(np.uint8), (tuple(map(float, box)),))


def decode(image: EncodedImage, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The background alone, and with its objects, at the coded size; from the payloads only."""
    codec = SirenCodec()
    prepared = [codec.prepare(layer, {}) for layer in image.layers]
    places = [Placement(0, 0, *layer.region[2:], WHOLE) for layer in image.layers]
    tensors = codec.render(prepared, [layer.kind for layer in image.layers], places, CPU)
    background = tensors[0].permute(1, 2, 0).numpy()
    assert background.shape[1::-1] == size
    full = background.copy()
    for layer, tensor in zip(image.layers[1:], tensors[1:], strict=True):
        x, y, w, h = layer.region
        full[y : y + h, x : x + w] += np.float32(layer.scale) * tensor.permute(1, 2, 0).numpy()
    return background, full.clip(0, 1)


def psnr(a: np.ndarray, b: np.ndarray) -> float:
    return float(-10 * np.log10(max(((a - b) ** 2).mean(), 1e-12)))


def in_box(pixels: np.ndarray, source: SourceImage) -> np.ndarray:
    x, y, w, h = (int(v) for v in source.boxes[0])
    return pixels[y : y + h, x : x + w]


def encoder(**params: object) -> ImageEncoder:
    return build_encoder("siren", {**SMALL, **params}, "cpu")


def test_the_background_and_the_object_reach_their_quality() -> None:
    source = picture()
    (image,) = encoder(depth=3, width=16, steps=600, object_steps=400).encode([source])
    background, full = decode(image, (48, 36))
    original = source.pixels / 255
    assert psnr(background, original) > 26
    assert (
        psnr(in_box(full, source), in_box(original, source))
        > psnr(in_box(background, source), in_box(original, source)) + 5
    )
    assert sum(len(layer.payload) for layer in image.layers) < 900


def test_more_steps_are_better() -> None:
    source = picture()
    few, many = (decode(encoder(steps=n).encode([source])[0], (48, 36))[0] for n in (20, 300))
    assert psnr(many, source.pixels / 255) > psnr(few, source.pixels / 255) + 2


def test_the_loop_is_closed_over_the_quantised_background(monkeypatch: pytest.MonkeyPatch) -> None:
    """At 3 bits the decoded background is far from a fine one; an object fitted to the latter corrects wrongly."""
    source = picture(box=(12, 8, 7, 7))
    params = {"width": 12, "bits": 3, "steps": 200, "object_steps": 400}
    original = in_box(source.pixels / 255, source)
    closed = decode(encoder(**params).encode([source])[0], (48, 36))[1]

    def before_quantisation(self: SirenEncoder, backgrounds: object, sources: list, kind: object) -> list[np.ndarray]:
        fine = SirenEncoder(siren_params({**SMALL, **params, "bits": 8}), "cpu")
        return decode_with(fine.fit(sources, LayerKind.BACKGROUND), sources)

    def decode_with(networks: list[Networks], sources: list) -> list[np.ndarray]:
        places = [s.place for s in sources]
        prepared = [PreparedNetworks(n, s.region[2:]) for n, s in zip(networks, sources, strict=True)]
        tensors = SirenCodec().render(prepared, [LayerKind.BACKGROUND] * len(networks), places, CPU)
        return [t.permute(1, 2, 0).numpy() for t in tensors]

    monkeypatch.setattr(SirenEncoder, "decode", before_quantisation)
    opened = decode(encoder(**params).encode([source])[0], (48, 36))[1]
    assert psnr(in_box(closed, source), original) > psnr(in_box(opened, source), original) + 1


def test_a_batch_is_as_good_as_one_by_one() -> None:
    sources = [picture(seed=seed) for seed in range(5)]
    together = encoder().encode(sources)
    for source, image in zip(sources, together, strict=True):
        (alone,) = encoder().encode([source])
        for a, b in zip(decode(image, (48, 36)), decode(alone, (48, 36)), strict=True):
            assert psnr(a, source.pixels / 255) == pytest.approx(psnr(b, source.pixels / 255), abs=0.1)


def test_a_run_is_reproducible_from_its_seed() -> None:
    first, again, other = (encoder(seed=seed).encode([picture()])[0] for seed in (3, 3, 4))
    assert first == again
    assert first != other


def test_the_encoder_saw_exactly_what_the_payload_decodes_to(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[np.ndarray] = []
    real = SirenEncoder.decode
    monkeypatch.setattr(SirenEncoder, "decode", lambda *a: seen.extend(out := real(*a)) or out)
    (image,) = encoder(columns=2, rows=2).encode([picture()])
    np.testing.assert_array_equal(decode(image, (48, 36))[0], seen[0])


def test_it_decodes_at_two_sizes() -> None:
    source = picture()
    (image,) = encoder(width=16, steps=400).encode([source])
    nets = PreparedNetworks(unpack(image.layers[0].payload), (48, 36))
    places = [Placement(0, 0, w, h, WHOLE) for w, h in ((48, 36), (96, 72))]
    small, large = SirenCodec().render([nets, nets], [LayerKind.BACKGROUND] * 2, places, CPU)
    averaged = large.view(3, 36, 2, 48, 2).mean((2, 4))
    assert psnr(averaged.numpy(), small.numpy()) > 35


def test_images_of_several_sizes_in_one_batch() -> None:
    sources = [picture(48, 36), picture(64, 40, seed=1), picture(48, 36, seed=2)]
    for source, image in zip(sources, encoder().encode(sources), strict=True):
        height, width = source.pixels.shape[:2]
        assert image.layers[0].region == (0, 0, width, height)
        assert psnr(decode(image, (width, height))[0], source.pixels / 255) > 18


@pytest.mark.parametrize(
    "boxes",
    [
        (),
        ((0.0, 0.0, 48.0, 36.0),),
        ((47.2, 35.4, 0.3, 0.2),),
        ((10.5, 3.2, 0.9, 30.0), (0.0, 0.0, 1.0, 1.0)),
        ((-0.4, -0.3, 10.0, 10.0),),
    ],
)
def test_boxes_of_every_kind(boxes: tuple[tuple[float, float, float, float], ...]) -> None:
    source = SourceImage(picture().pixels, boxes)
    (image,) = encoder(object_steps=30, steps=30).encode([source])
    assert [layer.kind for layer in image.layers] == [LayerKind.BACKGROUND] + [LayerKind.OBJECT] * len(boxes)
    for layer in image.layers[1:]:
        x, y, w, h = layer.region
        assert 0 <= x < x + w <= 48
        assert 0 <= y < y + h <= 36
        assert layer.scale > 0
    assert np.isfinite(decode(image, (48, 36))[1]).all()


def test_two_hundred_boxes() -> None:
    boxes = tuple((float(x), float(y), 3.0, 3.0) for x in range(0, 60, 3) for y in range(0, 30, 3))
    assert len(boxes) == 200
    (image,) = encoder(object_steps=20, steps=20).encode([SourceImage(picture(64, 36).pixels, boxes)])
    assert len(image.layers) == 201


def test_overlapping_objects_are_corrected_once() -> None:
    source = picture()
    boxes = ((8.0, 4.0, 20.0, 22.0), (20.0, 10.0, 20.0, 22.0))
    overlapping = SourceImage(source.pixels, boxes)
    (image,) = encoder(object_steps=400).encode([overlapping])
    background, full = decode(image, (48, 36))
    common = (slice(10, 26), slice(20, 28))
    original = source.pixels / 255
    assert psnr(full[common], original[common]) > psnr(background[common], original[common]) + 3


def test_no_image_is_an_empty_batch() -> None:
    assert encoder().encode([]) == []


def test_the_gradient_is_autograds() -> None:
    torch.manual_seed(0)
    positions, targets = torch.rand(4, 2, 64) * 2 - 1, torch.rand(4, 3, 64) * 2 - 1
    fit = BatchFit(Shape(3, 7), positions, targets, Schedule(10, 32, 0.1, 0.01, 10, 0.2, 8))
    for group in fit._groups:
        group.matrices.add_(torch.randn_like(group.matrices) * 0.05)
    layers = [matrix.clone().requires_grad_() for matrix in fit._layers]
    values = positions[:, :, 32:]
    for matrix in layers[:-1]:
        values = torch.sin(matrix[:, :, :-1] @ values + matrix[:, :, -1:])
    loss = ((layers[-1][:, :, :-1] @ values + layers[-1][:, :, -1:] - targets[:, :, 32:]) ** 2).mean((1, 2)).sum()
    loss.backward()
    fit._accumulate(1)
    for matrix, gradient in zip(layers, fit._gradients, strict=True):
        torch.testing.assert_close(gradient, matrix.grad, atol=1e-5, rtol=1e-3)


def test_networks_of_one_layer_can_be_fitted() -> None:
    source = picture()
    few, many = (encoder(depth=1, steps=n).encode([source])[0] for n in (10, 300))
    original = source.pixels / 255
    assert psnr(decode(many, (48, 36))[0], original) > psnr(decode(few, (48, 36))[0], original) + 2


def test_deep_networks_learn_more_in_the_eigenbasis() -> None:
    ys, xs = (np.linspace(-1, 1, n, dtype=np.float32) for n in (36, 48))
    pixels = picture().pixels
    signal = Signal(Shape(6, 16), xs, ys, (pixels / np.float32(127.5) - 1).reshape(-1, 3))
    at, values = (torch.from_numpy(a.T[None].copy()) for a in (signal.positions, signal.targets))
    errors = []
    for precondition in (False, True):
        schedule = Schedule(300, 432, 0.03, 0.004, 15, 0.3, 8, precondition)
        fit = BatchFit(signal.shape, at, values, schedule)
        fit.run()
        last, hidden = fit._layers[-1], fit._forward(at[:, :, :432], 6)
        errors.append(float((last[:, :, :-1] @ hidden + last[:, :, -1:] - values[:, :, :432]).square().mean()))
    assert errors[1] < errors[0] * 0.9


def test_rounding_a_layer_spares_what_it_does_to_its_inputs() -> None:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(2, 3, 500, generator=generator).repeat(1, 4, 1)  # twelve, of which three are independent
    inputs = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
    weights, base = torch.randn(2, 5, 12, generator=generator), torch.randn(5, 12, generator=generator)
    step = torch.tensor([0.3, 0.5])
    whole = round_weights(weights, base, step, inputs @ inputs.mT / 500)
    assert torch.equal(whole, whole.round())
    plain = ((weights - base) / step[:, None, None]).round()
    spared, lost = (((w * step[:, None, None] + base - weights) @ inputs).square().mean((1, 2)) for w in (whole, plain))
    assert (spared < lost / 2).all()


def test_weights_beyond_a_byte_are_clamped() -> None:
    weights, moments = torch.full((1, 2, 3), 1000.0), torch.eye(3)[None]
    whole = round_weights(weights, torch.zeros(2, 3), torch.tensor([0.1]), moments)
    assert whole.abs().max() == 127


@pytest.mark.parametrize("bits", [4.0, 6.0])
def test_a_coded_weight_takes_about_the_bits_that_were_asked_for(bits: float) -> None:
    (image,) = encoder(width=16, bits=bits).encode([picture()])
    nets = unpack(image.layers[0].payload)
    taken = len(image.layers[0].payload) * 8 / (nets.grid.networks * nets.shape.parameters)
    assert bits - 1 < taken < bits + 0.7


def test_every_pixel_is_visited() -> None:
    for count, piece in ((1, 64), (63, 64), (64, 64), (1000, 128), (5000, 128)):
        order = pixel_order(count, piece, 0)
        assert len(order) % piece == 0
        assert set(order.tolist()) == set(range(count))


def test_the_reference_profile_learns_and_decodes() -> None:
    source = picture(24, 18, box=(4, 4, 10, 8))
    params = {"profile": "reference", "steps": 80, "object_steps": 20}
    (image,) = build_encoder("siren", params).encode([source])
    nets = unpack(image.layers[0].payload)
    assert (nets.shape, nets.grid) == (Shape(10, 28), Grid(1, 1))
    assert unpack(image.layers[1].payload).shape == Shape(3, 10)
    (fewer,) = build_encoder("siren", {**params, "steps": 10}).encode([source])
    original = source.pixels / 255
    assert psnr(decode(image, (24, 18))[0], original) > psnr(decode(fewer, (24, 18))[0], original) + 1


def test_the_reference_keeps_its_best_iterate() -> None:
    ys, xs = (np.linspace(-1, 1, n, dtype=np.float32) for n in (12, 16))
    signal = Signal(Shape(2, 8), xs, ys, np.zeros((192, 3), np.float32))
    fitted = fit_reference(signal, 60, 0, CPU)
    assert fitted.weights.shape == (Shape(2, 8).parameters,)


def test_large_objects_get_deeper_networks_where_they_are_asked_for() -> None:
    source = picture(160, 120, box=(20, 20, 80, 70))
    for objects, shape in (("quick", Shape(3, 24)), ("fine", Shape(5, 18))):
        (image,) = encoder(steps=5, object_steps=5, objects=objects).encode([source])
        assert unpack(image.layers[1].payload).shape == shape


def test_harder_frames_get_more_parameters() -> None:
    smooth = picture(160, 120).pixels
    noisy = np.random.default_rng(0).integers(0, 255, (120, 160, 3), dtype=np.uint8)
    sizes = [g.networks * s.parameters for s, g in (background_networks(p, 26.0) for p in (smooth, noisy))]
    assert sizes[0] * 20 < sizes[1]
    assert coefficients_for(np.full((20, 30, 3), 7, np.uint8), 30) <= 3
    assert coefficients_for(noisy, 20) < coefficients_for(noisy, 30)


@pytest.mark.parametrize(
    ("params", "message"),
    [
        ({"stepz": 3}, "stepz"),
        ({"steps": 0}, "steps"),
        ({"bits": 9}, "bits"),
        ({"profile": "quick"}, "profile"),
        ({"depth": 3}, "depth, width, columns and rows"),
        ({"depth": 16, "width": 128, "columns": 16, "rows": 16}, "parameters"),
    ],
)
def test_wrong_parameters_are_named(params: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_encoder("siren", params, "cpu")


@pytest.mark.data
def test_a_real_frame_gains_five_decibels_on_its_object(data_root) -> None:
    from PIL import Image

    folder = data_root / "tracking" / "OTB_Crossing"
    with Image.open(folder / "img" / "0060.jpg") as image:
        pixels = np.asarray(image.convert("RGB").resize((160, 106), Image.Resampling.BICUBIC))
    values = (folder / "groundtruth_rect.txt").read_text().splitlines()[59].replace("\t", ",").split(",")
    x, y, w, h = (float(v) * 160 / 360 for v in values)
    source = SourceImage(pixels, ((x, y, w, h),))
    (image,) = build_encoder("siren", {"steps": 400, "object_steps": 300}).encode([source])
    background, full = decode(image, (160, 106))
    rx, ry, rw, rh = image.layers[1].region
    region = slice(ry, ry + rh), slice(rx, rx + rw)
    original = pixels / 255
    assert psnr(background, original) > 25
    assert psnr(full[region], original[region]) > psnr(background[region], original[region]) + 5
