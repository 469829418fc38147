"""The kinds of stages that tensor codecs are made of, and their registry.

A chain is transforms (tensor to tensor), then one packer (tensor to bytes), then compressors (bytes to bytes). A stage
object belongs to one session and direction and may keep state. Whatever is decoded came from a peer: parameters and
sizes are checked before anything is allocated, and nothing but FormatError leaves a decoding method.
"""

from __future__ import annotations

import logging
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib.metadata import entry_points
from typing import Any, ClassVar, Literal, TypeVar

import msgspec
import torch

from fogline.common.errors import ConfigError, FormatError

_log = logging.getLogger(__name__)
Buffer = bytes | bytearray | memoryview
Adjoint = Literal["straight-through", "self"]

FLOATS = frozenset({torch.float32, torch.float16, torch.bfloat16, torch.float64})
ENTRY_POINTS = "fogline.codecs"  # of packages with codecs of their own; their numbers start at 1000
MAX_PARAMS = 64 * 1024  # bytes, of one stage; larger tables go into the payload


@dataclass(frozen=True)
class Spec:
    """Type and shape of a tensor."""

    dtype: torch.dtype
    shape: tuple[int, ...]

    @classmethod
    def of(cls, tensor: torch.Tensor) -> Spec:
        """What `tensor` is."""
        return cls(tensor.dtype, tuple(tensor.shape))

    @property
    def numel(self) -> int:
        """Elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Bytes of the elements."""
        return self.numel * self.dtype.itemsize


