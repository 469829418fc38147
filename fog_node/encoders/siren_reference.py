"""The published method, kept as the baseline: one network at a time, every pixel in every step (Residual-INR).

Adam at 2e-4, cosine to 0, w0 = 30 in every sine layer, SIREN initialisation, identity output, the best iterate of the
second half. What the published code does besides in every step (a copy of all weights, two host synchronisations) is
left out, so that this is the faster form of it. The weights are quantised afterwards, per
layer, without further fitting.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from fogline.common.images.siren_payload import STEPS
from fogline.fog_node.encoders.siren_batches import Signal
from fogline.fog_node.encoders.siren_fit import FittedNetwork

W0 = 30.0
RATE = 2e-4


class ReferenceFit:
    """One network on its way; `step` is timed by the benchmark."""

    def __init__(self, signal: Signal, steps: int, seed: int, device: torch.device) -> None:
        self._shape, self._steps = signal.shape, steps
        self._positions = torch.from_numpy(signal.positions).to(device)
        self._targets = torch.from_numpy(signal.targets).to(device)
        generator = torch.Generator().manual_seed(seed)
        self._layers: list[tuple[nn.Parameter, nn.Parameter]] = []
        for index, (inputs, outputs) in enumerate(signal.shape.layers):
            bound = 1 / inputs if index == 0 else math.sqrt(6 / inputs) / W0
            weights = (torch.rand((inputs, outputs), generator=generator) * 2 - 1) * bound
            biases = (torch.rand(outputs, generator=generator) * 2 - 1) * bound
            self._layers.append((nn.Parameter(weights.to(device)), nn.Parameter(biases.to(device))))
        self._optimiser = torch.optim.Adam([p for layer in self._layers for p in layer], lr=RATE)
        self._schedule = torch.optim.lr_scheduler.CosineAnnealingLR(self._optimiser, T_max=steps)
        self._best: tuple[float, list[tuple[torch.Tensor, torch.Tensor]]] | None = None
        self._done = 0

    def step(self) -> None:
        """One step over every pixel."""
        values = self._positions
        for weights, biases in self._layers[:-1]:
            values = torch.sin(W0 * (values @ weights + biases))
        weights, biases = self._layers[-1]
        loss = torch.mean((values @ weights + biases - self._targets) ** 2)
        self._optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        self._keep(loss)
        self._optimiser.step()
        self._schedule.step()
        self._done += 1

    def _keep(self, loss: torch.Tensor) -> None:
        """Remember the best iterate of the second half; looked at every 10th step."""
        if self._done * 2 >= self._steps and self._done % 10 == 0:
            value = float(loss.detach())
            if self._best is None or value < self._best[0]:
                self._best = value, [(w.detach().clone(), b.detach().clone()) for w, b in self._layers]

    def folded(self) -> list[tuple[torch.Tensor, torch.Tensor]]:
        """The best weights (outputs, inputs) and biases (outputs, 1), float32, w0 folded into the sine layers."""
        layers = self._best[1] if self._best else [(w.detach(), b.detach()) for w, b in self._layers]
        folded = [(w * W0, b * W0) for w, b in layers[:-1]] + [layers[-1]]
        return [(w.T, b[:, None]) for w, b in folded]

    def network(self) -> FittedNetwork:
        """The weights at 8 bits."""
        numbers, parts = [], []
        for weights, biases in self.folded():
            flat = np.concatenate([weights.cpu().numpy().ravel(), biases.cpu().numpy().ravel()])
            number = int(np.searchsorted(STEPS[:-1], np.abs(flat).max() / 127))
            numbers.append(number)
            parts.append(np.clip(np.round(flat / STEPS[number]), -127, 127).astype(np.int8))
        return FittedNetwork(np.array(numbers, np.uint8), np.concatenate(parts))


def fit_reference(signal: Signal, steps: int, seed: int, device: torch.device) -> FittedNetwork:
    """Fit one signal by the published method."""
    fit = ReferenceFit(signal, steps, seed, device)
    for _ in range(steps):
        fit.step()
    return fit.network()
