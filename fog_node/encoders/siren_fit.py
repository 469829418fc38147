"""Fits many sine networks of one shape at once, as batched matrix products.

The networks share nothing, so the gradient of the summed loss is block-diagonal and a batched optimiser is exactly one
optimiser for each network: a network comes out the same whatever it is batched with. The backward pass is
written by hand, because autograd would keep and traverse what two in-place products and one cosine do here. Units come
before pixels, (N, units, pixels): for ten units that takes a third of the time of the other order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.siren_base import base_weights
from fogline.common.images.siren_payload import STEPS, Shape
from fogline.fog_node.encoders.siren_optimiser import Adam
from fogline.fog_node.encoders.siren_rounding import LIMIT, round_weights

_WARM_UP = 20  # steps
_FINISH_RATE, _LAST_RATE = 0.1, 0.01  # of the first rate, where the finish begins and ends
_MOMENT_PIXELS = 8192  # by which rounding judges what a layer's inputs have in common
# A normal distribution has log2(4.13 times its deviation over the step) bits.
_DEVIATION_BITS = math.log2(math.sqrt(2 * math.pi * math.e))


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network is fitted."""

    steps: int
    slice: int  # pixels per step, a contiguous slice of a fixed random order
    rate: float  # first learning rate of the sine layers, whose weights hold the factor w0
    output_rate: float  # of the linear layer
    frequency: int  # first-layer weights start uniform in plus or minus this
    finish: float  # last part of the steps, in which the layers are rounded one after the other
    bits: float  # about what a weight takes when it is coded
    precondition: bool = False  # step in the gradients' eigenbasis


@dataclass(frozen=True)
class FittedNetwork:
    """One network, quantised."""

    steps: NDArray[np.uint8]  # step number of each layer (depth + 1,)
    weights: NDArray[np.int8]  # (parameters,), differences to the base
    frequency: int = 0  # of the base; 0: none


def pixel_order(count: int, slice_size: int, seed: int) -> NDArray[np.int64]:
    """A random order of `count` pixels, repeated to a whole number of slices so that every step has equally many.

    Few pixels are repeated more often, so that the uneven last round weighs little.
    """
    rng = np.random.default_rng(seed)
    slots = math.ceil(count * (4 if count < 4 * slice_size else 1) / slice_size) * slice_size
    rounds = [rng.permutation(count) for _ in range(math.ceil(slots / count))]
    return np.concatenate(rounds)[:slots]


