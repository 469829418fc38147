"""The decoding half of `nerv`: payloads, networks, frames in any order and size, and what is hostile about them."""

import hashlib
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.errors import FormatError
from fogline.common.images import resample
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.nerv import Nerv
from fogline.common.images.nerv_payload import (
    CONTEXTS,
    MAX_LATENT,
    Frame,
    Network,
    Shape,
    pack_frame,
    pack_network,
    unpack_frame,
    unpack_network,
)
from fogline.common.images.record import ImageRecord, Layer, LayerKind
from fogline.common.images.static_rans import StreamTooLongError
from fogline.common.images.views import View

SHAPE = Shape(40, 24, 5, 3, 2, 4)


def network(shape: Shape = SHAPE, seed: int = 0) -> Network:
    rng = np.random.default_rng(seed)
    tensors = tuple(np.rint(rng.normal(0, 9, size)).clip(-128, 127).astype(np.int8) for size in shape.tensors)
    tables = tuple(tuple(int(t) for t in rng.integers(0, 256, CONTEXTS)) for _ in range(shape.latents))
    return Network(shape, (150, 150, 150, 150, 160), tensors, tables)


def frame(index: int = 0, shape: Shape = SHAPE, spread: float = 2.0) -> Frame:
    values = np.random.default_rng(index).laplace(0, spread, shape.latent_size)
    return Frame(0, index, np.rint(values).clip(-MAX_LATENT, MAX_LATENT).astype(np.int16))


def record(payload: bytes, blob: bytes, size: tuple[int, int] = (SHAPE.width, SHAPE.height)) -> ImageRecord:
    layer = Layer(LayerKind.BACKGROUND, Nerv.number, Nerv.version, (0, 0, *size), 1.0, payload)
    return ImageRecord(bytes(32), 0, "", size, size, (), (layer,), (hashlib.sha256(blob).digest(),))


def images(count: int, shape: Shape = SHAPE) -> tuple[list[ImageRecord], dict[bytes, bytes]]:
    made = network(shape)
    blob = pack_network(made)
    size = shape.width, shape.height
    records = [record(pack_frame(frame(i, shape), made.tables), blob, size) for i in range(count)]
    return records, {hashlib.sha256(blob).digest(): blob}


@pytest.mark.parametrize("size", [(40, 24), (1, 1), (300, 1), (17, 33), (16, 16)])
@pytest.mark.parametrize(("latents", "grid"), [(3, 2), (0, 2), (3, 0), (16, 1)])
def test_round_trips(size: tuple[int, int], latents: int, grid: int) -> None:
    shape = Shape(*size, 5, latents, grid, 3)
    made = network(shape)
    blob = pack_network(made)
    found = unpack_network(blob)
    assert (found.shape, found.steps, found.tables) == (made.shape, made.steps, made.tables)
    for one, other in zip(found.tensors, made.tensors, strict=True):
        assert np.array_equal(one, other)
    sent = frame(4, shape, 20.0)
    back = unpack_frame(pack_frame(sent, made.tables), found)
    assert (back.blob, back.index) == (0, 4)
    assert np.array_equal(back.latents, sent.latents)
    decoder = BatchDecoder()
    one = record(pack_frame(sent, made.tables), blob, size)
    shown = decoder.decode([decoder.prepare(one, {hashlib.sha256(blob).digest(): blob})])
    assert shown.shape == (1, 3, size[1], size[0])


def test_frames_decode_alone_and_in_any_order() -> None:
    records, shared = images(5)
    decoder = BatchDecoder()
    prepared = [decoder.prepare(one, shared) for one in records]
    together = decoder.decode(prepared)
    assert float((together[0] - together[3]).abs().max()) > 0.02  # frames differ
    backwards = decoder.decode(prepared[::-1]).flip(0)
    alone = torch.cat([decoder.decode([one]) for one in prepared])
    assert float((together - backwards).abs().max()) < 1 / 255
    assert float((together - alone).abs().max()) < 1 / 255


def test_frames_of_one_record_set_share_a_parsed_network() -> None:
    records, shared = images(2)
    decoder = BatchDecoder()
    first, second = (decoder.prepare(one, shared).layers[0].data for one in records)
    assert first.shared is second.shared


