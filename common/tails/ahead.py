"""Micro-batches of one step, several of which are under way at the host, so that a link's delay is waited for once.

Forwards are sent before the answers of earlier ones came, and gradients before those of earlier ones did; both ends see
them in the order of the micro-batches, so that sums and running means are those of a loop, to the bit. How far each
runs ahead is a number and no matter of time, so that codecs with a memory see one order, too.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from fogline.common.errors import InputError
from fogline.common.rpc.tensor_client import Answered

if TYPE_CHECKING:
    from fogline.common.tails.operations import Operations

Head = Callable[..., Any] | None
Batches = Iterable[tuple[Any, Any]]


@dataclass
class _Micro:
    """A micro-batch that is under way."""

    tensors: list[Tensor]  # what the head returned, with its graph
    labels: Any
    sent: Future[Answered]  # the forward, then the backward
    loss: Tensor | None = None


def through_losses(
    remote: Operations, head: Head, batches: Batches, loss: str, options: Mapping[str, float], cut: int, ahead: int
) -> Iterator[Tensor]:
    """Labels travel: one operation for a micro-batch."""
    under_way: deque[_Micro] = deque()

    def finish() -> Tensor:
        micro = under_way.popleft()
        value, gradients = remote.end_loss(micro.sent, micro.tensors)
        _backward(micro.tensors, gradients)
        return value

    for inputs, labels in batches:
        tensors = _run_head(remote, head, inputs, cut)
        if not isinstance(labels, Tensor):
            raise InputError(f"labels of a {type(labels).__name__}; a loss by name takes one tensor of them")
        wanted = [t.requires_grad for t in tensors]
        under_way.append(_Micro(tensors, labels, remote.begin_loss(tensors, cut, loss, options, labels, wanted)))
        if len(under_way) > ahead:
            yield finish()
    while under_way:
        yield finish()


def through_outputs(
    remote: Operations,
    head: Head,
    batches: Batches,
    loss: Callable[[Any, Any], Tensor],
    scale: float,
    cut: int,
    ahead: int,
) -> Iterator[Tensor]:
    """Outputs come back, and their gradients are sent: two operations for a micro-batch."""
    forwards: deque[_Micro] = deque()
    backwards: deque[_Micro] = deque()

    def turn() -> None:
        """The oldest forward: from its answer to its gradients being sent."""
        micro = forwards[0]
        forward, structure, found = remote.end_kept(micro.sent, micro.tensors)
        forwards.popleft()
        leaves = _Received.Call(remote, forward, found)
        values = _Received.apply(leaves, torch.zeros((), requires_grad=True))  # type: ignore[no-untyped-call]
        try:
            value = loss(remote.rebuilt(structure, list(values)), micro.labels)
            (value if scale == 1.0 else value * scale).backward()  # type: ignore[no-untyped-call]
        finally:
            if leaves.sent is None:
                remote.abandon_graph(forward)
        if leaves.sent is None:
            raise InputError("the loss does not depend on what the tail returned, so there is nothing to go back from")
        micro.sent, micro.loss = leaves.sent, value.detach()
        backwards.append(micro)

    def finish() -> Tensor:
        micro = backwards.popleft()
        _backward(micro.tensors, remote.end_backward(micro.sent, micro.tensors))
        assert micro.loss is not None
        return micro.loss

    try:
        for inputs, labels in batches:
            tensors = _run_head(remote, head, inputs, cut)
            wanted = [t.requires_grad for t in tensors]
            forwards.append(_Micro(tensors, labels, remote.begin_kept(tensors, cut, wanted)))
            if len(forwards) > ahead:
                turn()
            if len(backwards) > ahead:
                yield finish()
        while forwards:
            turn()
        while backwards:
            yield finish()
    finally:
        for micro in forwards:  # an error, or a loop that was left
            remote.drop_kept(micro.sent)


class _Received(torch.autograd.Function):
    """What came, as the begin of a graph whose backward sends the gradients and waits for nothing."""

    class Call:
        """One forward."""

        def __init__(self, remote: Operations, forward: int, found: list[Tensor]) -> None:
            self.remote, self.forward, self.found = remote, forward, found
            self.sent: Future[Answered] | None = None

    @staticmethod
    def forward(ctx: Any, call: Call, anchor: Tensor) -> tuple[Tensor, ...]:
        """`anchor` wants a gradient, of which there is none."""
        ctx.call = call
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(t for t in call.found if not t.is_floating_point()))
        return tuple(call.found)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[None, None]:
        """Send them."""
        call: _Received.Call = ctx.call
        call.sent = call.remote.begin_backward(call.forward, grads)
        return None, None


def _run_head(remote: Operations, head: Head, inputs: Any, cut: int) -> list[Tensor]:
    args = inputs if isinstance(inputs, tuple) else () if isinstance(inputs, dict) else (inputs,)
    kwargs = inputs if isinstance(inputs, dict) else {}
    if head is None:
        return remote.crossing(args, kwargs, cut)
    made = head(*args, **kwargs)
    return remote.crossing(made if isinstance(made, tuple) else (made,), {}, cut)


def _backward(tensors: Sequence[Tensor], gradients: Sequence[Tensor | None]) -> None:
    """Through the head, from the gradients of what it returned."""
    pairs = [(t, g) for t, g in zip(tensors, gradients, strict=True) if t.requires_grad and g is not None]
    if pairs:
        torch.autograd.backward([t for t, _ in pairs], [g for _, g in pairs])
