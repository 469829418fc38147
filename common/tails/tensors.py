"""Tensors of torch as they cross the wire: types, memory layout, and the codec of one direction of a session.

Where nothing is lost on the way, the layout is kept too: a gradient that the unsplit model would hand on transposed, or
expanded from fewer values, is the same on the other host. Kernels sum in the order of memory, so bits depend on it. The
name of a tensor is its number among those of its role, then what is particular: `2`, `2:0231` (its dims from the
largest stride to the smallest), `2:0123:23` (dims 2 and 3 are expanded: one value is sent for each).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from typing import Generic, TypeVar

import torch
from torch import Tensor

from fogline.common.codecs import Chain
from fogline.common.codecs.chain import CodedStage, Decoder, Encoder
from fogline.common.codecs.raw import elements
from fogline.common.errors import FormatError, InputError, ProtocolError
from fogline.common.split.layout import Layout, pack, unpack
from fogline.common.wire.tensors import Buffer, Dtype, Role, Stage, TensorHeader

TO_WIRE: dict[torch.dtype, Dtype] = {
    torch.float32: Dtype.FLOAT32,
    torch.float16: Dtype.FLOAT16,
    torch.bfloat16: Dtype.BFLOAT16,
    torch.float64: Dtype.FLOAT64,
    torch.uint8: Dtype.UINT8,
    torch.int8: Dtype.INT8,
    torch.int16: Dtype.INT16,
    torch.int32: Dtype.INT32,
    torch.int64: Dtype.INT64,
    torch.bool: Dtype.BOOL,
}
FROM_WIRE = {wire: dtype for dtype, wire in TO_WIRE.items()}
MAX_NUMBERS = 64  # tensors of a role in a step
_EXPANDED = frozenset({Role.GRADIENT, Role.OUTPUT_GRADIENT})
_NAME = re.compile(r"(\d{1,4})(?::([0-7]{1,8})(?::([0-7]{1,8}))?)?")


E = TypeVar("E", Encoder, Decoder)


class _Ends(Generic[E]):
    """A coder for each tensor of a step, by number: what one remembers is of that tensor, and of no other."""

    def __init__(self, make: Callable[[], E]) -> None:
        self._make: Callable[[], E] = make
        self._made: dict[int, E] = {0: make()}

    def of(self, number: int) -> E:
        """The coder; made where it is new."""
        if number not in self._made:
            self._made[number] = self._make()
        return self._made[number]

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps, by "number/key"."""
        return {f"{n}/{key}": value for n, end in self._made.items() for key, value in end.state_dict().items()}

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`. Raises FormatError."""
        found: dict[int, dict[str, Tensor]] = {0: {}}
        for name, value in state.items():
            number, _, key = name.partition("/")
            if not number.isdecimal() or int(number) >= MAX_NUMBERS:
                raise FormatError(f"codec state {name[:80]!r} is of no tensor of a step")
            found.setdefault(int(number), {})[key] = value
        for at, own in found.items():
            self.of(at).load_state_dict(own)


class Sender:
    """Codes the tensors of one direction."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._ends = _Ends(chain.encoder)

    @property
    def first(self) -> Encoder:
        """That of tensors of number 0."""
        return self._ends.of(0)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self._ends.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`. Raises FormatError."""
        self._ends.load_state_dict(state)

    def send(
        self, role: Role, number: int, tensor: Tensor, *, training: bool, keep: bool = False
    ) -> tuple[TensorHeader, Buffer]:
        """Header and payload. The payload may be the tensor's own memory, unless it is to be kept while that changes.

        Raises InputError for what can't travel.
        """
        if tensor.dtype not in TO_WIRE:
            raise InputError(f"a tensor of {tensor.dtype} can't travel; convert it to one of {_names()}")
        tensor, name = tensor.detach(), str(number)
        if self.chain.lossless:
            tensor, name = _packed(tensor, name, expand=role in _EXPANDED)
        coded = self._ends.of(number).encode(tensor, training=training)
        stages = tuple(Stage(s.number, s.version, s.params) for s in coded.stages)
        size = memoryview(coded.payload).nbytes
        payload = bytes(coded.payload) if keep and coded.borrowed else coded.payload
        return TensorHeader(role, TO_WIRE[coded.dtype], tuple(coded.shape), size, stages, name), payload


class Receiver:
    """Decodes the tensors of one direction."""

    def __init__(self, chain: Chain) -> None:
        self.chain = chain
        self._ends = _Ends(chain.decoder)

    @property
    def first(self) -> Decoder:
        """That of tensors of number 0."""
        return self._ends.of(0)

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint keeps."""
        return self._ends.state_dict()

    def load_state_dict(self, state: Mapping[str, Tensor]) -> None:
        """Continue from `state_dict()`. Raises FormatError."""
        self._ends.load_state_dict(state)

    @staticmethod
    def number(header: TensorHeader) -> int:
        """Which of its role a tensor is. Raises ProtocolError."""
        match = _NAME.fullmatch(header.name)
        if match is None:
            raise ProtocolError(
                f"a tensor {header.role.name.lower()} is called {header.name[:40]!r}; it must be numbered"
            )
        return int(match[1])

    def receive(self, header: TensorHeader, part: Buffer, like: Tensor | None = None) -> tuple[int, Tensor]:
        """Number and tensor (on the CPU); `like` has the shape and dtype that it must be of, where these are known.

        Raises ProtocolError or FormatError.
        """
        match = _NAME.fullmatch(header.name)
        if match is None:
            raise ProtocolError(
                f"a tensor {header.role.name.lower()} is called {header.name[:40]!r}; it must be numbered"
            )
        stages = [CodedStage(s.number, s.version, s.params) for s in header.stages]
        if int(match[1]) >= MAX_NUMBERS:
            raise ProtocolError(f"a tensor is numbered {match[1]}; at most {MAX_NUMBERS - 1}")
        tensor = self._ends.of(int(match[1])).decode(stages, part, FROM_WIRE[header.dtype], header.shape)
        if match[2]:
            tensor = unpack(tensor, _layout(header.name, match, tensor.ndim, like))
        if like is not None and (tensor.shape != like.shape or tensor.dtype != like.dtype):
            raise ProtocolError(
                f"{header.role.name.lower()} {match[1]} is {tuple(tensor.shape)} of {tensor.dtype}; "
                f"{tuple(like.shape)} of {like.dtype} is wanted"
            )
        return int(match[1]), tensor


