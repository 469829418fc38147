"""Trains the network of a run of frames, with their latents, for the least error and bits together.

Latents come from a small analysis network, plus a correction of each frame's own; only what they round to is sent.
First uniform noise stands for their rounding (Balle et al., arXiv:1611.01704); in the finish latents and weights are
rounded, and gradients pass through (straight-through estimator, arXiv:1308.3432).
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional

from fogline.common.errors import InternalError
from fogline.common.images.nerv_network import dequantise, split, synthesise
from fogline.common.images.nerv_payload import CONTEXTS, MAX_LATENT, MAX_STEP, STEPS, STRIDE, Network, Shape

log = logging.getLogger(__name__)

Pixels = Callable[[int], torch.Tensor]  # of the frame of an index

_RATE, _LATENT_RATE = 4e-3, 5e-2  # learning rates of networks, and of the latents' corrections
_WARM = 0.03  # part of the steps in which the rates rise
_FINISH = 0.65  # part of the steps after which everything is rounded
_ANALYSIS = 48  # channels
_LATENT_START = 4.0  # scale of the first latents


@dataclass(frozen=True)
class Plan:
    """How a network is trained."""

    steps: int
    price: float  # squared error, of pixels 0 to 1, for a bit a pixel
    bits: float  # of a weight
    seed: int


@dataclass(frozen=True)
class Fitted:
    """What is sent: the network, without entropy tables, and every frame's latents."""

    steps: tuple[int, ...]
    tensors: tuple[NDArray[np.int8], ...]
    latents: NDArray[np.int16]  # (frames, channels, rows, columns)

    def network(self, shape: Shape) -> Network:
        """The network as a receiver has it, tables apart."""
        return Network(shape, self.steps, self.tensors, ((0,) * CONTEXTS,) * shape.latents)


