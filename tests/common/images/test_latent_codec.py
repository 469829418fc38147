"""The decoding half of `latent`: payloads, motion, sampling, references, and what is hostile about them."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from latent_sets import CPU, WHOLE, H, W, background, coded, latents, plane, record, reference, texture
from PIL import Image

from fogline.common.errors import FormatError
from fogline.common.images import avif2, resample
from fogline.common.images.codec import Placement, SharedBlobs
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.latent import Latent, calls, decode, decode_together
from fogline.common.images.latent_blocks import read_plane, write_plane
from fogline.common.images.latent_motion import affine_field, read_field, write_field
from fogline.common.images.latent_payload import Latents, pack, unpack
from fogline.common.images.latent_picture import pack_picture, unpack_picture
from fogline.common.images.latent_render import cosines, field_tensor, predict, predict_one
from fogline.common.images.record import ImageRecord, Layer, LayerKind
from fogline.common.images.sampling import Samplings, Window
from fogline.common.images.static_rans import Decoder, Encoder


def same(a: Latents, b: Latents) -> None:
    assert (a.reference, a.step, a.affine) == (b.reference, b.step, b.affine)
    assert np.array_equal(a.offsets, b.offsets)
    for one, other in zip(a.planes, b.planes, strict=True):
        assert np.array_equal(one.index, other.index)
        assert np.array_equal(one.values, other.values)


@pytest.mark.parametrize("kind", LayerKind)
@pytest.mark.parametrize(("width", "height"), [(W, H), (1, 1), (17, 3), (160, 90)])
def test_payload_round_trip(kind: LayerKind, width: int, height: int) -> None:
    made = latents(kind, width, height)
    same(unpack(pack(made, kind), kind, width, height), made)


def test_a_still_is_three_bytes() -> None:
    payload = pack(Latents(0, 40, (0,) * 6, None, None), LayerKind.BACKGROUND)
    assert payload == bytes([0, 0, 40])
    found = unpack(payload, LayerKind.BACKGROUND, W, H)
    assert found.offsets is None
    assert found.planes is None


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 20), st.integers(1, 20), st.integers(0, 2**31), st.sampled_from([1, 30, 4000]))
def test_fields_round_trip(rows: int, columns: int, seed: int, spread: int) -> None:
    field = np.random.default_rng(seed).integers(-spread, spread + 1, (rows, columns, 2)).astype(np.int32)
    encoder = Encoder()
    write_field(encoder, field)
    decoder = Decoder(encoder.finish())
    assert np.array_equal(read_field(decoder, rows, columns), field)
    decoder.finish()


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 9), st.integers(1, 9), st.sampled_from([8, 16]), st.integers(0, 2**31), st.integers(0, 3))
def test_planes_round_trip(rows: int, columns: int, size: int, seed: int, kind: int) -> None:
    made = plane(rows, columns, size, seed, scale=30.0)
    encoder = Encoder()
    write_plane(encoder, made, kind)
    decoder = Decoder(encoder.finish())
    found = read_plane(decoder, rows, columns, size, kind)
    decoder.finish()
    assert np.array_equal(found.index, made.index)
    assert np.array_equal(found.values, made.values)


def test_a_smooth_field_costs_little() -> None:
    rows, columns = 23, 40
    encoder = Encoder()
    write_field(encoder, np.full((rows, columns, 2), 9, np.int32))
    assert len(encoder.finish()) < rows * columns * 2 * 0.3 / 8 + 30


def test_affine_motion_is_what_it_says() -> None:
    field = affine_field((8, 16, 0, -8, 0, 24), 320, 240, 16)
    assert field.shape == (15, 20, 2)
    u, v = (8 - 160) / 160, (8 - 120) / 160  # the first block's centre
    assert field[0, 0].tolist() == [round(4 * (1 + 2 * u)), round(4 * (-1 + 3 * v))]


def test_cosines_are_orthonormal() -> None:
    for size in (8, 16):
        matrix = cosines(size)
        assert torch.allclose(matrix @ matrix.T, torch.eye(size), atol=1e-6)


@pytest.mark.parametrize("target", [(W, H), (W // 2, H // 2), (2 * W, 2 * H), (33, 29), (3, 2)])
def test_resampling_agrees_with_pillow(target: tuple[int, int]) -> None:
    pixels = texture()
    top, down = resample.weights(target[1], 0, H, H)
    left, across = resample.weights(target[0], 0, W, W)
    assert (top, left) == (0, 0)
    ours = np.einsum("ab,bcd,ec->aed", down, pixels.astype(np.float32), across)
    theirs = np.asarray(Image.fromarray(pixels).resize(target, Image.Resampling.BICUBIC), np.float32)
    assert np.abs(ours.clip(0, 255) - theirs).max() <= 1.5


def test_a_still_shows_its_reference() -> None:
    blob = reference()
    made, shared = record([background(bytes([0, 0, 40]))], [blob])
    decoder = BatchDecoder()
    shown = decoder.decode([decoder.prepare(made, shared)])[0]
    assert torch.equal((shown * 255).round().to(torch.uint8), unpack_picture(blob).pixels(CPU))


def test_motion_moves_the_reference() -> None:
    blob = reference()
    rows, columns = -(-H // 16), -(-W // 16)
    field = np.broadcast_to(np.array([8, -4], np.int32), (rows, columns, 2))  # 2 pixels to the right, 1 up
    payload = pack(Latents(0, 40, (0,) * 6, field.copy(), None), LayerKind.BACKGROUND)
    made, shared = record([background(payload)], [blob])
    decoder = BatchDecoder()
    shown = decoder.decode([decoder.prepare(made, shared)])[0]
    still = unpack_picture(blob).pixels(CPU).float() / 255
    assert torch.allclose(shown[:, 1:, : W - 2], still[:, : H - 1, 2:], atol=1e-4)


def prepared(seed: int = 0) -> tuple[BatchDecoder, object]:
    payload = pack(latents(LayerKind.BACKGROUND, seed=seed), LayerKind.BACKGROUND)
    region = (11, 5, 21, 17)
    thing = Layer(
        LayerKind.OBJECT, Latent.number, 1, region, 1.0, pack(latents(LayerKind.OBJECT, 21, 17, seed), LayerKind.OBJECT)
    )
    made, shared = record([background(payload), thing], [reference()])
    decoder = BatchDecoder()
    return decoder, decoder.prepare(made, shared)


def test_a_part_is_the_same_as_that_part_of_the_whole() -> None:
    _, image = prepared()
    data = image.layers[0].data
    whole = decode([data], [Window(0, 0, W, H)], CPU)[0]
    for window in (Window(0, 0, 5, 7), Window(19, 11, 20, 16), Window(W - 1, H - 1, 1, 1)):
        part = decode([data], [window], CPU)[0]
        expected = whole[:, window.y : window.y + window.h, window.x : window.x + window.w]
        assert (part - expected).abs().max() < 1 / 255


@pytest.mark.parametrize("size", [(W // 2, H // 2), (2 * W, 2 * H), (31, 47)])
def test_other_sizes_are_the_coded_one_resampled(size: tuple[int, int]) -> None:
    decoder, image = prepared()
    coded = decoder.decode([image])[0].permute(1, 2, 0).numpy()
    shown = decoder.decode([image], size)[0].permute(1, 2, 0).numpy()
    expected = Image.fromarray((coded * 255).round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
    inside = np.abs(shown - np.asarray(expected) / 255)
    assert np.median(inside) < 2 / 255  # the object's own edge is sharp: it is resampled apart


def test_a_batch_decodes_as_its_members_do() -> None:
    decoder, first = prepared(0)
    _, second = prepared(5)
    both = decoder.decode([first, second, first])
    for i, image in enumerate((first, second, first)):
        assert torch.allclose(both[i], decoder.decode([image])[0], atol=1e-5)


def test_threads_agree_within_one_grey_level() -> None:
    decoder, image = prepared()
    before = torch.get_num_threads()
    try:
        shown = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            shown.append(decoder.decode([image]))
    finally:
        torch.set_num_threads(before)
    assert (shown[0] - shown[1]).abs().max() <= 1 / 255


def test_one_reference_is_decoded_once_for_all_records() -> None:
    blob = reference()
    made, shared = record([background(bytes([0, 0, 40]))], [blob])
    decoder = BatchDecoder()
    images = [decoder.prepare(made, shared) for _ in range(3)]
    assert len({id(image.layers[0].data.picture) for image in images}) == 1


def many_references(count: int) -> list[tuple[ImageRecord, dict]]:
    payload = pack(latents(LayerKind.BACKGROUND), LayerKind.BACKGROUND)
    return [record([background(payload)], [reference(texture(seed=i))]) for i in range(count)]


@pytest.mark.parametrize("budget", [0, 2 * 3 * W * H])
def test_decoded_references_stay_within_their_budget(budget: int) -> None:
    small, large = BatchDecoder(shared_bytes=budget), BatchDecoder()
    made = many_references(5)
    expected = large.decode([large.prepare(*one) for one in made])
    images = [small.prepare(*one) for one in made]
    assert small.shared_bytes_held == 0  # nothing is decoded before it is shown
    for _ in range(2):
        for at in range(5):
            assert torch.equal(small.decode([images[at]])[0], expected[at])
            assert small.shared_bytes_held == budget if at > 1 else small.shared_bytes_held <= budget
    assert large.shared_bytes_held == 5 * 3 * W * H


def test_threads_prepare_and_decode_at_once() -> None:
    made, decoder, start = many_references(3), BatchDecoder(shared_bytes=3 * W * H), threading.Barrier(4)
    expected = [BatchDecoder() for _ in made]
    wanted = [one.decode([one.prepare(*m)])[0] for one, m in zip(expected, made, strict=True)]

    def work(seed: int) -> bool:
        start.wait(timeout=30)
        order = np.random.default_rng(seed).integers(0, 3, 30)
        return all(torch.equal(decoder.decode([decoder.prepare(*made[i])])[0], wanted[i]) for i in order)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(work, range(4)))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_few_samples_show_what_all_of_them_do(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(1, 70)), data.draw(st.integers(1, 50))
    block = data.draw(st.sampled_from([8, 16]))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**31)))
    choices = np.array([[0, 0], [8, -4], [3, 5], [-9, 2], [4000, -8000]])[: data.draw(st.integers(1, 5))]
    rows, columns = -(-height // block), -(-width // block)
    field = choices[rng.integers(0, len(choices), (rows, columns))].astype(np.int32)
    origin = data.draw(st.integers(0, 5)), data.draw(st.integers(0, 5))
    picture = torch.from_numpy(rng.integers(0, 256, (3, height + 5, width + 5), np.uint8))
    x, y = data.draw(st.integers(0, width - 1)), data.draw(st.integers(0, height - 1))
    window = Window(x, y, data.draw(st.integers(1, width - x)), data.draw(st.integers(1, height - y)))
    few = predict_one(picture, origin, field, block, window)
    every = predict(
        picture[None].float(), torch.tensor([origin]), field_tensor([field], CPU), block,
        torch.tensor([[x, y]]), (window.w, window.h),
    )[0]  # fmt: skip
    assert few.shape == every.shape
    assert (few - every).abs().max() < 0.05  # of 255: positions are float32


def test_a_still_is_its_reference_to_the_bit() -> None:
    blob = reference()
    made, shared = record([background(bytes([0, 0, 40]))], [blob])
    decoder = BatchDecoder()
    shown = decoder.decode([decoder.prepare(made, shared)])[0]
    assert torch.equal(shown, unpack_picture(blob).pixels(CPU).float().div(255))


def test_windows_of_a_batch_are_each_its_own() -> None:
    _, image = prepared()
    windows = [Window(0, 0, 5, 7), Window(19, 11, 20, 16), Window(W - 1, H - 1, 1, 1), Window(0, 0, W, H)]
    for layer, sizes in ((image.layers[0], windows), (image.layers[1], [Window(3, 2, 9, 8), Window(0, 0, 21, 17)])):
        together = decode_together([layer.data] * len(sizes), sizes, CPU)
        for window, shown in zip(sizes, together, strict=True):
            assert shown.shape[1:] == (window.h, window.w)
            assert (shown - decode([layer.data], [window], CPU)[0]).abs().max() < 1e-3


def test_no_window_of_a_call_is_grown_to_more_than_twice_its_area() -> None:
    _, image = prepared()
    rng = np.random.default_rng(0)
    places = [Placement(0, 0, w, h, (0.0, 0.0, w / W, h / H)) for w, h in rng.integers(1, 40, (50, 2)).tolist()]
    samplings = [Samplings(CPU).of(place, (W, H)) for place in places]
    found = calls([image.layers[0].data] * 50, samplings, torch.device("cuda"))
    assert sorted(i for call in found for i in call) == list(range(50))
    for call in found:
        windows = [samplings[i].window for i in call]
        area = max(w.w for w in windows) * max(w.h for w in windows)
        assert all(area <= 2 * w.w * w.h for w in windows)


def test_weights_of_equal_placements_are_made_once() -> None:
    made = Samplings(CPU)
    first, second = (made.of(Placement(0, 0, 20, 11, WHOLE), (W, H)) for _ in range(2))
    assert first.across is second.across
    assert first.down is second.down


def test_a_missing_reference_is_named() -> None:
    made, shared = record([background(bytes([0, 0, 40]))], [reference()])
    with pytest.raises(FormatError, match="fetch it first"):
        BatchDecoder().prepare(made, {})
    without, _ = record([background(bytes([1, 0, 40]))], [reference()])
    with pytest.raises(FormatError, match="shared blob 1"):
        BatchDecoder().prepare(without, shared)


def test_a_reference_of_another_size_is_refused() -> None:
    made, shared = record([background(bytes([0, 0, 40]))], [reference(texture(W + 2, H))])
    with pytest.raises(FormatError, match="has a reference of"):
        BatchDecoder().prepare(made, shared)


def test_many_objects_share_one_reference_uncopied() -> None:
    things = [
        Layer(LayerKind.OBJECT, Latent.number, 1, (i % 50, i // 50, 2, 2), 1.0, bytes([0, 0, 40])) for i in range(500)
    ]
    made, shared = record([background(bytes([0, 0, 40])), *things], [reference()])
    decoder = BatchDecoder()
    shown = decoder.decode([decoder.prepare(made, shared)])[0]
    assert torch.equal((shown * 255).round().to(torch.uint8), unpack_picture(reference()).pixels(CPU))


def test_an_object_s_reference_is_of_the_frame_s_size() -> None:
    large, small = reference(texture(W + 8, H)), reference()
    thing = Layer(LayerKind.OBJECT, Latent.number, 1, (0, 0, 8, 8), 1.0, bytes([1, 0, 40]))
    made, shared = record([background(bytes([0, 0, 40])), thing], [small, large])
    with pytest.raises(FormatError, match="has a reference of"):
        BatchDecoder().prepare(made, shared)


def test_shared_state_of_another_kind_is_refused() -> None:
    made, shared = record([background(bytes([0, 0, 40]))], [b"weights of something else"])
    with pytest.raises(FormatError, match="another codec"):
        BatchDecoder().prepare(made, shared)


@pytest.mark.parametrize(
    ("blob", "message"),
    [
        (reference()[:3] + b"\x02" + reference()[4:], "version 2"),
        (reference()[:-1], "announces"),
        (reference() + b"\0", "follow it"),
        (reference()[:8] + b"\x05" + reference()[9:], "ends early"),
        (pack_picture(0, H, b"x", []), "0x40 pixels"),
        (pack_picture(W, H, avif2.encode_payload(texture(8, 8), 50, full_chroma=False), []), "its region"),
        (pack_picture(W, H, b"nonsense", []), "no unit"),
        (pack_picture(W, H, avif2.encode_payload(texture(), 50, full_chroma=False), [((W, 0, 4, 4), b"x")]), "crop 1"),
    ],
)
def test_hostile_references_are_refused(blob: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack_picture(blob)


@pytest.mark.parametrize(
    ("payload", "message"),
    [
        (b"", "0 bytes"),
        (bytes([0, 4, 40]), "flags 4"),
        (bytes([0, 0, 81]), "step number 81"),
        (bytes([0, 0, 40, 1]), "follow it"),
        (bytes([0, 3, 40]), "too short"),
        (bytes([0, 3, 40, 255, 255]), "announces"),
    ],
)
def test_hostile_payloads_are_refused(payload: bytes, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        unpack(payload, LayerKind.BACKGROUND, W, H)


@settings(max_examples=150, deadline=None)
@given(st.data())
def test_a_flipped_bit_is_refused_or_decodes_to_a_picture(data: st.DataObject) -> None:
    whole = coded(LayerKind.BACKGROUND)
    at = data.draw(st.integers(0, 8 * len(whole) - 1))
    bad = bytearray(whole)
    bad[at // 8] ^= 1 << at % 8
    layer = background(bytes(bad))
    shared = SharedBlobs.of({b"d" * 32: reference()})
    try:
        made = Latent().prepare(layer, shared)
    except FormatError:
        return
    shown = Latent().render([made], [LayerKind.BACKGROUND], [Placement(0, 0, W, H, WHOLE)], CPU)[0]
    assert torch.isfinite(shown).all()
    assert 0 <= float(shown.min()) <= float(shown.max()) <= 1
