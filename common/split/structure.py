"""Tensors inside what a module takes and returns: found by path, replaced while everything around them stays."""

from __future__ import annotations

import copy
import dataclasses
import types
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn


@dataclass(frozen=True)
class Slot:
    """Where the tensor number `index` of a structure was."""

    index: int


@dataclass(frozen=True)
class Found:
    """A tensor and the path to it; `inside` when it sits in an object of a kind that can't be rebuilt around it."""

    path: str
    tensor: Tensor
    inside: bool


# Looked at for neither tensors nor attributes.
_PLAIN = (
    type(None), bool, int, float, complex, str, bytes, type, nn.Module, types.ModuleType, types.FunctionType,
    types.MethodType, types.BuiltinFunctionType,
)  # fmt: skip


def tensors(value: Any, path: str = "") -> list[Found]:
    """Every tensor in `value`, in order: in lists, tuples, mappings, dataclasses, and attributes of other objects."""
    return list(_walk(value, path, False, set()))


def _walk(value: Any, path: str, inside: bool, seen: set[int]) -> Iterator[Found]:
    if isinstance(value, Tensor):
        yield Found(path or "output", value, inside)
    elif isinstance(value, _PLAIN) or id(value) in seen:
        return
    else:
        seen = seen | {id(value)}
        inside = inside or not _rebuildable(value)
        for key, item in _items(value):
            yield from _walk(item, f"{path}.{key}" if path else str(key), inside, seen)


def _rebuildable(value: Any) -> bool:
    return isinstance(value, (list, tuple, MutableMapping)) or dataclasses.is_dataclass(value)


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, (list, tuple, set, frozenset)):
        return list(enumerate(value))
    if isinstance(value, MutableMapping):
        return list(value.items())
    return list(vars(value).items()) if hasattr(value, "__dict__") else []


def replace(value: Any, kind: type | tuple[type, ...], make: Callable[[Any], Any]) -> Any:
    """`value` with each instance of `kind` replaced by what `make` returns for it, in the order of `tensors`.

    Containers without one are returned as they are; others are rebuilt as their own class.
    """
    if isinstance(value, kind):
        return make(value)
    if isinstance(value, _PLAIN) or not _rebuildable(value):
        return value
    old = _items(value)
    new = [(key, replace(item, kind, make)) for key, item in old]
    if all(a is b for (_, a), (_, b) in zip(old, new, strict=True)):
        return value
    if isinstance(value, (list, tuple)):
        values = [item for _, item in new]
        return type(value)(*values) if hasattr(value, "_fields") else type(value)(values)
    out = copy.copy(value)
    for key, item in new:
        if isinstance(out, MutableMapping):
            out[key] = item
        else:
            object.__setattr__(out, key, item)
    return out


def template(value: Any) -> Any:
    """`value` with a Slot for every tensor that can be replaced, numbered as in `tensors`."""
    count = iter(range(1 << 30))
    return replace(value, Tensor, lambda _: Slot(next(count)))


def fill(shape: Any, values: Callable[[int], Any]) -> Any:
    """A template with `values(index)` in its slots."""
    return replace(shape, Slot, lambda slot: values(slot.index))


def plain_leaves(value: Any, path: str = "") -> dict[str, Any]:
    """The bools, numbers, strings and Nones of a structure, by path."""
    if isinstance(value, (type(None), bool, int, float, str)):
        return {path: value}
    if isinstance(value, (*_PLAIN, Tensor, Slot)) or not _rebuildable(value):
        return {}
    found: dict[str, Any] = {}
    for key, item in _items(value):
        found |= plain_leaves(item, f"{path}.{key}" if path else str(key))
    return found
