"""The synthesis network of `nerv`: from a frame's latents and its place in time to its pixels.

3x3 convolutions, each followed by a pixel shuffle of 2 (NeRV, arXiv:2110.13903), from a grid of latents that every
frame has of its own (HNeRV, arXiv:2304.02633). A grid of features that all frames share enters behind the first: what
stands still is in the network, and a frame's latents hold what moves.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn import functional

from fogline.common.images.nerv_payload import STEPS, TIME_CHANNELS, Network, Shape

LATENT_UNIT = 0.25  # what a latent of 1 stands for
_GREY = 0.5  # of zero output


@dataclass(frozen=True)
class Weights:
    """A network's numbers as tensors."""

    convolutions: Sequence[tuple[torch.Tensor, torch.Tensor]]  # (outputs, inputs, 3, 3) and (outputs,)
    grid: torch.Tensor  # (channels, rows, columns)


def dequantise(network: Network, device: torch.device) -> Weights:
    """The weights of a network as it was sent."""
    flat = [
        torch.from_numpy(tensor).to(device, torch.float32) * float(STEPS[step])
        for tensor, step in zip(network.tensors, network.steps, strict=True)
    ]
    return split(network.shape, flat)


def split(shape: Shape, flat: Sequence[torch.Tensor]) -> Weights:
    """Weights from the flat tensors of a payload: of a convolution, the weights and then the biases."""
    convolutions = []
    for (inputs, outputs), numbers in zip(shape.convolutions, flat, strict=False):
        weights = numbers[:-outputs].view(outputs, inputs, 3, 3)
        convolutions.append((weights, numbers[-outputs:]))
    return Weights(convolutions, flat[-1].view(shape.grid_size))


def time_features(shape: Shape, frames: Sequence[int], device: torch.device) -> torch.Tensor:
    """(B, TIME_CHANNELS): sine and cosine of pi t, 2 pi t, 4 pi t, 8 pi t; t runs from 0 to 1 over the frames."""
    t = torch.tensor(frames, dtype=torch.float32) / max(1, shape.frames - 1)
    angles = t[:, None] * (math.pi * 2.0 ** torch.arange(TIME_CHANNELS // 2))
    return torch.cat([angles.sin(), angles.cos()], 1).to(device)


def synthesise(shape: Shape, weights: Weights, latents: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
    """Pixels (B, 3, height, width), about 0 to 1 and not clamped, of latents (B, channels, rows, columns)."""
    time = time_features(shape, frames, latents.device)
    time = time[:, :, None, None].expand(-1, -1, *latents.shape[2:])
    values = torch.cat([latents * LATENT_UNIT, time], 1)
    *stages, head = weights.convolutions
    for number, (kernel, bias) in enumerate(stages):
        values = functional.gelu(functional.pixel_shuffle(functional.conv2d(values, kernel, bias, padding=1), 2))
        if number == 0:
            values = torch.cat([values, weights.grid.expand(len(values), -1, -1, -1)], 1)
    pixels = functional.pixel_shuffle(functional.conv2d(values, *head, padding=1), 2) + _GREY
    return pixels[:, :, : shape.height, : shape.width]
