"""Tensors that have a shape, a dtype and a device but no values: what a segment computes with before its cut.

A tail runs the model's whole forward. Modules that ran in the head are skipped, and what they would have returned is
`Absent`. Operations on absent tensors infer shapes only, so the model's code between modules runs as it is; what
depends on present tensors alone is computed for real. Once the received tensors are in, no absent tensor may be used.
"""

from __future__ import annotations

from contextvars import ContextVar
from typing import Any

import torch
from torch import Tensor

from fogline.common.errors import InputError

# The part of the forward that this thread is in; None outside of a segment.
phase: ContextVar[Phase | None] = ContextVar("fogline_split_phase", default=None)

# They read shapes, never values.
_aten = torch.ops.aten
SHAPE_ONLY = frozenset(
    getattr(_aten, name)
    for name in (
        "empty_like", "zeros_like", "ones_like", "full_like", "rand_like", "randn_like", "randint_like",
        "new_empty", "new_empty_strided", "new_zeros", "new_ones", "new_full", "sym_size", "sym_stride", "sym_numel",
    )
)  # fmt: skip


class Phase:
    """Whether a running segment has its received tensors (`received`), and its name for errors."""

    def __init__(self, name: str, received: bool) -> None:
        self.name, self.received = name, received


class Absent(Tensor):
    """A tensor without values."""

    @staticmethod
    def __new__(cls: type[Absent], like: Tensor, device: torch.device | None = None) -> Absent:
        """Of the shape, strides and dtype of `like`, said to be on `device` (default: where `like` is)."""
        made: Absent = Tensor._make_wrapper_subclass(
            cls, like.shape, strides=like.stride(), dtype=like.dtype, device=device or like.device, requires_grad=False
        )
        return made

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Infer what `func` would return. Raises InputError where values are needed."""
        kwargs = dict(kwargs or {})
        device = next(a.device for a in _flat((args, kwargs)) if isinstance(a, Absent))
        shape_only = func.overloadpacket in SHAPE_ONLY
        now = phase.get()
        if now is not None and now.received and not shape_only:
            raise InputError(
                f"{now.name}: {func} after the cut needs a tensor that only the part before it computes; the forward "
                "took another path than on the example. Call split with an example that takes this path"
            )
        if shape_only:
            kwargs["device"] = kwargs.get("device") or device
            return func(*_to_meta(args), **{k: _to_meta(v) for k, v in kwargs.items()})
        written = [
            given
            for given, declared in zip(args, func._schema.arguments, strict=False)
            if declared.alias_info is not None and declared.alias_info.is_write
        ]
        written += [
            kwargs[declared.name]
            for declared in func._schema.arguments
            if declared.name in kwargs and declared.alias_info is not None and declared.alias_info.is_write
        ]
        if any(isinstance(w, Tensor) and not isinstance(w, Absent) for w in written):
            raise InputError(f"{_where(now)}: {func} would write unknown values over known ones; use another cut")
        if torch.Tag.inplace_view in func.tags:
            raise InputError(f"{_where(now)}: {func} changes the shape of a tensor of the other part; use another cut")
        if kwargs.get("device") is not None:
            device = torch.device(kwargs["device"])
            kwargs["device"] = "meta"
        try:
            out = func(*_to_meta(args), **{k: _to_meta(v) for k, v in kwargs.items()})
        except (RuntimeError, NotImplementedError, TypeError) as error:
            raise InputError(
                f"{_where(now)}: {func} needs the values of a tensor that the other part of the model computes "
                f"({str(error).splitlines()[0][:200]}); use another cut, or an example that takes this path"
            ) from error
        if written and not isinstance(out, (tuple, list)):
            return written[0]
        return _wrap(out, device)

    def __deepcopy__(self, memo: dict[int, Any]) -> Absent:
        return self

    def __reduce_ex__(self, protocol: Any) -> Any:
        return (_rebuild, (tuple(self.shape), self.stride(), self.dtype, str(self.device)))

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Absent({tuple(self.shape)}, {self.dtype}, {self.device})"


def _rebuild(shape: tuple[int, ...], stride: tuple[int, ...], dtype: torch.dtype, device: str) -> Absent:
    return Absent(torch.empty_strided(shape, stride, dtype=dtype, device="meta"), torch.device(device))


def absent(shape: tuple[int, ...], dtype: torch.dtype, device: torch.device, order: tuple[int, ...] = ()) -> Absent:
    """One of this shape, dense; `order` lists the dims from the largest stride to the smallest (default: C order)."""
    strides, step = [0] * len(shape), 1
    for dim in reversed(order or range(len(shape))):
        strides[dim], step = step, step * max(shape[dim], 1)
    return _rebuild(shape, tuple(strides), dtype, str(device))


def _where(now: Phase | None) -> str:
    return now.name if now else "a segment"


def _flat(value: Any) -> list[Any]:
    if isinstance(value, (list, tuple)):
        return [leaf for item in value for leaf in _flat(item)]
    if isinstance(value, dict):
        return [leaf for item in value.values() for leaf in _flat(item)]
    return [value]


def _to_meta(value: Any) -> Any:
    if isinstance(value, Tensor):
        return torch.empty_strided(value.shape, value.stride(), dtype=value.dtype, device="meta")
    if isinstance(value, (list, tuple)):
        return type(value)(_to_meta(item) for item in value)
    return value


def _wrap(value: Any, device: torch.device) -> Any:
    if isinstance(value, Tensor):
        return Absent(value, device)
    if isinstance(value, (list, tuple)):
        return type(value)(_wrap(item, device) for item in value)
    return value
