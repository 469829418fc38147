"""Tensors of every kind for property tests."""

from __future__ import annotations

import torch
from hypothesis import strategies as st

FLOATS = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
DTYPES = (*FLOATS, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64, torch.bool)


def shapes(max_side: int = 5) -> st.SearchStrategy[tuple[int, ...]]:
    """Zero to four dimensions, each of zero elements or more."""
    return st.lists(st.integers(0, max_side), max_size=4).map(tuple)


def _special(dtype: torch.dtype) -> list[float]:
    info = torch.finfo(dtype)
    return [0.0, -0.0, info.max, -info.max, info.tiny, info.tiny * info.eps, -info.tiny * info.eps, 1.0, -1.0]


@st.composite
def tensors(
    draw: st.DrawFn, dtypes: tuple[torch.dtype, ...] = FLOATS, *, finite: bool = False, empty: bool = True
) -> torch.Tensor:
    """A tensor of any shape: smooth, wide, constant, sparse, with special values, perhaps not contiguous."""
    dtype = draw(st.sampled_from(dtypes))
    shape = draw(shapes().filter(lambda s: empty or 0 not in s))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    if not dtype.is_floating_point:
        tensor = (noise * 50).clamp(0 if dtype == torch.uint8 else -100, 100).to(dtype)
    else:
        kind = draw(st.sampled_from(["normal", "relu", "constant", "wide", "offset", "tiny"]))
        if kind == "relu":
            noise = noise.relu()
        elif kind == "constant":
            noise = torch.full_like(noise, draw(st.floats(-100, 100)))
        elif kind == "wide":
            noise = noise * 10.0 ** (noise.roll(1) * 10 if noise.numel() else noise)
        elif kind == "offset":
            noise = noise * 1e-3 + 5.0
        elif kind == "tiny":
            noise = noise * float(torch.finfo(dtype).tiny)
        limit = torch.finfo(dtype).max
        tensor = noise.clamp(-limit, limit).to(dtype)
        values = _special(dtype) + ([] if finite else [float("nan"), float("inf"), float("-inf")])
        if tensor.numel() and draw(st.booleans()):
            flat = tensor.reshape(-1)
            for value in draw(st.lists(st.sampled_from(values), max_size=4)):
                flat[draw(st.integers(0, flat.numel() - 1))] = value
            tensor = flat.reshape(shape)
    if tensor.dim() > 1 and draw(st.booleans()):
        tensor = tensor.transpose(0, 1)
    return tensor


def same_bits(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether dtype, shape and every bit agree, NaN's included."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if not a.numel():
        return True
    return torch.equal(a.contiguous().reshape(-1).view(torch.uint8), b.contiguous().reshape(-1).view(torch.uint8))
