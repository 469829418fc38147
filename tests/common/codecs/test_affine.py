"""int8 and int4: the error within half a step, and the quantisers' traps."""

from __future__ import annotations

import pytest
import torch
from codec_tensors import tensors
from hypothesis import given, settings
from hypothesis import strategies as st

from fogline.common.codecs import Chain
from fogline.common.errors import ConfigError, FormatError, InputError

CODECS = ["int8", "int4", "int8(per=channel)", "int4(per=channel, axis=0)"]


def round_trip(spec: str, tensor: torch.Tensor) -> torch.Tensor:
    chain = Chain.parse(spec)
    coded = chain.encoder().encode(tensor)
    assert memoryview(coded.payload).nbytes <= 2 * tensor.nbytes + 64
    return chain.decoder().decode(coded.stages, bytes(coded.payload), coded.dtype, coded.shape)


@given(st.sampled_from(CODECS), tensors(finite=True))
@settings(max_examples=400)
def test_error_is_within_half_a_step(spec: str, tensor: torch.Tensor) -> None:
    back = round_trip(spec, tensor)
    assert back.dtype == tensor.dtype
    assert back.shape == tensor.shape
    if not tensor.numel():
        return
    x, y = tensor.double(), back.double()
    assert torch.isfinite(y).all()
    info = torch.finfo(tensor.dtype)
    eps = max(info.eps, torch.finfo(torch.float32).eps) if tensor.dtype != torch.float64 else info.eps
    width = x.max() / 2 - x.min() / 2
    levels = 254 if "8" in spec else 14
    bound = width / levels * (1 + 1e-9) + 4 * eps * x.abs().max() + 2 * info.tiny * info.eps
    assert bool(((x / 2 - y / 2).abs() * 2 <= bound).all())


@pytest.mark.parametrize("spec", CODECS)
@pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-45, 3.4e38, 5e-324])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_constant_tensors_are_exact(spec: str, value: float, dtype: torch.dtype) -> None:
    tensor = torch.full((3, 5, 7), value, dtype=dtype)
    assert torch.equal(round_trip(spec, tensor), tensor)


@pytest.mark.parametrize("spec", CODECS)
def test_a_range_without_zero(spec: str) -> None:
    tensor = torch.linspace(5, 6, 1000).reshape(10, 100)
    back = round_trip(spec, tensor)
    assert float(back.min()) == 5.0
    assert float(back.max()) == pytest.approx(6.0, abs=1e-6)


@pytest.mark.parametrize("spec", ["int8", "int4"])
@pytest.mark.parametrize("scale", [1.0, 1e-30, 1e-42, 1e30])
def test_zeros_stay_zeros_where_the_range_holds_them(spec: str, scale: float) -> None:
    for tensor in (torch.randn(4, 33).relu(), -torch.randn(4, 33).relu(), torch.randn(4, 33).clamp(-1.7, 0.3)):
        tensor = tensor * scale
        tensor[:, 3] = 0
        assert bool((round_trip(spec, tensor)[tensor == 0] == 0).all())


def test_values_near_zero_are_not_all_moved() -> None:
    """Gradients are mostly near 0 with a few large ones; a grid without 0 would add more error than they hold."""
    tensor = torch.randn(1000) * 1e-3
    tensor[0], tensor[1] = -0.7, 1.0
    assert float((round_trip("int4", tensor) - tensor).abs()[2:].max()) <= float(tensor[2:].abs().max())


@pytest.mark.parametrize("spec", ["int8", "int4"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_the_whole_range_of_a_dtype(spec: str, dtype: torch.dtype) -> None:
    limit = torch.finfo(dtype).max
    tensor = torch.tensor([limit, -limit, 0, limit / 2], dtype=dtype)
    back = round_trip(spec, tensor)
    assert torch.isfinite(back).all()
    assert bool(((back.double() / limit - tensor.double() / limit).abs() <= 1 / 15 + 0.01).all())


@pytest.mark.parametrize("spec", CODECS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_nan_and_infinity_are_refused(spec: str, bad: float) -> None:
    tensor = torch.zeros(2, 16)
    tensor[1, 3] = bad
    with pytest.raises(InputError, match="NaN or infinity"):
        round_trip(spec, tensor)


@pytest.mark.parametrize("numel", [1, 2, 3, 255])
def test_odd_counts_of_int4(numel: int) -> None:
    tensor = torch.arange(numel).remainder(16).float()
    chain = Chain.parse("int4")
    coded = chain.encoder().encode(tensor)
    assert memoryview(coded.payload).nbytes == 8 + (numel + 1) // 2
    back = chain.decoder().decode(coded.stages, coded.payload, coded.dtype, coded.shape)
    assert torch.allclose(back, tensor, atol=0.51 if numel > 16 else 0.34)


def test_channels_have_their_own_ranges() -> None:
    tensor = torch.randn(8, 4, 6, 6) * torch.tensor([1e-3, 1.0, 1e3, 0.0]).reshape(1, 4, 1, 1)
    by_channel = (round_trip("int8(per=channel)", tensor) - tensor).abs().amax(dim=(0, 2, 3))
    assert float(by_channel[0]) < 1e-4
    assert float(by_channel[3]) == 0.0
    assert float((round_trip("int8", tensor) - tensor).abs().amax(dim=(0, 2, 3))[0]) > 1e-4


def test_a_channel_that_is_missing_is_refused() -> None:
    with pytest.raises(ConfigError, match="options"):
        Chain.parse("int8(per=row)")
    with pytest.raises(ConfigError, match="options"):
        Chain.parse("int8(axis=-1)")


@pytest.mark.parametrize(("low", "high"), [(1.0, 0.0), (float("nan"), 1.0), (0.0, float("inf"))])
def test_a_forged_range_is_refused(low: float, high: float) -> None:
    chain = Chain.parse("int8")
    coded = chain.encoder().encode(torch.rand(4))
    payload = torch.tensor([low, high]).numpy().tobytes() + bytes(coded.payload)[8:]
    with pytest.raises(FormatError, match="range"):
        chain.decoder().decode(coded.stages, payload, coded.dtype, coded.shape)
