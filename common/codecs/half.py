"""`fp16` and `bf16`: elements of two bytes.

float16 reaches from 6e-8 to 65504, which gradients leave on both sides. So `fp16` scales a whole tensor by a power of
two, which is exact, where its largest magnitude m is outside [1, 65504). The error of x stays within 2^-11 |x|,
or 2^-25 m where that is more. NaN and infinity stay what they are.
"""

from __future__ import annotations

import math
from typing import Annotated, Any, ClassVar

import torch
from msgspec import Meta

from fogline.common.codecs.base import FLOATS, Buffer, Params, Spec, Transform, register
from fogline.common.errors import InputError

_LARGEST = 65504.0


class ScaleParams(Params, frozen=True):
    """`shift`: the elements were multiplied by 2^shift."""

    shift: Annotated[int, Meta(ge=-1100, le=1100)] = 0


def _scaled(tensor: torch.Tensor, shift: int) -> torch.Tensor:
    """`tensor` · 2^shift, in steps that a float32 can hold."""
    while shift:
        step = max(-100, min(100, shift))
        tensor = tensor * 2.0**step
        shift -= step
    return tensor


def _largest(tensor: torch.Tensor) -> float:
    """The largest finite magnitude; 0 where there is none."""
    low, high = (float(v) for v in torch.aminmax(tensor))
    if not (math.isfinite(low) and math.isfinite(high)):
        finite = tensor[torch.isfinite(tensor)]
        if not finite.numel():
            return 0.0
        low, high = (float(v) for v in torch.aminmax(finite))
    return max(-low, high)


def _finite_stays_finite(wide: torch.Tensor, coded: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """`wide` in `dtype`; what was rounded up beyond its range becomes its largest value, not infinity."""
    limit = torch.finfo(dtype).max
    return torch.where(torch.isinf(coded), wide, wide.clamp(-limit, limit)).to(dtype)


@register
class Fp16(Transform):
    """float16, scaled by a power of two where that is needed."""

    number = 3
    name = "fp16"
    rank = 20
    training_safe = True
    params_type = ScaleParams
    summary = "IEEE half precision, the whole tensor scaled by a power of two where its range needs it"
    ratio = "2"
    error = "2^-11 of the value, or 2^-25 of the largest"

    def encode(self, tensor: torch.Tensor, training: bool) -> tuple[torch.Tensor, Params, Buffer]:
        """To float16, scaled so that the largest magnitude lies in [1, 65504]."""
        if tensor.dtype == torch.float16:
            return tensor, ScaleParams(), b""
        largest, shift = _largest(tensor), 0
        if largest and not 1 <= largest < _LARGEST:
            shift = 15 - math.frexp(largest)[1]  # then the largest lies in [2^14, 2^15)
            wide = torch.float64 if tensor.dtype == torch.float64 else torch.float32
            tensor = _scaled(tensor.to(wide), shift)
        return tensor.to(torch.float16), ScaleParams(shift), b""

    def coded(self, spec: Spec, params: Any) -> Spec:
        """The same shape in float16."""
        return Spec(torch.float16, spec.shape)

    def decode(self, tensor: torch.Tensor, params: ScaleParams, side: memoryview, spec: Spec) -> torch.Tensor:
        """Back to the dtype of `spec`."""
        if params.shift and spec.dtype != torch.float16:
            wide = torch.float64 if spec.dtype == torch.float64 else torch.float32
            scaled = _scaled(tensor.to(wide), -params.shift)
            up = params.shift < 0  # then rounding may have left the range
            return _finite_stays_finite(scaled, tensor, spec.dtype) if up else scaled.to(spec.dtype)
        return tensor.to(spec.dtype)


@register
class Bf16(Transform):
    """bfloat16: the range of float32 with eight bits of precision."""

    number = 4
    name = "bf16"
    rank = 20
    training_safe = True
    dtypes: ClassVar[frozenset[torch.dtype]] = FLOATS
    summary = "bfloat16: float32's range with 8 bits of precision"
    ratio = "2"
    error = "2^-9 of the value"

    def encode(self, tensor: torch.Tensor, training: bool) -> tuple[torch.Tensor, Params, Buffer]:
        """To bfloat16. Raises InputError where a finite value would become infinite."""
        coded = tensor.to(torch.bfloat16)
        if not torch.isfinite(coded).all() and (torch.isinf(coded) & torch.isfinite(tensor)).any():
            raise InputError(
                f"bf16: a value of {_largest(tensor):g} is beyond bfloat16's 3.39e38; send it as fp16 or raw"
            )
        return coded, Params(), b""

    def coded(self, spec: Spec, params: Any) -> Spec:
        """The same shape in bfloat16."""
        return Spec(torch.bfloat16, spec.shape)

    def decode(self, tensor: torch.Tensor, params: Params, side: memoryview, spec: Spec) -> torch.Tensor:
        """Back to the dtype of `spec`."""
        if spec.dtype == torch.float16:
            return _finite_stays_finite(tensor.to(torch.float32), tensor, spec.dtype)
        return tensor.to(spec.dtype)
