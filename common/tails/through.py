"""Where autograd passes through another host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from fogline.common.errors import InputError


class Remote(Protocol):
    """What a remote tail does for it."""

    def run_kept(  # noqa: D102
        self, tensors: Sequence[Tensor], cut: int, wanted: Sequence[bool]
    ) -> tuple[int, bytes, list[Tensor]]: ...

    def run_backward(  # noqa: D102
        self, forward: int, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]: ...

    def run_loss(  # noqa: D102
        self,
        tensors: Sequence[Tensor],
        cut: int,
        loss: str,
        options: Mapping[str, float],
        labels: Tensor,
        wanted: Sequence[bool] | None,
    ) -> tuple[Tensor, list[Tensor | None]]: ...

    def abandon_graph(self, forward: int) -> None: ...  # noqa: D102


class _Call:
    """One forward; tells the host when its graph is dropped without a backward."""

    def __init__(self, remote: Remote, cut: int) -> None:
        self.remote, self.cut = remote, cut
        self.seq, self.structure = 0, b""
        self.like: list[Tensor] = []  # shapes, dtypes and devices of the activations
        self.wanted: list[bool] = []

    def __del__(self) -> None:
        if self.seq:
            self.remote.abandon_graph(self.seq)


class Through(torch.autograd.Function):
    """The tail's forward there, and its backward when the gradients come."""

    Call = _Call

    @staticmethod
    def forward(ctx: Any, call: _Call, anchor: Tensor, *tensors: Tensor) -> tuple[Tensor, ...]:
        """`anchor` wants a gradient, of which there is none."""
        call.wanted = list(ctx.needs_input_grad[2:])
        call.seq, call.structure, found = call.remote.run_kept(tensors, call.cut, call.wanted)
        call.like = [_shape_of(t) for t in tensors]
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t in found if not t.is_floating_point()))
        return tuple(found)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Any, ...]:
        """One round trip, or none to wait for where the head wants no gradient."""
        call: _Call = ctx.call
        seq, call.seq = call.seq, 0
        if not seq:
            raise InputError("backward a second time: the graph at the host is gone after the first; run forward again")
        return (None, None, *call.remote.run_backward(seq, grads, call.like, call.wanted))


class _LossCall(_Call):
    """One forward with its loss."""

    def __init__(self, remote: Remote, cut: int, loss: str, options: Mapping[str, float], labels: Tensor) -> None:
        super().__init__(remote, cut)
        self.loss, self.options, self.labels = loss, options, labels


class LossThrough(torch.autograd.Function):
    """Forward, loss and backward in one round trip; backward here hands on what came."""

    Call = _LossCall

    @staticmethod
    def forward(ctx: Any, call: _LossCall, anchor: Tensor, *tensors: Tensor) -> Tensor:
        """The loss."""
        wanted = list(ctx.needs_input_grad[2:])
        value, ctx.gradients = call.remote.run_loss(tensors, call.cut, call.loss, call.options, call.labels, wanted)
        return value

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        """Raises InputError where the loss was multiplied: the host has gone backward without that factor."""
        if float(grad) != 1.0:
            raise InputError(
                f"the loss was multiplied by {float(grad)} after remote.loss; pass scale={float(grad)} to remote.loss "
                "instead"
            )
        gradients, ctx.gradients = ctx.gradients, None
        if gradients is None:
            raise InputError("backward a second time over remote.loss; call remote.loss again")
        return (None, None, *gradients)


def _shape_of(tensor: Tensor) -> Tensor:
    """What is known of a tensor without its values: no memory is kept for it."""
    return torch.empty(1, dtype=tensor.dtype, device=tensor.device).expand(tensor.shape) if tensor.numel() else tensor