class BatchFit:
    """N networks of one shape on their way from their base to fitted and quantised.

    A layer is one matrix (N, outputs, inputs + 1), its biases the last column.
    """

    def __init__(self, shape: Shape, positions: torch.Tensor, targets: torch.Tensor, schedule: Schedule) -> None:
        """`positions` (N, 2, S) and `targets` (N, 3, S), in the order of the steps."""
        self.shape, self.schedule = shape, schedule
        self._positions, self._targets = positions, targets
        count, self._device = targets.shape[0], targets.device
        flat = torch.tensor(base_weights(shape, schedule.frequency), device=self._device)
        self._base = _matrices(flat, shape)
        start = [matrix.repeat(count, 1, 1) for matrix in self._base]
        start[-1][:, :, -1] = targets.mean(dim=2)  # the output starts at the target's mean
        stacks = [torch.stack(start[:1], 1), torch.stack(start[-1:], 1)]
        if shape.depth > 1:
            stacks.insert(1, torch.stack(start[1:-1], 1))
        # First layer, hidden layers, linear layer: what is of one size is moved together.
        self._groups = [Adam(stack, precondition=schedule.precondition) for stack in stacks]
        self._layers = [g.matrices[:, i] for g in self._groups for i in range(g.matrices.shape[1])]
        self._gradients = [g.gradient[:, i] for g in self._groups for i in range(g.matrices.shape[1])]
        pixels = min(schedule.slice, targets.shape[2])
        self._slices = targets.shape[2] // pixels
        self._pixels = pixels
        hidden = (count, shape.width, pixels)
        self._values = [torch.empty(hidden, device=self._device) for _ in range(shape.depth)]
        self._slopes = [torch.empty(hidden, device=self._device) for _ in range(shape.depth)]
        self._back = torch.empty(hidden, device=self._device)
        self._error = torch.empty((count, 3, pixels), device=self._device)

    def run(self) -> list[FittedNetwork]:
        """Fit, and return the quantised networks.

        In the finish, one layer after the other is rounded and frozen, first layer first, while the later ones go on
        learning and make up for it (incremental quantisation, arXiv:1702.03044, by layers).
        """
        plan, depth = self.schedule, self.shape.depth
        began = round(plan.steps * (1 - plan.finish))
        coded: list[tuple[torch.Tensor, torch.Tensor]] = []
        for step in range(plan.steps):
            while len(coded) < depth and step >= began + (plan.steps - began) * len(coded) / depth:
                coded.append(self._freeze(len(coded)))
            self._accumulate(step % self._slices, len(coded))
            factor, start = self._factor(step, began), 0
            for group in self._groups:
                size = group.matrices.shape[1]
                frozen = min(max(len(coded) - start, 0), size)
                if frozen < size:
                    group.step(step, factor * (plan.rate if start < depth else plan.output_rate), frozen)
                start += size
        while len(coded) < depth:
            coded.append(self._freeze(len(coded)))
        coded.append(self._freeze(depth))
        return self._networks(coded)

    def _factor(self, step: int, began: int) -> float:
        """Of the learning rate: a cosine, then a line."""
        if step >= began:
            return _FINISH_RATE + (_LAST_RATE - _FINISH_RATE) * (step - began) / (self.schedule.steps - began)
        fall = (1 + math.cos(math.pi * step / began)) / 2
        return (_FINISH_RATE + (1 - _FINISH_RATE) * fall) * min(1.0, (step + 1) / _WARM_UP)

    def _freeze(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Round a layer: its step numbers (N,) and whole weights (N, outputs, inputs + 1)."""
        weights, base = self._layers[layer], self._base[layer]
        difference = weights - base
        # The first layer is small, and an error of its frequencies grows towards the region's edges: one bit more.
        bits = self.schedule.bits + (layer == 0) - _DEVIATION_BITS
        size = difference.square().mean((1, 2)).sqrt() * 2.0**-bits
        size = torch.maximum(size, difference.abs().amax((1, 2)) / LIMIT)
        numbers = torch.ceil((torch.log2(size) + 24) * 8).clamp_(0, 255).long()
        size = torch.from_numpy(STEPS).to(self._device)[numbers]
        whole = round_weights(weights, base, size, self._moments(layer))
        self._layers[layer].copy_(whole * size[:, None, None] + base)
        return numbers, whole

    def _moments(self, layer: int) -> torch.Tensor:
        """Mean products of a layer's inputs and 1, (N, inputs + 1, inputs + 1), over some pixels."""
        slices = min(self._slices, -(-_MOMENT_PIXELS // self._pixels))
        total = torch.zeros(())
        for index in range(slices):
            at = slice(index * self._pixels, (index + 1) * self._pixels)
            values = self._forward(self._positions[:, :, at], layer)
            inputs = torch.cat([values, torch.ones_like(values[:, :1])], 1)
            total = total.to(inputs) + inputs @ inputs.mT
        return total / (slices * self._pixels)

    def _forward(self, positions: torch.Tensor, layers: int) -> torch.Tensor:
        """Values after the first `layers` sine layers; slopes and values of each are kept."""
        values = positions
        for matrix, value, slope in zip(self._layers[:layers], self._values, self._slopes, strict=False):
            torch.baddbmm(matrix[:, :, -1:], matrix[:, :, :-1], values, out=slope)
            _sine_and_cosine(slope, value)
            values = value
        return values

    def _accumulate(self, index: int, frozen: int = 0) -> None:
        """Gradient of each network's mean squared error on one slice, into the groups, but for frozen layers."""
        at = slice(index * self._pixels, (index + 1) * self._pixels)
        positions = self._positions[:, :, at]
        values = self._forward(positions, self.shape.depth)
        last = self._layers[-1]
        error = torch.baddbmm(last[:, :, -1:], last[:, :, :-1], values, out=self._error).sub_(self._targets[:, :, at])
        back = error.mul_(2 / (3 * self._pixels))
        for layer in range(self.shape.depth, frozen - 1, -1):
            before = self._values[layer - 1] if layer else positions
            self._gradients[layer][:, :, :-1] = torch.bmm(back, before.mT)
            self._gradients[layer][:, :, -1] = back.sum(2)
            if layer > frozen:
                # The slope's buffer is free after this product, so it takes the next layer's error.
                torch.bmm(self._layers[layer][:, :, :-1].mT, back, out=self._back)
                back = self._slopes[layer - 1].mul_(self._back)

    def _networks(self, coded: list[tuple[torch.Tensor, torch.Tensor]]) -> list[FittedNetwork]:
        steps = torch.stack([numbers for numbers, _ in coded], 1).to(torch.uint8).cpu().numpy()
        parts = [p.flatten(1) for _, whole in coded for p in (whole[:, :, :-1], whole[:, :, -1])]
        weights = torch.cat(parts, 1).to(torch.int8).cpu().numpy()
        return [FittedNetwork(s, w, self.schedule.frequency) for s, w in zip(steps, weights, strict=True)]


def _matrices(flat: torch.Tensor, shape: Shape) -> list[torch.Tensor]:
    """A matrix (outputs, inputs + 1) of every layer from (parameters,), weights before biases."""
    out, start = [], 0
    for inputs, outputs in shape.layers:
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        out.append(torch.cat([flat[start:middle].view(outputs, inputs), flat[middle:end].view(outputs, 1)], 1))
        start = end
    return out


def _sine_and_cosine(x: torch.Tensor, sine: torch.Tensor) -> None:
    """Put sin(x) into `sine` and cos(x) into `x`."""
    if x.device.type == "cpu":  # numpy's are three times as fast as torch's
        np.sin(x.numpy(), out=sine.numpy())
        np.cos(x.numpy(), out=x.numpy())
    else:
        torch.sin(x, out=sine)
        x.cos_()
