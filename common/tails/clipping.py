"""One gradient norm over the parts of a split model, the same to the bit as over the unsplit one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor


def norms_of(parameters: Sequence[Tensor], norm_type: float) -> list[Tensor | None]:
    """The norm of each parameter's gradient, None where there is none."""
    grads = [p.grad for p in parameters if p.grad is not None]
    found = iter(torch._foreach_norm(grads, norm_type) if grads else ())
    return [next(found) if p.grad is not None else None for p in parameters]


def total(
    order: Sequence[str],
    head: Sequence[tuple[str, Tensor]],
    tail: Mapping[str, Tensor],
    norm_type: float,
) -> Tensor:
    """The norm over all, in the order of the unsplit model's parameters, as `torch.nn.utils.clip_grad_norm_` takes it.

    A sum of floats depends on its order. Names that are not in `order` come first (head) or last (tail).
    """
    rank = {name: i for i, name in enumerate(order)}
    ranked = [(rank.get(name, -1), norm) for name, norm in head]
    ranked += [(rank.get(name, len(order)), norm) for name, norm in tail.items()]
    if not ranked:
        return torch.tensor(0.0)
    ranked.sort(key=lambda pair: pair[0])
    device = ranked[0][1].device
    norm: Tensor = torch.linalg.vector_norm(torch.stack([norm.to(device) for _, norm in ranked]), norm_type)
    return norm


def coefficient(max_norm: float, norm: Tensor) -> Tensor:
    """What gradients are multiplied by; at most 1."""
    return torch.clamp(float(max_norm) / (norm + 1e-6), max=1.0)