class Options(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a user sets of a stage; both ends hold the same."""


class Params(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True, array_like=True):
    """What a stage says of one tensor; travels with it."""


class Stage(ABC):
    """One stage of a chain, for one session and direction."""

    number: ClassVar[int]  # on the wire; never reused
    version: ClassVar[int] = 1
    name: ClassVar[str]
    rank: ClassVar[int]  # a chain's stages have rising ranks
    training_safe: ClassVar[bool]  # trained through it, a small network ended within a point of raw
    adjoint: ClassVar[Adjoint] = "straight-through"  # "self": gradients must come back through the same stage
    dtypes: ClassVar[frozenset[torch.dtype]] = FLOATS  # others travel without the chain's lossy stages
    options_type: ClassVar[type[Options]] = Options
    params_type: ClassVar[type[Params]] = Params
    summary: ClassVar[str]  # for the reference page
    error: ClassVar[str]
    ratio: ClassVar[str]

    def __init__(self, options: Options) -> None:  # noqa: B027  most stages have no options
        """`options` is an instance of the class's `options_type`."""

    def heavy(self) -> str:
        """Why nobody may have another host encode with such options; empty where they may."""
        return ""

    def fingerprint(self) -> bytes:
        """What both ends must have in common beyond the options; b"" when nothing."""
        return b""

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint has to keep."""
        return {}

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state_dict()`. Raises FormatError for a state of another stage."""
        if state:
            raise FormatError(
                f"codec {self.name} has no state, the checkpoint has {sorted(state)}; other codecs made it"
            )

    def observe(self, **measured: float) -> None:  # noqa: B027  most stages learn nothing from the receiver
        """Take what the receiving end measured of a step (see `errbound`)."""

    def feedback(self) -> dict[str, float]:
        """What the sending end's stage should do differently from now on; {} when nothing changed."""
        return {}

    def apply(self, feedback: Mapping[str, float]) -> None:
        """Follow the receiving end's `feedback`. Raises FormatError for what can't be followed."""
        if feedback:
            raise FormatError(f"codec {self.name} takes no feedback, the peer sent {sorted(feedback)[:4]}")


class Transform(Stage):
    """Tensor to tensor. A transform may also write a side table, whose size the parameters tell."""

    remembers: ClassVar[bool] = False  # `settle` wants what the receiver will have decoded

    @abstractmethod
    def encode(self, tensor: torch.Tensor, training: bool) -> tuple[torch.Tensor, Params, Buffer]:
        """A contiguous CPU tensor of an allowed dtype, not empty, to (coded, parameters, side table).

        Raises InputError for values that it can't carry. State changes in `settle` only.
        """

    def settle(self, decoded: torch.Tensor) -> None:
        """Take what will be decoded of the last `encode(training=True)`; called when the whole chain has succeeded."""

    @abstractmethod
    def coded(self, spec: Spec, params: Any) -> Spec:
        """What a tensor of `spec` is once coded. Raises FormatError for parameters that don't fit."""

    def side_bytes(self, spec: Spec, params: Any) -> int:
        """Bytes of the side table for a tensor of `spec`."""
        return 0

    @abstractmethod
    def decode(self, tensor: torch.Tensor, params: Any, side: memoryview, spec: Spec) -> torch.Tensor:
        """The other way; returns a tensor of `spec`."""


class Packer(Stage):
    """Tensor to bytes."""

    @abstractmethod
    def pack(self, tensor: torch.Tensor) -> tuple[Buffer, Params]:
        """A contiguous CPU tensor of an allowed dtype, not empty, to bytes. Raises InputError."""

    @abstractmethod
    def max_bytes(self, spec: Spec) -> int:
        """The most that a tensor of `spec` can need."""

    @abstractmethod
    def unpack(self, data: memoryview, params: Any, spec: Spec) -> torch.Tensor:
        """The other way. Raises FormatError unless `data` is exactly one tensor of `spec`."""


class Compressor(Stage):
    """Bytes to fewer bytes, without loss."""

    dtypes: ClassVar[frozenset[torch.dtype]] = frozenset()  # takes any

    @abstractmethod
    def compress(self, data: Buffer) -> tuple[Buffer, Params] | None:
        """Compressed bytes and parameters, or None where it does not pay; the stage is then left out."""

    @abstractmethod
    def expand(self, data: memoryview, params: Any, limit: int) -> bytearray:
        """The other way. Raises FormatError for more than `limit` bytes, before they are allocated."""


_STAGES: dict[str, type[Stage]] = {}
S = TypeVar("S", bound=type[Stage])


def register(cls: S) -> S:
    """Class decorator: add a stage to the registry, under its name and number."""
    for other in _STAGES.values():
        if cls.number == other.number or cls.name == other.name:
            raise ValueError(
                f"codec {cls.name} ({cls.number}): name or number is taken by {other.name} ({other.number})"
            )
    _STAGES[cls.name] = cls
    return cls


def stages() -> dict[str, type[Stage]]:
    """Every registered stage by its name, in the order of numbers."""
    return dict(sorted(_STAGES.items(), key=lambda item: item[1].number))


@cache
def _import_others() -> None:
    """Import the codecs of installed packages, which register themselves; one that can't be is told and left out."""
    for entry in entry_points(group=ENTRY_POINTS):
        try:
            entry.load()
        except Exception as error:  # noqa: BLE001 - somebody else's code, which may raise anything
            _log.warning("codec %s (%s) can't be imported: %s", entry.name, entry.value, error)


def configure(name: str, options: Mapping[str, Any]) -> tuple[type[Stage], Options]:
    """A stage's class and its checked options. Raises ConfigError."""
    if name not in _STAGES:
        _import_others()
    cls = _STAGES.get(name)
    if cls is None:
        raise ConfigError(f"codec {name!r} is unknown; known: {', '.join(stages())}")
    try:
        made = msgspec.convert(dict(options), cls.options_type, strict=False)
    except msgspec.ValidationError as error:
        known = ", ".join(cls.options_type.__struct_fields__) or "none"
        raise ConfigError(f"codec {name}: {error}; its options: {known}") from error
    return cls, made


def read_params(stage: Stage, data: bytes) -> Params:
    """Parse what a peer says of a tensor. Raises FormatError."""
    if len(data) > MAX_PARAMS:
        raise FormatError(f"codec {stage.name}: parameters of {len(data)} bytes; at most {MAX_PARAMS}")
    try:
        return msgspec.msgpack.decode(data, type=stage.params_type)
    except (msgspec.DecodeError, RecursionError) as error:
        raise FormatError(f"codec {stage.name}: parameters are malformed: {error}") from error
