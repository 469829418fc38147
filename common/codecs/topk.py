"""`topk`: the values of largest magnitude and where they are; what was left out is added to the next tensor.

The residual (error feedback: Stich et al., Sparsified SGD with memory, 2018) belongs to the session and is what the
receiver did not get, losses of later stages included: the sum of all that was decoded plus the residual is the sum of
all that was given. A smaller batch uses the residual of its first rows. Feedback mixes the samples of one step into the
next; on activations that ruins a network, which never sees such sums at inference: set feedback=false there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, cast

import torch
from msgspec import Meta

from fogline.common.codecs import elias_fano
from fogline.common.codecs.base import Buffer, Options, Params, Spec, Transform, register
from fogline.common.errors import FormatError, InputError


class TopkOptions(Options, frozen=True):
    """`share` of the elements that are sent, at least one; `feedback`: keep the rest for the next tensor."""

    share: Annotated[float, Meta(gt=0, le=1)] = 0.1
    feedback: bool = True


class TopkParams(Params, frozen=True):
    """`count`: values sent."""

    count: Annotated[int, Meta(ge=1, le=1 << 40)]


@register
class Topk(Transform):
    """The largest values."""

    number = 7
    name = "topk"
    rank = 10
    training_safe = False
    remembers = True
    options_type: ClassVar[type[Options]] = TopkOptions
    params_type: ClassVar[type[Params]] = TopkParams
    summary = "the share of values with the largest magnitudes; the rest is added to the next tensor (error feedback)"
    ratio = "about 1/share ÷ 1.2"
    error = "all that is left out, until later"

    def __init__(self, options: Options) -> None:
        """Options are `TopkOptions`."""
        self._options = cast(TopkOptions, options)
        self._residual: torch.Tensor | None = None
        self._given: torch.Tensor | None = None  # with the residual added, between `encode` and `settle`

    def encode(self, tensor: torch.Tensor, training: bool) -> tuple[torch.Tensor, Params, Buffer]:
        """To the largest values, flat, in order of their places. Raises InputError for NaN, infinity, other shapes."""
        keep = training and self._options.feedback
        given = self._with_residual(tensor) if keep else tensor
        flat = given.reshape(-1)
        if not torch.isfinite(flat).all():
            raise InputError(
                f"topk: a tensor {tuple(tensor.shape)} with NaN or infinity has no largest values; look for where it "
                "diverged, or send it raw"
            )
        count = min(max(1, round(self._options.share * len(flat))), len(flat))
        places = torch.topk(flat.abs(), count, sorted=False).indices.sort().values
        side = elias_fano.encode(places.numpy(), len(flat))
        self._given = given if keep else None
        return flat[places], TopkParams(count), side

    def _with_residual(self, tensor: torch.Tensor) -> torch.Tensor:
        if self._residual is None:
            return tensor
        if self._residual.dim() != tensor.dim() or self._residual.shape[1:] != tensor.shape[1:]:
            raise InputError(
                f"topk: a tensor {tuple(tensor.shape)} after one of {tuple(self._residual.shape)}; error feedback "
                "needs the same shape but for the batch. Set topk(feedback=false) for shapes that vary"
            )
        if not tensor.dim():
            return tensor + self._residual.to(tensor.dtype)
        rows = min(len(tensor), len(self._residual))
        held = self._residual[:rows].to(tensor.dtype)
        return torch.cat([tensor[:rows] + held, tensor[rows:]])

    def settle(self, decoded: torch.Tensor) -> None:
        """Keep what the receiver did not get."""
        if self._given is None:
            return
        left = self._given - decoded
        if self._residual is not None and left.dim() and len(self._residual) > len(left):
            left = torch.cat([left, self._residual[len(left) :].to(left.dtype)])
        self._residual, self._given = left, None

    def coded(self, spec: Spec, params: TopkParams) -> Spec:
        """The values, flat."""
        if params.count > spec.numel:
            raise FormatError(f"topk: {params.count} values of a tensor {spec.shape}")
        return Spec(spec.dtype, (params.count,))

    def side_bytes(self, spec: Spec, params: TopkParams) -> int:
        """Bytes of the indices."""
        return elias_fano.coded_bytes(params.count, spec.numel)

    def decode(self, tensor: torch.Tensor, params: TopkParams, side: memoryview, spec: Spec) -> torch.Tensor:
        """The values at their places, zeros elsewhere."""
        places = elias_fano.decode(side, params.count, spec.numel)
        flat = torch.zeros(spec.numel, dtype=spec.dtype)
        flat[torch.from_numpy(places)] = tensor
        return flat.reshape(spec.shape)

    def state_dict(self) -> dict[str, torch.Tensor]:
        """The residual."""
        return {} if self._residual is None else {"residual": self._residual.clone()}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state_dict()`."""
        held = state.get("residual")
        if set(state) - {"residual"} or (held is not None and not held.is_floating_point()):
            raise FormatError(f"topk: a state of {sorted(state)[:4]}; expected a residual")
        self._residual = None if held is None else held.clone()
