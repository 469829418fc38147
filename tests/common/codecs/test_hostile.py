"""Every chain: any tensor goes through, and whatever a peer sends instead is a FormatError in bounded memory."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
import torch
from codec_tensors import DTYPES, same_bits, tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.codecs import Chain, CodedStage, Encoded, stages
from fogline.common.errors import FormatError, InputError

CHAINS = [
    "raw",
    "zstd",
    "fp16",
    "bf16+zstd",
    "int8",
    "int8(per=channel)+zstd",
    "int4",
    "topk",
    "topk(share=0.3)+fp16",
    "topk+int8+zstd",
    "errbound",
    "errbound(relative=true)+zstd",
    "c3sl",
    "c3sl(ratio=2, center=true)+fp16",
    "c3sl(keys=unitary)+int8",
    "c3sl+topk+fp16+zstd",
]


def coded_sample(chain: Chain) -> Encoded:
    """About 4 KiB that every stage applies to, zstd included."""
    generator = torch.Generator().manual_seed(1)
    tensor = torch.randn(8, 4, 32, generator=generator).relu().repeat(1, 1, 4)
    return chain.encoder().encode(tensor)


def test_every_codec_is_in_a_chain_here_or_has_its_own_test() -> None:
    seen = {name for spec in CHAINS for name in stages() if name in spec}
    assert seen | {"jpeg-input"} == set(stages())


def test_numbers_are_fixed_forever() -> None:
    assert {cls.number: name for name, cls in stages().items()} == {
        1: "raw",
        2: "zstd",
        3: "fp16",
        4: "bf16",
        5: "int8",
        6: "int4",
        7: "topk",
        8: "errbound",
        9: "c3sl",
        10: "jpeg-input",
    }


@given(st.sampled_from(CHAINS), tensors(DTYPES))
@settings(max_examples=600, deadline=None)
def test_any_tensor_comes_back_in_kind_or_is_refused(spec: str, tensor: torch.Tensor) -> None:
    chain = Chain.parse(spec)
    assert Chain.parse(chain.spec) == chain
    before = tensor.clone()
    try:
        coded = chain.encoder().encode(tensor)
    except InputError:
        assert tensor.dtype.is_floating_point
        return
    assert memoryview(coded.payload).nbytes <= 2 * tensor.nbytes + (64 << 10)
    back = chain.decoder().decode(coded.stages, bytes(coded.payload), coded.dtype, coded.shape)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    assert same_bits(tensor, before)
    if not (tensor.numel() and tensor.dtype.is_floating_point):
        assert same_bits(back, tensor)


@pytest.mark.parametrize("spec", CHAINS)
def test_a_batch_of_none_goes_through(spec: str) -> None:
    chain = Chain.parse(spec)
    coded = chain.encoder().encode(torch.empty(0, 3, 8))
    assert (coded.stages, bytes(coded.payload)) == ((), b"")
    assert chain.decoder().decode(coded.stages, coded.payload, coded.dtype, coded.shape).shape == (0, 3, 8)


@pytest.mark.parametrize("spec", CHAINS)
def test_coding_is_deterministic(spec: str) -> None:
    first, second = coded_sample(Chain.parse(spec)), coded_sample(Chain.parse(spec))
    assert first.stages == second.stages
    assert bytes(first.payload) == bytes(second.payload)


@pytest.mark.parametrize("spec", CHAINS)
def test_every_truncation_is_refused(spec: str) -> None:
    chain = Chain.parse(spec)
    coded = coded_sample(chain)
    data = bytes(coded.payload)
    for size in {0, 1, len(data) // 2, len(data) - 1}:
        with pytest.raises(FormatError):
            chain.decoder().decode(coded.stages, data[:size], coded.dtype, coded.shape)
    with pytest.raises(FormatError):
        chain.decoder().decode(coded.stages, data + b"\x00", coded.dtype, coded.shape)


@given(st.sampled_from(CHAINS), st.data())
@settings(max_examples=600, deadline=None)
def test_flipped_bits_give_a_tensor_or_a_format_error(spec: str, data: st.DataObject) -> None:
    chain = Chain.parse(spec)
    coded = coded_sample(chain)
    payload = bytearray(coded.payload)
    for _ in range(data.draw(st.integers(1, 4))):
        payload[data.draw(st.integers(0, len(payload) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    _decode_safely(chain, coded.stages, payload, coded)


@given(st.sampled_from(CHAINS), st.data())
@settings(max_examples=600, deadline=None)
def test_forged_parameters_give_a_tensor_or_a_format_error(spec: str, data: st.DataObject) -> None:
    chain = Chain.parse(spec)
    coded = coded_sample(chain)
    numbers = st.integers(-(1 << 63), (1 << 64) - 1) | st.sampled_from([0, 1, 2, 1 << 31, 1 << 40])
    values = st.none() | numbers | st.floats() | st.binary(max_size=9) | st.text(max_size=3) | st.booleans()
    forged = list(coded.stages)
    if not forged:
        return
    i = data.draw(st.integers(0, len(forged) - 1))
    held = msgspec.msgpack.decode(forged[i].params)
    for _ in range(data.draw(st.integers(1, 2))):
        at = data.draw(st.integers(0, len(held)))
        held[at : at + 1] = [data.draw(values)]
    forged[i] = CodedStage(forged[i].number, forged[i].version, msgspec.msgpack.encode(held))
    _decode_safely(chain, tuple(forged), bytearray(coded.payload), coded)


@given(st.sampled_from(CHAINS), st.lists(st.integers(0, 70), max_size=4), st.sampled_from(DTYPES))
@settings(max_examples=400, deadline=None)
def test_another_shape_or_dtype_gives_a_tensor_or_a_format_error(
    spec: str, shape: list[int], dtype: torch.dtype
) -> None:
    chain = Chain.parse(spec)
    coded = coded_sample(chain)
    other = Encoded(coded.stages, coded.payload, dtype, tuple(shape))
    _decode_safely(chain, coded.stages, bytearray(coded.payload), other)


@pytest.mark.parametrize("spec", CHAINS)
def test_a_huge_shape_allocates_nothing_when_the_payload_is_small(spec: str) -> None:
    """A topk or errbound tensor may be mostly zeros: their own bound is the bitmap or index bits, which do not fit."""
    chain = Chain.parse(spec)
    coded = coded_sample(chain)
    tracemalloc.start()
    try:
        with pytest.raises(FormatError):
            chain.decoder().decode(coded.stages, bytes(coded.payload), torch.float32, (1 << 10, 1 << 18))
        assert tracemalloc.get_traced_memory()[1] < 96 << 20
    finally:
        tracemalloc.stop()


def _decode_safely(chain: Chain, found: tuple[CodedStage, ...], payload: bytearray, expected: Encoded) -> None:
    try:
        back = chain.decoder().decode(found, payload, expected.dtype, expected.shape)
    except FormatError:
        return
    assert back.dtype == expected.dtype
    assert back.shape == expected.shape