def test_other_sizes_and_views_show_the_same_frame() -> None:
    records, shared = images(1)
    decoder = BatchDecoder()
    prepared = [decoder.prepare(records[0], shared)]
    whole = decoder.decode(prepared)
    part = decoder.decode(prepared, (16, 8), views=[View(8, 4, 16, 8)])
    assert torch.allclose(part[0], whole[0, :, 4:12, 8:24], atol=1e-6)
    half = decoder.decode(prepared, (20, 12))
    (_, down), (_, across) = resample.weights(12, 0, 24, 24), resample.weights(20, 0, 40, 40)
    expected = torch.from_numpy(down) @ whole @ torch.from_numpy(across.T)
    assert torch.allclose(half, expected.clamp(0, 1), atol=1e-5)
    assert decoder.decode(prepared, (100, 77)).shape == (1, 3, 77, 100)


def test_thread_counts_agree_within_a_grey_level() -> None:
    records, shared = images(3, Shape(160, 96, 5, 3, 2, 16))
    decoder = BatchDecoder()
    prepared = [decoder.prepare(one, shared) for one in records]
    threads = torch.get_num_threads()
    try:
        found = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            found.append(decoder.decode(prepared))
    finally:
        torch.set_num_threads(threads)
    for other in found[1:]:
        assert float((found[0] - other).abs().max()) <= 1 / 255


def test_missing_network_is_named() -> None:
    records, shared = images(1)
    (digest,) = shared
    with pytest.raises(FormatError, match=f"needs blob {digest.hex()[:12]}"):
        BatchDecoder().prepare(records[0], {})


def test_a_layer_that_does_not_fit_its_record_is_refused() -> None:
    records, shared = images(1)
    (layer,) = records[0].layers
    decoder = BatchDecoder()
    with pytest.raises(FormatError, match="has a network for 40x24"):
        decoder.prepare(replace(records[0], size=(41, 24), layers=(replace(layer, region=(0, 0, 41, 24)),)), shared)
    with pytest.raises(FormatError, match="only backgrounds"):
        decoder.prepare(replace(records[0], layers=(replace(layer, kind=LayerKind.OBJECT),)), shared)
    with pytest.raises(FormatError, match="shared blob 7, and it names 1"):
        decoder.prepare(replace(records[0], layers=(replace(layer, payload=b"\x07" + layer.payload[1:]),)), shared)
    with pytest.raises(FormatError, match="shared blob 0, and it names 0"):
        decoder.prepare(replace(records[0], shared=()), shared)


def test_a_frame_beyond_the_run_is_refused() -> None:
    made = network()
    payload = pack_frame(frame(), made.tables)
    for index in (5, 65535):
        with pytest.raises(FormatError, match=f"frame {index} of a network of 5"):
            unpack_frame(payload[:1] + struct.pack("<H", index) + payload[3:], made)


def test_a_latent_beyond_its_range_is_refused() -> None:
    made = network(replace(SHAPE, latents=1))
    values = np.zeros(made.shape.latent_size, np.int16)
    values[0, 0, 0] = MAX_LATENT + 1
    with pytest.raises(FormatError, match=f"latent of {MAX_LATENT + 1}"):
        unpack_frame(pack_frame(Frame(0, 0, values), made.tables), made)


def sealed(head: bytes) -> bytes:
    return head + struct.pack("<I", zlib.crc32(head))


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ((0, 24, 5, 3, 2, 4), "0x24 pixels"),
        ((40, 20_000, 5, 3, 2, 4), "40x20000 pixels"),
        ((40, 24, 0, 3, 2, 4), "0 frames"),
        ((40, 24, 5000, 3, 2, 4), "5000 frames"),
        ((40, 24, 5, 17, 2, 4), "17 latent"),
        ((40, 24, 5, 3, 33, 4), "33 grid"),
        ((40, 24, 5, 3, 2, 0), "0 last channels"),
        ((40, 24, 5, 3, 2, 65), "65 last channels"),
        ((16_384, 16_384, 5, 3, 32, 4), "parameters; the most"),
        ((16_384, 16_384, 5, 3, 0, 64), "activations; the most"),
        ((40, 24, 5, 3, 2, 4), "ends before its tables"),
    ],
)
def test_absurd_networks_are_refused(fields: tuple[int, ...], said: str) -> None:
    with pytest.raises(FormatError, match=said):
        unpack_network(sealed(b"FGN\x01" + struct.pack("<HHHBBB", *fields) + bytes(8)))


