"""The seven families of the benchmark in their small sizes, and how outputs are compared."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fogline.benchmarks.split_families import FAMILIES, Family
from fogline.common.split.structure import tensors


@dataclass(frozen=True)
class Small:
    """A family in its small size."""

    name: str
    build: Callable[[], nn.Module]
    example: Callable[..., dict[str, Any]]
    max_tensors: int


def _small(family: Family) -> Small:
    def example(batch: int = 2, length: int = 7) -> dict[str, Any]:
        return family.example(False, batch, length)

    return Small(family.name, lambda: family.build(False), example, family.max_tensors)


SMALL = tuple(map(_small, FAMILIES))


@pytest.fixture(params=SMALL, ids=lambda family: family.name)
def family(request: pytest.FixtureRequest) -> Small:
    return request.param


@pytest.fixture
def families() -> dict[str, Small]:
    return {f.name: f for f in SMALL}


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope="session")
def _quiet() -> None:
    # It logs at import which optional image backends are missing.
    logging.getLogger("transformers").setLevel(logging.ERROR)


def outputs(value: Any) -> list[Tensor]:
    return [found.tensor for found in tensors(value)]


@pytest.fixture
def same() -> Callable[[Any, Any], bool]:
    """Whether two outputs are of one kind and their tensors are equal bit for bit."""

    def compare(one: Any, other: Any) -> bool:
        pairs = list(zip(outputs(one), outputs(other), strict=True))
        return type(one) is type(other) and bool(pairs) and all(torch.equal(a, b) for a, b in pairs)

    return compare
