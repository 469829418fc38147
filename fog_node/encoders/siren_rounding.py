"""Rounds a layer's weights so that what it does to its inputs changes least, not each weight on its own."""

from __future__ import annotations

import torch

_DAMPING = 1e-4  # of the inputs' mean power
LIMIT = 127  # of a coded weight


def round_weights(weights: torch.Tensor, base: torch.Tensor, step: torch.Tensor, moments: torch.Tensor) -> torch.Tensor:
    """Whole numbers (N, outputs, inputs), -127 to 127, that times `step` (N,), plus `base`, come near the weights.

    One input after the other is rounded, and the error is made good by the inputs that follow, as far as they go
    together in `moments` (N, inputs, inputs), the mean products of inputs (GPTQ, arXiv:2210.17323).
    """
    inputs = weights.shape[2]
    power = moments.diagonal(dim1=1, dim2=2).mean(1)
    damped = moments.double() + torch.diag_embed((power * _DAMPING)[:, None].expand(-1, inputs)).double()
    inverse = torch.cholesky_inverse(torch.linalg.cholesky_ex(damped)[0])
    factor = torch.linalg.cholesky_ex(inverse, upper=True)[0].to(weights.dtype)
    left, out, size = (weights - base).clone(), torch.empty_like(weights), step[:, None]
    for index in range(inputs):
        column = left[:, :, index]
        out[:, :, index] = (column / size).round_().clamp_(-LIMIT, LIMIT)
        error = (column - out[:, :, index] * size) / factor[:, index, index, None]
        left[:, :, index + 1 :] -= error[:, :, None] * factor[:, None, index, index + 1 :]
    return out
