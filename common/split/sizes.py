"""How the sizes inside a model follow the batch size and the sequence length of its inputs.

Every size is fitted as base + b·B + l·L + p·B·L from forwards on the example and on variants of it with one more item,
one token less, and both. Where a variant fails, that size is fixed to the example's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fogline.common.errors import InputError
from fogline.common.split.structure import replace, tensors
from fogline.common.split.trace import Example


@dataclass(frozen=True)
class Size:
    """base + batch·B + length·L + both·B·L."""

    base: int
    batch: int = 0
    length: int = 0
    both: int = 0

    def at(self, batch: int, length: int) -> int:
        """The size for this batch size and sequence length."""
        return self.base + self.batch * batch + self.length * length + self.both * batch * length


Shape = tuple[Size, ...]


@dataclass(frozen=True)
class Variable:
    """The example's batch size and sequence length; 0 where there is none or it can't vary."""

    batch: int
    length: int

    @classmethod
    def of(cls, example: Example) -> Variable:
        """Batch: first dim of the first tensor. Length: second dim of token ids and masks, or of (B, L, C) floats."""
        found = [f.tensor for f in tensors((example.args, example.kwargs)) if f.tensor.ndim]
        batch = found[0].shape[0] if found else 0
        tokens = [t for t in found if t.ndim == 2 and not t.is_floating_point()]
        sequences = tokens or [t for t in found if t.ndim == 3]
        return cls(batch, sequences[0].shape[1] if sequences else 0)

    def dims(self, tensor: Tensor) -> tuple[bool, bool]:
        """Whether the first dim is the batch and the second the length, for an input."""
        batch = bool(self.batch) and tensor.ndim >= 1 and tensor.shape[0] == self.batch
        length = bool(self.length) and tensor.ndim >= 2 and tensor.shape[1] == self.length
        return batch, length and (tensor.ndim == 3 or tensor.ndim == 2)

    def other_length(self) -> int:
        """The length that is tried: one less, as a model may know a largest one."""
        return self.length - 1 if self.length > 1 else self.length + 1

    def variant(self, example: Example, *, batch: bool, length: bool) -> Example:
        """The example with one more item, with `other_length()` tokens, or both."""

        def change(tensor: Tensor) -> Tensor:
            is_batch, is_length = self.dims(tensor)
            if batch and is_batch:
                tensor = torch.cat([tensor, tensor[:1]])
            if length and is_length:
                shorter = self.other_length() < self.length
                tensor = tensor[:, :-1] if shorter else torch.cat([tensor, tensor[:, :1]], 1)
            return tensor

        args, kwargs = replace((example.args, dict(example.kwargs)), Tensor, change)
        return Example(args, kwargs)


def fit(
    variable: Variable,
    shape: Sequence[int],
    more: Sequence[int] | None,
    shorter: Sequence[int] | None,
    both: Sequence[int] | None,
) -> Shape | None:
    """The sizes from the shapes on the example and its variants (None where not run); None when ranks differ."""
    known = [s for s in (more, shorter, both) if s is not None]
    if any(len(s) != len(shape) for s in known):
        return None
    out = []
    step = variable.other_length() - variable.length
    for i, size in enumerate(shape):
        per_item = more[i] - size if more is not None else 0
        per_token = (shorter[i] - size) // step if shorter is not None else 0
        product = 0
        if more is not None and shorter is not None and both is not None:
            product = (both[i] - more[i] - shorter[i] + size) // step
        b, t = per_item - product * variable.length, per_token - product * variable.batch
        out.append(
            Size(
                size - b * variable.batch - t * variable.length - product * variable.batch * variable.length,
                b,
                t,
                product,
            )
        )
    return tuple(out)


def solve(name: str, variable: Variable, specs: Sequence[Shape], shapes: Sequence[Sequence[int]]) -> tuple[int, int]:
    """The batch size and sequence length at which tensors of `specs` have these `shapes`.

    What the tensors don't tell is the example's. Raises InputError when no such sizes exist.
    """
    batch, length = variable.batch, variable.length
    pairs = [(s, n) for spec, shape in zip(specs, shapes, strict=True) for s, n in zip(spec, shape, strict=False)]
    for size, n in pairs:
        if size.batch and not size.length and not size.both:
            batch = (n - size.base) // size.batch
        if size.length and not size.batch and not size.both:
            length = (n - size.base) // size.length
    for number, (spec, shape) in enumerate(zip(specs, shapes, strict=True)):
        expected = tuple(size.at(batch, length) for size in spec)
        if expected != tuple(shape):
            raise InputError(
                f"{name}: tensor {number} has shape {tuple(shape)}, {expected} was expected; only the batch size and "
                "the sequence length may differ from the example. For another size call split with an example of it"
            )
    return batch, length


def told(specs: Sequence[Shape]) -> tuple[bool, bool]:
    """Whether tensors of these sizes tell the batch size and the sequence length."""
    sizes = [size for spec in specs for size in spec]
    return (
        any(s.batch and not s.length and not s.both for s in sizes),
        any(s.length and not s.batch and not s.both for s in sizes),
    )


def plain_shape(value: Any) -> tuple[int, ...]:
    """A shape as plain integers."""
    return tuple(int(n) for n in value)