class _Trainee(nn.Module):
    """Everything that is trained."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        flat = []
        for inputs, outputs in shape.convolutions:
            weights = torch.randn(outputs * inputs * 9) * math.sqrt(2 / (9 * inputs))
            flat.append(torch.cat([weights, torch.zeros(outputs)]))
        flat[-1] = flat[-1] * 0.2
        flat.append(torch.randn(math.prod(shape.grid_size)) * 0.1)
        self.flat = nn.ParameterList(nn.Parameter(tensor) for tensor in flat)
        self.analysis = nn.Sequential(
            nn.PixelUnshuffle(4),
            nn.Conv2d(48, _ANALYSIS, 3, stride=2, padding=1),
            nn.GELU(),
            nn.Conv2d(_ANALYSIS, max(1, shape.latents), 3, stride=2, padding=1),
        )
        self.corrections = nn.Parameter(torch.zeros(shape.frames, *shape.latent_size))
        self.spread = nn.Parameter(torch.ones(shape.latents))  # logarithm of the latents' mean magnitude

    def latents(self, pixels: torch.Tensor, frames: Sequence[int]) -> torch.Tensor:
        """Of frames with these padded pixels (B, 3, H, W), not rounded."""
        analysed = self.analysis(pixels - 0.5)[:, : self.spread.numel()] * _LATENT_START
        latents: torch.Tensor = (analysed + self.corrections[frames]).clamp(-MAX_LATENT, MAX_LATENT)
        return latents


def fit(shape: Shape, pixels: Pixels, weights: Pixels, plan: Plan, device: torch.device) -> Fitted:
    """Train.

    `pixels` gives a frame's pixels (3, height, width), 0 to 1; `weights` what their errors count (height, width).
    """
    generator = torch.Generator().manual_seed(plan.seed)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(plan.seed)
        model = _Trainee(shape).to(device)
    networks = [*model.flat.parameters(), *model.analysis.parameters(), model.spread]
    groups = [{"params": networks, "lr": _RATE}, {"params": [model.corrections], "lr": _LATENT_RATE}]
    optimiser = torch.optim.Adam(groups, betas=(0.9, 0.99))
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimiser, lambda step: _schedule(step / plan.steps))
    numbers: tuple[int, ...] | None = None
    order: list[int] = []
    total = 0.0
    report = max(1, plan.steps // 10)
    for step in range(plan.steps):
        if not order:
            order = torch.randperm(shape.frames, generator=generator).tolist()
        index = order.pop()
        if numbers is None and step >= _FINISH * plan.steps:
            numbers = _step_numbers(model.flat.parameters(), plan.bits)
        target = pixels(index)[None].to(device)
        smooth = model.latents(_pad(target), [index])
        if numbers is None:
            noise = torch.rand(smooth.shape, generator=generator).to(device) - 0.5
            latents, flat = smooth + noise, list(model.flat)
        else:
            latents = _through(smooth, smooth.round())
            flat = [_rounded(tensor, number) for tensor, number in zip(model.flat, numbers, strict=True)]
        shown = synthesise(shape, split(shape, flat), latents, [index])
        weight = weights(index).to(device)
        error = ((shown - target).square().mean(1)[0] * weight).sum() / weight.sum()
        loss = error + plan.price * _bits(latents, model.spread) / (shape.width * shape.height)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(networks, 0.1)
        optimiser.step()
        scheduler.step()
        total += float(error.detach())
        if not math.isfinite(total):
            raise InternalError(f"training a network came to {total} at step {step}; encode with fewer channels")
        if (step + 1) % report == 0:
            db = -10 * math.log10(max(total / report, 1e-10))
            log.info("training a network", extra={"step": step + 1, "steps": plan.steps, "psnr_db": round(db, 2)})
            total = 0.0
    return _finish(model, shape, pixels, numbers or _step_numbers(model.flat.parameters(), plan.bits), device)


def _finish(model: _Trainee, shape: Shape, pixels: Pixels, numbers: tuple[int, ...], device: torch.device) -> Fitted:
    latents = np.empty((shape.frames, *shape.latent_size), np.int16)
    with torch.no_grad():
        for index in range(shape.frames):
            found = model.latents(_pad(pixels(index)[None].to(device)), [index])
            latents[index] = found[0].round().to(torch.int16).cpu().numpy()
        tensors = tuple(
            (tensor / float(STEPS[number])).round().clamp(-127, 127).to(torch.int8).cpu().numpy()
            for tensor, number in zip(model.flat, numbers, strict=True)
        )
    return Fitted(numbers, tensors, latents)


def show(fitted: Fitted, shape: Shape, index: int) -> torch.Tensor:
    """What a receiver sees of a frame (3, height, width), 0 to 1."""
    latents = torch.from_numpy(fitted.latents[index])[None].float()
    weights = dequantise(fitted.network(shape), torch.device("cpu"))
    return synthesise(shape, weights, latents, [index])[0].clamp(0, 1)


def _schedule(done: float) -> float:
    """A cosine after a short rise."""
    return min(1.0, (done + 1e-3) / _WARM) * (0.01 + 0.99 * 0.5 * (1 + math.cos(math.pi * done)))


def _step_numbers(flat: Iterable[torch.Tensor], bits: float) -> tuple[int, ...]:
    """Step numbers at which normal numbers take so many bits: their entropy is log2(sigma / step) + 2.05."""
    numbers = []
    for tensor in flat:
        sigma = float(tensor.detach().square().mean().sqrt()) if tensor.numel() else 1.0
        step = max(sigma, 1e-6) * 2 ** (2.05 - bits)
        numbers.append(int(np.clip(round(8 * (math.log2(step) + 24)), 0, MAX_STEP)))
    return tuple(numbers)


def _rounded(tensor: torch.Tensor, number: int) -> torch.Tensor:
    step = float(STEPS[number])
    return _through(tensor, (tensor / step).round().clamp(-127, 127) * step)


def _through(smooth: torch.Tensor, rounded: torch.Tensor) -> torch.Tensor:
    return smooth + (rounded - smooth).detach()


def _bits(latents: torch.Tensor, spread: torch.Tensor) -> torch.Tensor:
    """Bits of latents under Laplace distributions: the mass within half of each."""
    scale = spread.clamp(-3, 5).exp()[:, None, None]
    magnitude = latents.abs()
    tail = torch.exp(-(magnitude - 0.5).clamp(min=0) / scale) * 0.5 * -torch.expm1(-1 / scale)
    middle = 1 - torch.exp(-0.5 / scale) * torch.cosh(magnitude.clamp(max=0.5) / scale)
    return -torch.where(magnitude > 0.5, tail, middle).clamp(min=1e-6).log2().sum()


def _pad(pixels: torch.Tensor) -> torch.Tensor:
    """To whole strides, the edge repeated."""
    height, width = pixels.shape[2:]
    return functional.pad(pixels, (0, -width % STRIDE, 0, -height % STRIDE), mode="replicate")
