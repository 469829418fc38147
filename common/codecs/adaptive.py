"""How large an error a training step bears: the law behind `errbound`'s adaptive bound.

After COMET (Jin et al., PVLDB 15, 2022), in a form without its fitted constant: an error that is uniform in [-ε, ε]
and independent, on the non-zero inputs of a layer, gives every weight's gradient an error of mean 0 and standard
deviation sigma = (ε/√3)·|g|·√R. Here |g| is the L2 norm of the gradient at one output channel of that layer, over batch
and positions, and R the share of inputs that are not zero, padding counted as zeros. The bound is set so that sigma is
a small share of the optimiser's momentum.

The law is about the layer behind the cut. On the wire the forward pass sees the error too, which it does not cover.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch


def noise(epsilon: float, gradient_norm: float, density: float) -> float:
    """Standard deviation of the error of a weight's gradient."""
    return epsilon / math.sqrt(3) * gradient_norm * math.sqrt(density)


def bound(sigma: float, gradient_norm: float, density: float) -> float:
    """The ε whose noise is `sigma`; infinite where no error at all would arrive."""
    per_unit = noise(1.0, gradient_norm, density)
    return sigma / per_unit if per_unit > 0 else math.inf


def gradient_norm(gradient: torch.Tensor, axis: int = 1) -> float:
    """L2 norm of a channel's gradient over all else, root of the mean square over channels.

    Meant for the gradient at the *output* of the layer behind the cut. That at the cut itself can stand in for it where
    the layer keeps magnitudes.
    """
    channels = gradient.shape[axis] if axis < gradient.dim() else 1
    return float(gradient.detach().double().norm()) / math.sqrt(max(channels, 1))


def mean_momentum(optimizer: torch.optim.Optimizer, parameters: Iterable[torch.nn.Parameter]) -> float:
    """Mean magnitude of the momentum (SGD) or first moment (Adam) of `parameters`; 0 while there is none."""
    total, count = 0.0, 0
    for parameter in parameters:
        state = optimizer.state.get(parameter, {})
        held = state.get("momentum_buffer", state.get("exp_avg"))
        if held is not None:
            total += float(held.detach().abs().double().sum())
            count += held.numel()
    return total / count if count else 0.0
