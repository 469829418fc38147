"""A tensor's memory layout, so that a link keeps it: kernels sum in the order of memory, and bits follow.

A gradient that torch made by broadcasting (of a mean, say) has stride 0 in some dims. Only what is distinct is packed.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fogline.common.errors import ProtocolError

_MAX_DIMS = 8


@dataclass(frozen=True)
class Layout:
    """Dims from the largest stride to the smallest, and for each dim the size that it is broadcast to, or 0."""

    order: tuple[int, ...]
    broadcast: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Whether it is C order with nothing broadcast."""
        return self.order == tuple(range(len(self.order))) and not any(self.broadcast)


def layout_of(tensor: Tensor) -> Layout:
    """The layout of `tensor`. Dims of size 1 are where C order has them."""
    strides = tensor.stride()
    broadcast = tuple(
        size if stride == 0 and size > 1 else 0 for size, stride in zip(tensor.shape, strides, strict=True)
    )
    return Layout(tuple(sorted(range(tensor.ndim), key=lambda d: (-strides[d], d))), broadcast)


def pack(tensor: Tensor) -> tuple[Tensor, Layout]:
    """The distinct values of `tensor`, contiguous in its own order of dims, and the layout that `unpack` needs."""
    layout = layout_of(tensor)
    for dim, size in enumerate(layout.broadcast):
        if size:
            tensor = tensor.narrow(dim, 0, 1)
    return tensor.permute(layout.order).contiguous(), layout


def unpack(packed: Tensor, layout: Layout) -> Tensor:
    """The tensor that `pack` was given, without a copy. Raises ProtocolError for a layout that doesn't fit."""
    dims = packed.ndim
    if dims > _MAX_DIMS or sorted(layout.order) != list(range(dims)) or len(layout.broadcast) != dims:
        raise ProtocolError(f"layout {layout}: not one of a tensor of {dims} dims; the peer must send what pack made")
    back = sorted(range(dims), key=layout.order.__getitem__)
    tensor = packed.permute(back)
    for dim, size in enumerate(layout.broadcast):
        if size and (size < 0 or tensor.shape[dim] != 1):
            raise ProtocolError(f"layout {layout}: dim {dim} can't be broadcast; the peer must send what pack made")
    sizes = [size or -1 for size in layout.broadcast]
    return tensor.expand(sizes) if any(layout.broadcast) else tensor


def as_ordered(tensor: Tensor, order: tuple[int, ...]) -> Tensor:
    """A C-contiguous tensor put into another order of dims; any other tensor as it is."""
    if not tensor.is_contiguous() or order == tuple(range(tensor.ndim)) or tensor.numel() < 2:
        return tensor
    back = sorted(range(tensor.ndim), key=order.__getitem__)
    return tensor.permute(order).contiguous(memory_format=torch.contiguous_format).permute(back)
