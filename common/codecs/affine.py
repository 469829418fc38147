"""`int8` and `int4`: every element as one of 256 or 16 evenly spaced values between the least and the largest.

The ends of the range travel in the tensor's own dtype, and both sides compute the grid from them. So a range need not
hold 0, a constant tensor comes back exactly, and no zero point is rounded to a byte: the traps of usual quantisers.
Where the range holds 0, the grid does too (it is one step shorter): most gradients are nearly 0, and would otherwise
all be moved by the same amount.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal, cast

import torch
from msgspec import Meta

from fogline.common.codecs.base import Buffer, Options, Packer, Params, Spec, register
from fogline.common.codecs.raw import elements, tensor_of
from fogline.common.errors import FormatError, InputError

_MIN_GROUP = 8  # elements; a channel of fewer would pay more for its range than it saves
_FLOAT32_STEPS = 1e-36, 1e36  # steps with which float32 neither over- nor underflows
_HUGE, _SMALL = 1e300, 1e-280  # half widths of ranges that float64 has to be helped with


class AffineOptions(Options, frozen=True):
    """`per`: one range for the tensor, or one for each index of dimension `axis`."""

    per: Literal["tensor", "channel"] = "tensor"
    axis: Annotated[int, Meta(ge=0, le=7)] = 1


class _Affine(Packer):
    """What both widths have in common."""

    bits: ClassVar[int]
    rank = 30
    options_type: ClassVar[type[Options]] = AffineOptions

    def __init__(self, options: Options) -> None:
        """Options are `AffineOptions`."""
        self._options = cast(AffineOptions, options)

    def _table_shape(self, spec: Spec) -> tuple[int, ...]:
        """The shape of a range's end, which broadcasts over a tensor of `spec`."""
        axis = self._options.axis
        per_channel = self._options.per == "channel" and axis < len(spec.shape)
        if not per_channel or spec.numel < _MIN_GROUP * spec.shape[axis]:
            return (1,) * len(spec.shape)
        return tuple(n if i == axis else 1 for i, n in enumerate(spec.shape))

    def _sizes(self, spec: Spec) -> tuple[int, int]:
        """Bytes of both ends of the ranges, and of the elements."""
        table = Spec(spec.dtype, self._table_shape(spec))
        return 2 * table.nbytes, -(-spec.numel * self.bits // 8)

    def max_bytes(self, spec: Spec) -> int:
        """Exactly the ranges and the elements."""
        return sum(self._sizes(spec))

    def pack(self, tensor: torch.Tensor) -> tuple[Buffer, Params]:
        """Ranges' lower ends, upper ends, then the elements. Raises InputError for NaN and infinity."""
        table = self._table_shape(Spec.of(tensor))
        dims = [i for i, n in enumerate(table) if n == 1]
        low, high = tensor.amin(dims, keepdim=True), tensor.amax(dims, keepdim=True)
        if not (torch.isfinite(low).all() and torch.isfinite(high).all()):
            raise InputError(
                f"{self.name}: a tensor {tuple(tensor.shape)} with NaN or infinity has no range; look for where it "
                "diverged, or send it as raw, fp16 or bf16"
            )
        levels = (1 << self.bits) - 1
        grid = _Grid(low, high, levels)
        codes = (tensor.to(grid.wide) * grid.scale).sub_(grid.base).div_(grid.step).add_(grid.zero)
        quantised = codes.round_().clamp_(0, levels).to(torch.uint8).reshape(-1)
        ends = torch.cat([low.reshape(-1), high.reshape(-1)])
        return bytes(elements(ends)) + bytes(elements(self._squeeze(quantised))), Params()

    def unpack(self, data: memoryview, params: Params, spec: Spec) -> torch.Tensor:
        """The evenly spaced values. Raises FormatError for sizes or ranges that can't be."""
        ends_bytes, code_bytes = self._sizes(spec)
        if data.nbytes != ends_bytes + code_bytes:
            raise FormatError(f"{self.name}: {data.nbytes} bytes for {spec.shape}, which takes {self.max_bytes(spec)}")
        table = self._table_shape(spec)
        low, high = tensor_of(data[:ends_bytes], Spec(spec.dtype, (2, *table)))
        if not (torch.isfinite(low).all() and torch.isfinite(high).all() and (low <= high).all()):
            raise FormatError(f"{self.name}: a range of {spec.shape} is not finite or upside down")
        codes = tensor_of(data[ends_bytes:], Spec(torch.uint8, (code_bytes,)))
        codes = self._widen(codes, spec.numel).reshape(spec.shape)
        grid = _Grid(low, high, (1 << self.bits) - 1)
        values = codes.to(grid.wide).sub_(grid.zero).mul_(grid.step).add_(grid.base)
        if grid.wide == torch.float64 or spec.dtype == torch.float16:  # half a step beyond the range may be infinite
            values = torch.minimum(torch.maximum(values / grid.scale, low.to(grid.wide)), high.to(grid.wide))
        return values.to(spec.dtype)

    def _squeeze(self, codes: torch.Tensor) -> torch.Tensor:
        return codes

    def _widen(self, codes: torch.Tensor, numel: int) -> torch.Tensor:
        return codes


class _Grid:
    """value · scale = base + (code - zero) · step, in the dtype `wide`; one of each for every range.

    `scale` is a power of two that keeps float64's whole range, and its subnormals, computable; 1 in float32.
    """

    def __init__(self, low: torch.Tensor, high: torch.Tensor, levels: int) -> None:
        first, last = low.double(), high.double()
        half = last / 2 - first / 2
        scale = torch.ones_like(half)
        scale[half > _HUGE] = 0.25
        scale[(half > 0) & (half < _SMALL)] = 2.0**600
        first, last = first * scale, last * scale
        holds = (first < 0) & (last >= 0)
        step = (last - first) / torch.where(holds, levels - 1, levels)
        zero = torch.where(holds & (step > 0), torch.ceil(-first / step), 0.0)
        least, most = _FLOAT32_STEPS
        narrow = low.dtype != torch.float64 and bool(((half == 0) | ((step > least) & (step < most))).all())
        self.wide = torch.float32 if narrow else torch.float64
        self.scale: torch.Tensor | float = 1.0 if narrow else scale
        self.base = low.float() if narrow else first
        self.base = torch.where(holds, 0.0, self.base)
        self.step = torch.where(step > 0, step, 1.0).to(self.wide)
        self.zero = zero.to(self.wide)


@register
class Int8(_Affine):
    """256 values."""

    number = 5
    name = "int8"
    bits = 8
    training_safe = True
    summary = "256 even steps between the least and the largest value, per tensor or channel; refuses NaN and infinity"
    ratio = "4"
    error = "1/508 of the range"


@register
class Int4(_Affine):
    """16 values, two in a byte."""

    number = 6
    name = "int4"
    bits = 4
    training_safe = False
    summary = "16 even steps, two elements in a byte"
    ratio = "8"
    error = "1/28 of the range"

    def _squeeze(self, codes: torch.Tensor) -> torch.Tensor:
        if codes.numel() % 2:
            codes = torch.cat([codes, codes.new_zeros(1)])
        return codes[0::2] | (codes[1::2] << 4)

    def _widen(self, codes: torch.Tensor, numel: int) -> torch.Tensor:
        both = torch.stack([codes & 15, codes >> 4], dim=1).reshape(-1)
        return both[:numel]
