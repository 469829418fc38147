"""A segment's weights as one safetensors file, and the hash by which two hosts know that they hold the same."""

from __future__ import annotations

import hashlib

import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_safetensors
from safetensors.torch import save as save_safetensors
from torch import Tensor, nn

from fogline.common.errors import FormatError, InputError

_FORMAT = "fogline-segment-1"
_SHOWN = 300  # characters of another library's message


def save(segment: nn.Module) -> bytes:
    """Parameters and persistent buffers of `segment` under the model's names, as a safetensors file.

    Equal weights give equal bytes. Tensors that share memory (tied weights) are written once, under their first name.
    Raises InputError when the state holds something that isn't a dense tensor.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in _once(segment).items()}
    return bytes(save_safetensors(tensors, {"format": _FORMAT}))


def load(segment: nn.Module, data: bytes) -> None:
    """Copy weights from `save` into `segment`, all or nothing. The segment keeps its device.

    Raises FormatError when `data` is no such file, or names, shapes or dtypes are not the segment's.
    """
    try:
        found = load_safetensors(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FormatError(f"weights: not a safetensors file ({str(error)[:_SHOWN]}); send them again") from error
    wanted = _once(segment)
    for name in sorted(wanted.keys() | found.keys()):
        have, need = (_describe(tensors.get(name)) for tensors in (found, wanted))
        if have != need:
            raise FormatError(
                f"weights: tensor {name!r} is {have}, and {need} in this part of the model; both hosts must build the "
                "same model with the same arguments and cut it at the same place"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(found[name])


def digest(data: bytes) -> str:
    """SHA-256 of a file from `save`, in hexadecimal."""
    return hashlib.sha256(data).hexdigest()


def _once(segment: nn.Module) -> dict[str, Tensor]:
    """The state by name, one name for each tensor."""
    state: dict[str, Tensor] = {}
    seen: dict[tuple[object, ...], str] = {}
    for name, tensor in segment.state_dict(keep_vars=True).items():
        if not isinstance(tensor, Tensor) or tensor.layout is not torch.strided:
            raise InputError(f"weights: {name!r} is {type(tensor).__name__}, not a dense tensor; it can't be sent")
        memory = (tensor.data_ptr(), tuple(tensor.shape), tensor.stride(), tensor.dtype)
        if tensor.numel() and memory in seen:
            continue
        seen[memory] = name
        state[name] = tensor
    return state


def _describe(tensor: Tensor | None) -> str:
    return "absent" if tensor is None else f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"
