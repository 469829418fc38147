"""Models of a user's package, which edge and host both have."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Net(nn.Module):
    """Convolutions with batch norm, then dropout: everything that keeps state or draws numbers."""

    def __init__(self, width: int = 8, dropout: float = 0.3) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.early = nn.Dropout(dropout)
        self.second = nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU())
        self.drop = nn.Dropout(dropout)
        self.last = nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.early(self.first(x))
        x = self.second(x)
        return self.last(self.drop(x.mean((2, 3))))


class Dicts(nn.Module):
    """Returns a dict with what is and what isn't a tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor, *, double: bool = False) -> dict[str, Any]:
        h = self.a(x)
        out = self.b(h)
        return {"logits": out * 2 if double else out, "aux": (out.argmax(-1), out.detach() + 1), "name": "dicts"}


def net(width: int = 8, dropout: float = 0.3) -> nn.Module:
    return Net(width, dropout)


def dicts() -> nn.Module:
    return Dicts()


def broken() -> nn.Module:
    raise RuntimeError("no such luck")


def family(name: str) -> nn.Module:
    """One of the families that cuts are tested on, with the same weights wherever it is built."""
    torch.manual_seed(0)
    model: nn.Module = families()[name].build()
    return model


def families() -> dict[str, Any]:
    """By name."""
    path = Path(__file__).parent.parent / "split" / "cutting" / "conftest.py"
    spec = importlib.util.spec_from_file_location("cutting_families", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return {each.name: each for each in module.FAMILIES}
