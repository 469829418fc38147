"""Models of a user's package, which edge and host both have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from fogline.benchmarks.split_families import FAMILIES, Family


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


class Checked(nn.Module):
    """Raises for what is not finite."""

    def forward(self, x: Tensor) -> Tensor:
        if not bool(x.isfinite().all()):
            raise ArithmeticError("not finite")
        return x


class Always(nn.Module):
    """Drops in evaluation, too, and returns two tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Linear(4, 6), nn.Linear(6, 3), nn.Linear(6, 7)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = nn.functional.dropout(self.a(x), 0.4, training=True)
        return self.b(nn.functional.dropout(h, 0.4, training=True)), self.c(h)


def always() -> nn.Module:
    return Always()


def picky() -> nn.Module:
    """Changes its buffers and draws numbers before it may fail."""
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.Dropout(0.5), Checked(), nn.Linear(6, 2))
    named = nn.Sequential()
    for name, module in zip(("first", "norm", "drop", "checked", "last"), model, strict=True):
        named.add_module(name, module)
    return named


def net(width: int = 8, dropout: float = 0.3) -> nn.Module:
    return Net(width, dropout)


def dicts() -> nn.Module:
    return Dicts()


def broken() -> nn.Module:
    raise RuntimeError("no such luck")


def family(name: str) -> nn.Module:
    """A family of transformers in its small size, with the same weights wherever it is built."""
    torch.manual_seed(0)
    model: nn.Module = families()[name].build(False)
    return model


def families() -> dict[str, Family]:
    """By name."""
    return {each.name: each for each in FAMILIES}
