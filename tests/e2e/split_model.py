"""A model of a user's package, which device and host both have."""

from __future__ import annotations

import torch
from torch import nn


class Net(nn.Module):
    """A convolution here, the rest there."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.ReLU())
        self.last = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.last(self.first(x).mean((2, 3)))
        return out


def net() -> nn.Module:
    """The same on both sides."""
    torch.manual_seed(1)
    return Net()
