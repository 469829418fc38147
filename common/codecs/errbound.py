"""`errbound`: |x - x̂| ≤ ε for every finite value, exact zeros kept, NaN and infinity verbatim or refused.

Values are rounded to a grid of 2ε. What lies within ε of 0 becomes 0 and is one bit in a bitmap; the rest are small
integers. After coding, every value is decoded and compared; what breaks the bound by a rounding of floating point,
or does not fit the integers, is sent verbatim. `errbound+zstd` is the usual form: zstd codes bitmap and integers by
frequency.

Payload: bitmap of values other than 0, first element in the highest bit (absent where all are); the codes, zigzag, byte
planes from the lowest; escaped values in the tensor's dtype. Code 0 marks an escaped value.

With `sigma_ratio` the receiver sets the bound every `window` steps (see `adaptive`), from what its
`Decoder.observe(gradient_norm=…, momentum=…)` is told.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal, cast

import numpy as np
import torch
from msgspec import Meta
from numpy.typing import NDArray

from fogline.common.codecs.adaptive import bound
from fogline.common.codecs.base import Buffer, Options, Packer, Params, Spec, register
from fogline.common.codecs.raw import elements, tensor_of
from fogline.common.errors import ConfigError, FormatError, InputError

_FLOAT32_BOUNDS = 1e-30, 1e30  # with these, float32 neither under- nor overflows
_EXACT = {torch.float32: 1 << 22, torch.float64: 1 << 30}  # largest multiple of the grid that is used
_WIDTHS = (1, 2, 4)
_Codes = NDArray[np.uint32]


class ErrboundOptions(Options, frozen=True):
    """`epsilon`: the bound, absolute or of the largest finite magnitude (`relative`); the first one when adaptive.

    `sigma_ratio`: noise in weight gradients ÷ mean |momentum| that the receiver aims at; 0: ε stays as it is.
    """

    epsilon: Annotated[float, Meta(gt=0, le=1e300)] = 0.01
    relative: bool = False
    nonfinite: Literal["escape", "refuse"] = "escape"
    sigma_ratio: Annotated[float, Meta(ge=0, le=10)] = 0.0
    window: Annotated[int, Meta(ge=1, le=100_000)] = 50
    epsilon_min: Annotated[float, Meta(gt=0)] = 1e-6
    epsilon_max: Annotated[float, Meta(gt=0, le=1e300)] = 1.0


class ErrboundParams(Params, frozen=True):
    """`width`: bytes of a code, 0: the tensor is raw; `nonzeros`: codes; `escapes`: values sent verbatim."""

    epsilon: Annotated[float, Meta(gt=0, le=1e300)]
    width: Literal[0, 1, 2, 4] = 0
    nonzeros: Annotated[int, Meta(ge=0, le=1 << 40)] = 0
    escapes: Annotated[int, Meta(ge=0, le=1 << 40)] = 0


@register
class Errbound(Packer):
    """A strict bound on the error of every value."""

    number = 8
    name = "errbound"
    rank = 30
    training_safe = True
    options_type: ClassVar[type[Options]] = ErrboundOptions
    params_type: ClassVar[type[Params]] = ErrboundParams
    summary = (
        "a grid of 2ε, zeros in a bitmap; ε fixed, relative, or set by the receiver while training (COMET); add +zstd"
    )
    ratio = "4 to 30, by ε and zeros"
    error = "at most ε"

    def __init__(self, options: Options) -> None:
        """Options are `ErrboundOptions`. Raises ConfigError for bounds that exclude each other."""
        self._options = cast(ErrboundOptions, options)
        own = self._options
        if own.sigma_ratio and not own.epsilon_min <= own.epsilon <= own.epsilon_max:
            raise ConfigError(
                f"codec errbound: epsilon {own.epsilon:g} is outside epsilon_min {own.epsilon_min:g} to epsilon_max "
                f"{own.epsilon_max:g}; widen them"
            )
        if own.sigma_ratio and own.relative:
            raise ConfigError("codec errbound: sigma_ratio sets an absolute bound; leave relative out")
        self.epsilon = own.epsilon  # of the next tensor, when not relative
        self._density = 1.0  # of the tensor that was decoded last
        self._sums = np.zeros(4)  # observed steps, gradient norms, densities, momenta of this window
        self._pending = 0.0  # a bound that the sender has not been told yet

    def pack(self, tensor: torch.Tensor) -> tuple[Buffer, Params]:
        """Bitmap, codes, escaped values. Raises InputError for NaN and infinity where they are to be refused."""
        if self._options.nonfinite == "refuse" and not torch.isfinite(tensor).all():
            raise InputError(
                f"errbound: a tensor {tuple(tensor.shape)} with NaN or infinity; look for where it diverged, or let "
                "them through with nonfinite=escape"
            )
        flat = tensor.reshape(-1)
        epsilon = self._bound_for(flat)
        wide, grid = _grid(epsilon, flat.dtype)
        keep = ~(flat.abs().to(wide) <= _below(epsilon, wide))  # NaN is kept
        values = flat[keep]
        codes = _codes(values, grid, wide, _below(epsilon, wide))
        width, total = _narrowest(codes, flat, len(values))
        if total >= tensor.nbytes:
            return elements(tensor), ErrboundParams(epsilon)
        codes[codes >= 1 << (8 * width)] = 0
        escaped = values[torch.from_numpy(codes == 0)]
        parts: list[Buffer] = []
        if len(values) < len(flat):
            parts.append(np.packbits(keep.numpy()).tobytes())
        planes = codes.astype("<u4").view(np.uint8).reshape(-1, 4)[:, :width]
        parts.append(np.ascontiguousarray(planes.T).tobytes())
        if len(escaped):
            parts.append(elements(escaped.contiguous()))
        return b"".join(parts), ErrboundParams(epsilon, cast(Literal[1, 2, 4], width), len(values), len(escaped))

    def _bound_for(self, flat: torch.Tensor) -> float:
        """The bound for a tensor: the session's, or relative to its largest finite magnitude."""
        if not self._options.relative:
            return self.epsilon
        largest = float(torch.where(torch.isfinite(flat), flat.abs(), 0).max())
        relative = self._options.epsilon * largest
        return relative if 0 < relative <= 1e300 else self._options.epsilon if not largest else _TINY

    def max_bytes(self, spec: Spec) -> int:
        """Never more than raw."""
        return spec.nbytes

    def unpack(self, data: memoryview, params: ErrboundParams, spec: Spec) -> torch.Tensor:
        """Every value within ε of what was packed. Raises FormatError for counts that don't fit, or a looser bound."""
        self._check_bound(params.epsilon)
        if params.width == 0:
            tensor = tensor_of(data, spec)
            self._density = float((tensor != 0).double().mean())
            return tensor
        nonzeros, escapes, width = params.nonzeros, params.escapes, params.width
        bitmap = 0 if nonzeros == spec.numel else -(-spec.numel // 8)
        if nonzeros > spec.numel or escapes > nonzeros:
            raise FormatError(f"errbound: {nonzeros} values and {escapes} escapes in a tensor {spec.shape}")
        if data.nbytes != bitmap + nonzeros * width + escapes * spec.dtype.itemsize:
            raise FormatError(f"errbound: {data.nbytes} bytes do not hold {nonzeros} values and {escapes} escapes")
        planes = np.frombuffer(data, np.uint8, nonzeros * width, bitmap).reshape(width, nonzeros)
        bytes_ = np.zeros((nonzeros, 4), np.uint8)
        bytes_[:, :width] = planes.T
        codes = bytes_.view("<u4").reshape(-1)
        values = _values(codes, params.epsilon, spec.dtype)
        verbatim = codes == 0
        if int(verbatim.sum()) != escapes:
            raise FormatError(f"errbound: {int(verbatim.sum())} codes are marked as escaped, {escapes} values follow")
        if escapes:
            tail = data[data.nbytes - escapes * spec.dtype.itemsize :]
            values[torch.from_numpy(verbatim)] = tensor_of(tail, Spec(spec.dtype, (escapes,)))
        self._density = nonzeros / spec.numel
        if not bitmap:
            return values.reshape(spec.shape)
        keep = np.unpackbits(np.frombuffer(data, np.uint8, bitmap), count=spec.numel).view(bool)
        if int(keep.sum()) != nonzeros:
            raise FormatError(f"errbound: the bitmap marks {int(keep.sum())} values, {nonzeros} were announced")
        flat = torch.zeros(spec.numel, dtype=spec.dtype)
        flat[torch.from_numpy(keep)] = values
        return flat.reshape(spec.shape)

    def _check_bound(self, epsilon: float) -> None:
        own = self._options
        if not math.isfinite(epsilon):
            raise FormatError(f"errbound: a bound of {epsilon}")
        agreed = own.epsilon_max if own.sigma_ratio else own.epsilon
        if not own.relative and epsilon > agreed:
            raise FormatError(f"errbound: the peer coded to within {epsilon:g}; agreed: {agreed:g}")

    def observe(self, **measured: float) -> None:
        """`gradient_norm` and `momentum` of a step (see `adaptive`); without both, or with nonsense, it is left out."""
        norm, momentum = measured.get("gradient_norm", 0.0), measured.get("momentum", 0.0)
        usable = all(math.isfinite(v) and v > 0 for v in (norm, momentum)) and self._density > 0
        if not self._options.sigma_ratio or not usable:
            return
        self._sums += (1, norm, self._density, momentum)
        if self._sums[0] >= self._options.window:
            _, norm, density, momentum = (float(v) for v in self._sums / self._sums[0])
            wanted = bound(self._options.sigma_ratio * momentum, norm, density)
            self._pending = min(max(wanted, self._options.epsilon_min), self._options.epsilon_max)
            self._sums[:] = 0

    def feedback(self) -> dict[str, float]:
        """{"epsilon": …} once after each window."""
        pending, self._pending = self._pending, 0.0
        if not pending:
            return {}
        self.epsilon = pending
        return {"epsilon": pending}

    def apply(self, feedback: Mapping[str, float]) -> None:
        """Use the receiver's bound from now on. Raises FormatError for one outside the agreed limits."""
        own = self._options
        if not feedback:
            return
        epsilon = feedback.get("epsilon")
        if set(feedback) != {"epsilon"} or not isinstance(epsilon, int | float) or not own.sigma_ratio:
            raise FormatError(f"errbound: feedback {sorted(feedback)[:4]}; only an adaptive bound takes epsilon")
        if not own.epsilon_min <= epsilon <= own.epsilon_max:
            raise FormatError(f"errbound: a bound of {epsilon:g}; agreed: {own.epsilon_min:g} to {own.epsilon_max:g}")
        self.epsilon = float(epsilon)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The bound and what was observed in this window; nothing where ε is fixed."""
        if not self._options.sigma_ratio:
            return {}
        return {
            "adaptive": torch.tensor([self.epsilon, self._pending, self._density, *self._sums], dtype=torch.float64)
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state_dict()`."""
        if not state and not self._options.sigma_ratio:
            return
        held = state.get("adaptive")
        if set(state) != {"adaptive"} or held is None or held.shape != (7,) or not self._options.sigma_ratio:
            raise FormatError(f"errbound: a state of {sorted(state)[:4]}; it is not of an adaptive bound")
        values = [float(v) for v in held]
        own = self._options
        if not all(math.isfinite(v) and v >= 0 for v in values) or not own.epsilon_min <= values[0] <= own.epsilon_max:
            raise FormatError(f"errbound: a state with a bound of {values[0]:g}; it is damaged or of other options")
        self.epsilon, self._pending, self._density = values[:3]
        self._sums = np.array(values[3:])


_TINY = 5e-324  # where a relative bound underflows: nothing is within it, so that all is sent as it is


def _grid(epsilon: float, dtype: torch.dtype) -> tuple[torch.dtype, float]:
    """The dtype in which both ends compute, and the grid's step, exact in it and at most 2ε."""
    least, most = _FLOAT32_BOUNDS
    if dtype == torch.float64 or not least < epsilon < most:
        return torch.float64, 2 * epsilon
    step = np.float32(2 * epsilon)
    return torch.float32, float(step if float(step) <= 2 * epsilon else np.nextafter(step, np.float32(0)))


def _below(epsilon: float, wide: torch.dtype) -> float:
    """What a difference rounded to `wide` may be, so that the true one is at most ε."""
    if wide == torch.float64:
        return float(np.nextafter(epsilon, 0.0))
    near = np.float32(epsilon)
    near = np.nextafter(near, np.float32(0)) if float(near) > epsilon else near
    return float(np.nextafter(near, np.float32(0)))


def _codes(values: torch.Tensor, grid: float, wide: torch.dtype, within: float) -> _Codes:
    """Zigzag codes of the nearest multiples of the grid; 0 where the decoded value would not be within the bound."""
    exact = values.to(wide)
    multiples = (exact / grid).round_()
    fits = multiples.abs() <= _EXACT[wide]  # not for NaN
    decoded = (multiples * grid).to(values.dtype).to(wide)
    fits &= (exact - decoded).abs_() <= within
    whole = torch.where(fits, multiples, 0).to(torch.int64)
    return (
        torch.where(whole > 0, 2 * whole, -2 * whole - 1).where(whole != 0, torch.tensor(0)).numpy().astype(np.uint32)
    )


def _values(codes: _Codes, epsilon: float, dtype: torch.dtype) -> torch.Tensor:
    """What codes stand for; 0 for code 0."""
    wide, grid = _grid(epsilon, dtype)
    whole = codes.astype(np.int64)
    whole = np.where(whole & 1, -((whole + 1) >> 1), whole >> 1)
    limit = torch.finfo(dtype).max
    return (torch.from_numpy(whole).to(wide) * grid).clamp_(-limit, limit).to(dtype)


def _narrowest(codes: _Codes, flat: torch.Tensor, nonzeros: int) -> tuple[int, int]:
    """The width of codes that needs the fewest bytes, escapes included, and how many."""
    bitmap = -(-len(flat) // 8) if nonzeros < len(flat) else 0
    sizes = {}
    for width in _WIDTHS:
        escapes = int((codes == 0).sum() + ((codes >> (8 * width)) > 0).sum() if width < 4 else (codes == 0).sum())
        sizes[width] = bitmap + nonzeros * width + escapes * flat.dtype.itemsize
    best = min(sizes, key=lambda width: sizes[width])
    return best, sizes[best]