def _packed(tensor: Tensor, name: str, *, expand: bool) -> tuple[Tensor, str]:
    """The tensor as its memory has it, and what to call it; `expand`: the receiver knows its shape."""
    if not expand and any(s == 0 and n > 1 for s, n in zip(tensor.stride(), tensor.shape, strict=True)):
        tensor = tensor.contiguous()
    if tensor.is_contiguous() or not tensor.numel():
        return tensor, name
    packed, layout = pack(tensor)
    if layout.plain:
        return packed, name
    order, expanded = "".join(map(str, layout.order)), "".join(str(d) for d, n in enumerate(layout.broadcast) if n)
    return packed, f"{name}:{order}" + (f":{expanded}" if expanded else "")


def _layout(name: str, match: re.Match[str], dims: int, like: Tensor | None) -> Layout:
    """What `_packed` said. Raises ProtocolError where sizes to expand to are not known."""
    broadcast = [0] * dims
    for dim in map(int, match[3] or ""):
        if like is None or like.ndim != dims or dim >= dims:
            raise ProtocolError(f"tensor {name!r} can't be expanded in dim {dim}")
        broadcast[dim] = like.shape[dim]
    return Layout(tuple(map(int, match[2])), tuple(broadcast))


def raw(role: Role, tensor: Tensor, name: str = "") -> tuple[TensorHeader, Buffer]:
    """Header and payload of a tensor that no codec touches: labels, losses, states of generators."""
    data = tensor.detach().cpu().contiguous()
    part: Buffer = elements(data) if data.numel() else b""
    return TensorHeader(role, TO_WIRE[data.dtype], tuple(data.shape), data.nbytes, (), name), part


def read_raw(header: TensorHeader, part: Buffer) -> Tensor:
    """The other way; the tensor may share the memory of `part`. Raises ProtocolError for a coded tensor."""
    if header.stages:
        raise ProtocolError(f"tensor {header.role.name.lower()} is coded; it must be raw")
    dtype = FROM_WIRE[header.dtype]
    if not header.coded_bytes:
        return torch.empty(header.shape, dtype=dtype)
    writable = part if not memoryview(part).readonly else bytearray(part)
    if dtype is torch.bool and int(torch.frombuffer(writable, dtype=torch.uint8).max()) > 1:
        raise ProtocolError("a bool tensor has bytes other than 0 and 1")
    return torch.frombuffer(writable, dtype=dtype).reshape(header.shape)


def of_role(headers: Sequence[TensorHeader], parts: Sequence[Buffer], role: Role) -> list[tuple[TensorHeader, Buffer]]:
    """The tensors of a role, in order."""
    return [(h, p) for h, p in zip(headers, parts, strict=True) if h.role is role]


def _names() -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in TO_WIRE)