def test_networks_of_other_versions_codecs_steps_and_tables_are_refused() -> None:
    blob = pack_network(network())
    with pytest.raises(FormatError, match="version 9"):
        unpack_network(b"FGN\x09" + blob[4:])
    with pytest.raises(FormatError, match="another codec"):
        unpack_network(b"FGR\x01" + blob[4:])
    with pytest.raises(FormatError, match="checksum"):
        unpack_network(blob[:-1] + bytes([blob[-1] ^ 1]))
    body = blob[:-4]
    with pytest.raises(FormatError, match="step number 255"):
        unpack_network(sealed(body[:13] + b"\xff" + body[14:]))
    with pytest.raises(FormatError, match="table 255 is unknown"):
        unpack_network(sealed(body[:14] + b"\xff" + body[15:]))
    with pytest.raises(FormatError, match="can't hold"):
        unpack_network(sealed(body[: 13 + 10 + 9 + 6]))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_networks_are_refused(data: st.DataObject) -> None:
    blob = bytearray(pack_network(network(Shape(20, 20, 3, 2, 1, 2))))
    if data.draw(st.booleans()):
        blob = blob[: data.draw(st.integers(0, len(blob) - 1))]
    else:
        bit = data.draw(st.integers(0, 8 * len(blob) - 1))
        blob[bit // 8] ^= 1 << bit % 8
    with pytest.raises(FormatError):
        unpack_network(bytes(blob))


@settings(max_examples=80, deadline=None)
@given(st.data())
def test_damaged_networks_with_a_matching_checksum_never_crash(data: st.DataObject) -> None:
    body = bytearray(pack_network(network(Shape(20, 20, 3, 2, 1, 2)))[:-4])
    for _ in range(data.draw(st.integers(1, 4))):
        body[data.draw(st.integers(0, len(body) - 1))] = data.draw(st.integers(0, 255))
    blob = sealed(bytes(body[: data.draw(st.integers(0, len(body)))]))
    try:
        found = unpack_network(blob)
    except FormatError:
        return
    assert tuple(len(tensor) for tensor in found.tensors) == found.shape.tensors


@settings(max_examples=120, deadline=None)
@given(st.data())
def test_damaged_frames_never_crash(data: st.DataObject) -> None:
    made = network()
    payload = bytearray(pack_frame(frame(2), made.tables))
    cut = data.draw(st.booleans())
    if cut:
        payload = payload[: data.draw(st.integers(0, len(payload) - 1))]
    else:
        for _ in range(data.draw(st.integers(1, 3))):
            payload[data.draw(st.integers(0, len(payload) - 1))] = data.draw(st.integers(0, 255))
    try:
        found = unpack_frame(bytes(payload), made)
    except FormatError:
        return
    assert not cut
    assert found.latents.shape == SHAPE.latent_size
    assert int(np.abs(found.latents).max()) <= MAX_LATENT


def test_a_bit_flip_in_a_stored_record_is_refused() -> None:
    from fogline.common.images.container import from_bytes, to_bytes

    records, _ = images(1)
    data = bytearray(to_bytes(records[0]))
    for position in range(0, len(data), 3):
        damaged = bytes(data[:position]) + bytes([data[position] ^ 4]) + bytes(data[position + 1 :])
        with pytest.raises(FormatError):
            from_bytes(damaged)


def test_a_frame_of_too_many_symbols_is_said_to_the_encoder() -> None:
    shape = Shape(2048, 2048, 1, 16, 0, 1)
    tables = ((250,) * CONTEXTS,) * 16
    values = np.random.default_rng(0).integers(-MAX_LATENT, MAX_LATENT, shape.latent_size).astype(np.int16)
    with pytest.raises(StreamTooLongError):
        pack_frame(Frame(0, 0, values), tables)
