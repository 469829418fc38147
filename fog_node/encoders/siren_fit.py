"""Fits many sine networks of one shape at once, as batched matrix products.

The networks share nothing, so the gradient of the summed loss is block-diagonal and element-wise Adam on the batch is
exactly one Adam for each network: a network comes out the same whatever it is batched with. The backward pass is
written by hand, because autograd would keep and traverse what two in-place products and one cosine do here. Units come
before pixels, (N, units, pixels): for ten units that takes a third of the time of the other order.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.siren_payload import STEPS, Shape

_BETA1, _BETA2, _EPSILON = 0.9, 0.99, 1e-8
_WARM_UP = 20  # steps
_LAST_RATE = 0.01  # of the first rate, where the cosine ends
_LIMIT = 127


@dataclass(frozen=True)
class Schedule:
    """How long and how fast a network is fitted."""

    steps: int
    slice: int  # pixels per step, a contiguous slice of a fixed random order
    rate: float  # first learning rate of the sine layers, whose weights hold the factor w0
    output_rate: float  # of the linear layer
    frequency: float  # first-layer weights start uniform in plus or minus this
    finish: float  # last part of the steps, in which the layers are rounded one after the other
    bits: int  # of a quantised weight


@dataclass(frozen=True)
class FittedNetwork:
    """One network, quantised."""

    steps: NDArray[np.uint8]  # step number of each layer (depth + 1,)
    weights: NDArray[np.int8]  # (parameters,)


def pixel_order(count: int, slice_size: int, seed: int) -> NDArray[np.int64]:
    """A random order of `count` pixels, repeated to a whole number of slices so that every step has equally many.

    Few pixels are repeated more often, so that the uneven last round weighs little.
    """
    rng = np.random.default_rng(seed)
    slots = math.ceil(count * (4 if count < 4 * slice_size else 1) / slice_size) * slice_size
    rounds = [rng.permutation(count) for _ in range(math.ceil(slots / count))]
    return np.concatenate(rounds)[:slots]


class BatchFit:
    """N networks of one shape on their way from random to fitted and quantised."""

    def __init__(
        self, shape: Shape, positions: torch.Tensor, targets: torch.Tensor, schedule: Schedule, seed: int
    ) -> None:
        """`positions` (N, 2, S) and `targets` (N, 3, S), in the order of the steps."""
        self.shape, self.schedule = shape, schedule
        self._positions, self._targets = positions, targets
        count, self._device = targets.shape[0], targets.device
        size = (count, shape.parameters)
        self._parameters = torch.zeros(size, device=self._device)
        self._gradient = torch.zeros(size, device=self._device)
        self._weights = _views(self._parameters, shape)
        self._weight_gradients = _views(self._gradient, shape)
        self._initialise(seed)
        pixels = min(schedule.slice, targets.shape[2])
        self._slices = targets.shape[2] // pixels
        self._pixels = pixels
        hidden = (count, shape.width, pixels)
        self._values = [torch.empty(hidden, device=self._device) for _ in range(shape.depth)]
        self._slopes = [torch.empty(hidden, device=self._device) for _ in range(shape.depth)]
        self._back = torch.empty(hidden, device=self._device)
        self._error = torch.empty((count, 3, pixels), device=self._device)

    def _initialise(self, seed: int) -> None:
        """SIREN's initialisation, the same for every network of the batch; the output starts at the target's mean."""
        generator = torch.Generator().manual_seed(seed)
        for index, (weights, biases) in enumerate(_views(self._parameters, self.shape)):
            inputs = weights.shape[2]
            if index == 0:
                bound, bias_bound = self.schedule.frequency, math.pi
            elif index < self.shape.depth:
                bound = bias_bound = math.sqrt(6 / inputs)
            else:
                bound, bias_bound = math.sqrt(6 / inputs) / 30, 0.0
            for tensor, limit in ((weights, bound), (biases, bias_bound)):
                tensor.copy_((torch.rand((1, *tensor.shape[1:]), generator=generator) * 2 - 1) * limit)
        _views(self._parameters, self.shape)[-1][1].copy_(self._targets.mean(dim=2, keepdim=True))

    def run(self) -> list[FittedNetwork]:
        """Fit, and return the quantised networks.

        In the finish, one layer after the other is rounded and frozen, first layer first, while the later ones go on
        learning and make up for it (incremental quantisation, arXiv:1702.03044, by layers).
        """
        plan = self.schedule
        rates = self._rates()
        freeze_at = self._freeze_steps()
        numbers: list[torch.Tensor] = []
        first, second = torch.zeros_like(self._parameters), torch.zeros_like(self._parameters)
        update = torch.empty_like(self._parameters)
        for step in range(plan.steps):
            while len(numbers) <= self.shape.depth and step >= freeze_at[len(numbers)]:
                self._freeze(numbers, rates)
            self._accumulate(step % self._slices, len(numbers))
            first.lerp_(self._gradient, 1 - _BETA1)
            second.mul_(_BETA2).addcmul_(self._gradient, self._gradient, value=1 - _BETA2)
            torch.sqrt(second, out=update)
            update.mul_(1 / math.sqrt(1 - _BETA2 ** (step + 1))).add_(_EPSILON)
            torch.div(first, update, out=update)
            factor = _cosine(step, plan.steps) / (1 - _BETA1 ** (step + 1))
            self._parameters.addcmul_(update, rates, value=-factor)
        while len(numbers) <= self.shape.depth:
            self._freeze(numbers, rates)
        return self._networks(torch.stack(numbers, 1))

    def _freeze_steps(self) -> list[int]:
        length = self.schedule.steps * self.schedule.finish
        layers = self.shape.depth + 1
        return [round(self.schedule.steps - length * (layers - i) / layers) for i in range(layers)]

    def _freeze(self, numbers: list[torch.Tensor], rates: torch.Tensor) -> None:
        """Round the next layer to its quantisation step, whose number (N,) is appended, and stop it from learning."""
        layer = len(numbers)
        tensors = self._weights[layer]
        largest = torch.maximum(*(tensor.abs().amax((1, 2)) for tensor in tensors))
        # The first layer is small, and an error of its frequencies grows towards the region's edges: one bit more.
        limit = min(_LIMIT, 2 ** (self.schedule.bits - (layer > 0)) - 1)
        number = torch.ceil((torch.log2(largest / limit) + 24) * 8).clamp_(0, 255).long()
        size = _step_sizes(number)[:, None, None]
        for tensor in tensors:
            tensor.div_(size).round_().clamp_(-_LIMIT, _LIMIT).mul_(size)
        for rate in _views(rates, self.shape)[layer]:
            rate.zero_()
        numbers.append(number)

    def _rates(self) -> torch.Tensor:
        rates = torch.full((1, self.shape.parameters), self.schedule.rate, device=self._device)
        for tensor in _views(rates, self.shape)[-1]:
            tensor.fill_(self.schedule.output_rate)
        return rates

    def _accumulate(self, index: int, frozen: int = 0) -> None:
        """Gradient of each network's mean squared error on one slice, into `self._gradient`, but for frozen layers."""
        at = slice(index * self._pixels, (index + 1) * self._pixels)
        positions = self._positions[:, :, at]
        values = positions
        for (weights, biases), value, slope in zip(self._weights[:-1], self._values, self._slopes, strict=True):
            torch.baddbmm(biases, weights, values, out=slope)
            _sine_and_cosine(slope, value)
            values = value
        weights, biases = self._weights[-1]
        error = torch.baddbmm(biases, weights, values, out=self._error).sub_(self._targets[:, :, at])
        back = error.mul_(2 / (3 * self._pixels))
        for layer in range(self.shape.depth, frozen - 1, -1):
            before = self._values[layer - 1] if layer else positions
            weight_gradient, bias_gradient = self._weight_gradients[layer]
            torch.bmm(back, before.transpose(1, 2), out=weight_gradient)
            torch.sum(back, dim=2, keepdim=True, out=bias_gradient)
            if layer > frozen:
                # The slope's buffer is free after this product, so it takes the next layer's error.
                torch.bmm(self._weights[layer][0].transpose(1, 2), back, out=self._back)
                back = self._slopes[layer - 1].mul_(self._back)

    def _spread(self, per_layer: torch.Tensor) -> torch.Tensor:
        """(N, layers) repeated to (N, parameters)."""
        counts = torch.tensor([(i + 1) * o for i, o in self.shape.layers], device=self._device)
        return torch.repeat_interleave(per_layer, counts, dim=1)

    def _networks(self, numbers: torch.Tensor) -> list[FittedNetwork]:
        sizes = self._spread(_step_sizes(numbers))
        weights = (self._parameters / sizes).round_().clamp_(-_LIMIT, _LIMIT).to(torch.int8).cpu().numpy()
        steps = numbers.to(torch.uint8).cpu().numpy()
        return [FittedNetwork(s, w) for s, w in zip(steps, weights, strict=True)]


def _views(flat: torch.Tensor, shape: Shape) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Weights (N, outputs, inputs) and biases (N, outputs, 1) of every layer, as views into (N, parameters)."""
    out, start = [], 0
    for inputs, outputs in shape.layers:
        middle, end = start + inputs * outputs, start + (inputs + 1) * outputs
        out.append((flat[:, start:middle].view(-1, outputs, inputs), flat[:, middle:end].view(-1, outputs, 1)))
        start = end
    return out


def _step_sizes(numbers: torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(STEPS).to(numbers.device)[numbers]


def _sine_and_cosine(x: torch.Tensor, sine: torch.Tensor) -> None:
    """Put sin(x) into `sine` and cos(x) into `x`."""
    if x.device.type == "cpu":  # numpy's are three times as fast as torch's
        np.sin(x.numpy(), out=sine.numpy())
        np.cos(x.numpy(), out=x.numpy())
    else:
        torch.sin(x, out=sine)
        x.cos_()


def _cosine(step: int, steps: int) -> float:
    decay = _LAST_RATE + (1 - _LAST_RATE) * (1 + math.cos(math.pi * step / steps)) / 2
    return decay * min(1.0, (step + 1) / _WARM_UP)
