"""`raw`: the elements themselves, little-endian, in C order; nothing is copied on either side.

It is no stage on the wire: a tensor without stages is raw.
"""

from __future__ import annotations

import sys
from typing import ClassVar, cast

import torch

from fogline.common.codecs.base import Buffer, Packer, Params, Spec, register
from fogline.common.errors import FormatError

assert sys.byteorder == "little", "torch's CPU kernels and ours assume it"


def elements(tensor: torch.Tensor) -> memoryview:
    """The bytes of a contiguous CPU tensor, shared with it."""
    flat = tensor.reshape(-1)
    if flat.stride(0) != 1:  # one element of an expanded tensor counts as contiguous, whatever its stride
        flat = flat.as_strided((flat.numel(),), (1,))
    return memoryview(cast(bytes, flat.view(torch.uint8).numpy()))


def tensor_of(data: Buffer, spec: Spec) -> torch.Tensor:
    """A tensor of `spec` over `data`, shared where it can be written to and is aligned, else copied.

    Raises FormatError unless the sizes agree and booleans are 0 or 1.
    """
    view = memoryview(data)
    if view.nbytes != spec.nbytes:
        raise FormatError(f"{view.nbytes} bytes for a tensor {spec.shape} of {spec.dtype}, which has {spec.nbytes}")
    if not spec.numel:
        return torch.empty(spec.shape, dtype=spec.dtype)
    if view.readonly:
        view = memoryview(bytearray(view))
    flat = torch.frombuffer(view, dtype=torch.uint8)
    if flat.data_ptr() % spec.dtype.itemsize:
        flat = flat.clone()
    if spec.dtype == torch.bool and int(flat.max()) > 1:
        raise FormatError(f"a boolean tensor {spec.shape} holds a byte {int(flat.max())}; only 0 and 1 are booleans")
    return flat.view(spec.dtype).reshape(spec.shape)


@register
class Raw(Packer):
    """Every element as it is, any dtype."""

    number = 1
    name = "raw"
    rank = 30
    training_safe = True
    dtypes: ClassVar[frozenset[torch.dtype]] = frozenset()
    summary = "the elements themselves, without a copy"
    ratio = "1"
    error = "none"

    def pack(self, tensor: torch.Tensor) -> tuple[Buffer, Params]:
        """The tensor's own memory."""
        return elements(tensor), Params()

    def max_bytes(self, spec: Spec) -> int:
        """Exactly the elements."""
        return spec.nbytes

    def unpack(self, data: memoryview, params: Params, spec: Spec) -> torch.Tensor:
        """A tensor over `data`."""
        return tensor_of(data, spec)
