"""zstd: skipped where it does not pay, and never more memory than announced."""

from __future__ import annotations

import tracemalloc

import msgspec
import pytest
import torch
import zstandard
from codec_tensors import DTYPES, same_bits, tensors
from hypothesis import given
from hypothesis import strategies as st

from fogline.common.codecs import Chain, CodedStage
from fogline.common.errors import FormatError

CHAIN = Chain.parse("zstd")


def stage(size: int) -> CodedStage:
    return CodedStage(2, 1, msgspec.msgpack.encode([size]))


@given(tensors(DTYPES), st.integers(1, 3000))
def test_every_bit_comes_back(tensor: torch.Tensor, repeats: int) -> None:
    tensor = tensor.reshape(-1).repeat(repeats)[:50_000]
    coded = CHAIN.encoder().encode(tensor)
    back = CHAIN.decoder().decode(coded.stages, coded.payload, coded.dtype, coded.shape)
    assert same_bits(back, tensor)
    assert memoryview(coded.payload).nbytes <= tensor.nbytes


def test_noise_is_sent_as_it_is_and_without_a_copy() -> None:
    noise = torch.randint(0, 256, (1 << 20,), dtype=torch.uint8)
    coded = CHAIN.encoder().encode(noise)
    assert coded.stages == ()
    assert coded.borrowed


def test_a_repetitive_beginning_does_not_deceive_the_sample() -> None:
    mixed = torch.cat([torch.zeros(1 << 16, dtype=torch.uint8), torch.randint(0, 256, (1 << 20,), dtype=torch.uint8)])
    assert CHAIN.encoder().encode(mixed).stages == ()


def test_sparse_activations_shrink() -> None:
    tensor = torch.randn(64, 512).relu() * (torch.rand(64, 512) > 0.7)
    coded = CHAIN.encoder().encode(tensor)
    assert [s.number for s in coded.stages] == [2]
    assert memoryview(coded.payload).nbytes < tensor.nbytes / 3


def test_a_bomb_is_refused_before_it_is_inflated() -> None:
    size = 1 << 29
    chunks = zstandard.ZstdCompressor().compressobj(size=size)
    bomb = b"".join([*(chunks.compress(bytes(1 << 20)) for _ in range(size >> 20)), chunks.flush()])
    tracemalloc.start()
    try:
        for announced in (size, 4000):
            with pytest.raises(FormatError):
                CHAIN.decoder().decode((stage(announced),), bomb, torch.float32, (1000,))
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def test_a_frame_that_does_not_tell_its_size_is_refused() -> None:
    silent = zstandard.ZstdCompressor(write_content_size=False).compress(bytes(4000))
    with pytest.raises(FormatError, match="announced"):
        CHAIN.decoder().decode((stage(4000),), silent, torch.float32, (1000,))


@pytest.mark.parametrize("announced", [0, -1, 3999, 4001, 1 << 62])
def test_a_forged_size_is_refused(announced: int) -> None:
    frame = zstandard.ZstdCompressor().compress(bytes(4000))
    with pytest.raises(FormatError):
        CHAIN.decoder().decode((stage(announced),), frame, torch.float32, (1000,))


@pytest.mark.parametrize("cut", [0, 1, 4, 10, -1])
def test_a_truncated_or_prolonged_frame_is_refused(cut: int) -> None:
    frame = zstandard.ZstdCompressor().compress(torch.randn(10).repeat(100).numpy().tobytes())
    for bad in (frame[:cut], frame + b"x", frame + frame):
        with pytest.raises(FormatError):
            CHAIN.decoder().decode((stage(4000),), bad, torch.float32, (1000,))
