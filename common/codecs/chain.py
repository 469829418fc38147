"""A chain of stages as a user writes it, and its two ends: an encoder and a decoder for one session and direction."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import msgspec
import torch

from fogline.common.codecs.base import (
    MAX_PARAMS,
    Adjoint,
    Buffer,
    Compressor,
    Options,
    Packer,
    Params,
    Spec,
    Stage,
    Transform,
    configure,
    read_params,
)
from fogline.common.codecs.order import check_order
from fogline.common.codecs.raw import Raw
from fogline.common.errors import ConfigError, FormatError, InputError, InternalError

MAX_STAGES = 4
_STAGE = re.compile(r"\s*([a-z0-9-]+)\s*(?:\(([^()]*)\))?\s*")


class StageHeader(Protocol):
    """What a decoder reads of a stage in a received header."""

    @property
    def number(self) -> int:
        """Of the codec."""

    @property
    def version(self) -> int:
        """Of its format."""

    @property
    def params(self) -> bytes:
        """Of this tensor; msgpack."""


class CodedStage(NamedTuple):
    """A stage as it travels in a tensor's header."""

    number: int
    version: int
    params: bytes


@dataclass(frozen=True)
class Encoded:
    """A coded tensor. `borrowed`: the payload is the tensor's own memory, which must stay as it is until sent."""

    stages: tuple[CodedStage, ...]
    payload: Buffer
    dtype: torch.dtype  # of the tensor, not of what is sent
    shape: tuple[int, ...]
    borrowed: bool = False


class Chain:
    """Codec stages in order, checked; immutable. `Chain.parse("c3sl(ratio=4)+fp16+zstd")`."""

    def __init__(self, configured: Sequence[tuple[type[Stage], Options]]) -> None:
        """Raises ConfigError for an order that makes no sense."""
        kept = [(cls, options) for cls, options in configured if cls is not Raw]
        if len(kept) > MAX_STAGES:
            raise ConfigError(f"codec chain of {len(kept)} stages; at most {MAX_STAGES}")
        check_order([cls for cls, _ in configured])
        for cls, options in kept:
            cls(options)  # refuses options that exclude each other
        self._configured = tuple(kept)

    @classmethod
    def parse(cls, spec: str | Sequence[Mapping[str, Any] | str]) -> Chain:
        """From "name(option=value, …)+name" or a list of names and {name, option: value, …}. Raises ConfigError."""
        items = re.split(r"\+(?![^()]*\))", spec) if isinstance(spec, str) else spec
        return cls([configure(*_parse_stage(item)) for item in items])

    @property
    def spec(self) -> str:
        """The chain as text that `parse` takes, with every option that is not at its default."""
        return "+".join(_describe(cls, options) for cls, options in self._configured) or "raw"

    def __repr__(self) -> str:
        return f"Chain({self.spec!r})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Chain) and other._configured == self._configured

    def __hash__(self) -> int:
        return hash(self.spec)

    @property
    def numbers(self) -> tuple[int, ...]:
        """Numbers of the stages, as a header names them."""
        return tuple(cls.number for cls, _ in self._configured)

    @property
    def training_safe(self) -> bool:
        """Whether a small network trained through each stage ended within a point of raw."""
        return all(cls.training_safe for cls, _ in self._configured)

    @property
    def adjoint(self) -> Adjoint:
        """ "self": gradients must return through a chain with the same such stages; else any chain does."""
        return "self" if self.bound_stages else "straight-through"

    @property
    def bound_stages(self) -> tuple[str, ...]:
        """Stages, as text, that the chain of the other direction must have too."""
        return tuple(_describe(cls, options) for cls, options in self._configured if cls.adjoint == "self")

    @property
    def lossless(self) -> bool:
        """Whether every bit comes back."""
        return all(issubclass(cls, Compressor) for cls, _ in self._configured)

    @property
    def heavy(self) -> str:
        """Why nobody may have another host encode with it; empty where they may."""
        return next((why for cls, options in self._configured if (why := cls(options).heavy())), "")

    def fingerprint(self) -> bytes:
        """Eight bytes that differ where two ends would not understand each other: stages, versions, options, keys."""
        digest = hashlib.blake2b(digest_size=8)
        for cls, options in self._configured:
            own = cls(options).fingerprint()
            digest.update(msgspec.msgpack.encode([cls.number, cls.version, msgspec.to_builtins(options), own]))
        return digest.digest()

    def check_gradients(self, other: Chain) -> None:
        """Raise ConfigError unless `other` may carry the gradients of what this chain carries."""
        if self.bound_stages != other.bound_stages:
            want = "+".join(self.bound_stages) or "no such stage"
            raise ConfigError(
                f"activations go through {self.spec}, gradients through {other.spec}; the gradients' chain must begin "
                f"with {want} as well, or the tail would follow another function than the head"
            )

    def encoder(self) -> Encoder:
        """A sending end with fresh state."""
        return Encoder(self, [cls(options) for cls, options in self._configured])

    def decoder(self) -> Decoder:
        """A receiving end with fresh state."""
        return Decoder(self, [cls(options) for cls, options in self._configured])


class _End:
    """What the two ends have in common: the stages, sorted by kind, and their state."""

    def __init__(self, chain: Chain, stages: Sequence[Stage]) -> None:
        self.chain = chain
        self._stages = tuple(stages)
        self._transforms = tuple(s for s in stages if isinstance(s, Transform))
        packers = [s for s in stages if isinstance(s, Packer)]
        self._packer: Packer = packers[0] if packers else Raw(Options())
        self._compressors = tuple(s for s in stages if isinstance(s, Compressor))

    def _applies(self, spec: Spec) -> bool:
        """Whether the lossy stages apply; integers and tensors without elements travel without them."""
        wanted = (*self._transforms, self._packer)
        return spec.numel > 0 and all(not stage.dtypes or spec.dtype in stage.dtypes for stage in wanted)

    def _route(self, spec: Spec) -> tuple[tuple[Transform, ...], Packer]:
        return (self._transforms, self._packer) if self._applies(spec) else ((), Raw(Options()))

    def state_dict(self) -> dict[str, torch.Tensor]:
        """What a checkpoint keeps, by "position.name.key"."""
        return {
            f"{i}.{stage.name}.{key}": value
            for i, stage in enumerate(self._stages)
            for key, value in stage.state_dict().items()
        }

    def load_state_dict(self, state: Mapping[str, torch.Tensor]) -> None:
        """Continue from `state_dict()`. Raises FormatError for a state of another chain."""
        left = dict(state)
        for i, stage in enumerate(self._stages):
            prefix = f"{i}.{stage.name}."
            own = {key[len(prefix) :]: left.pop(key) for key in list(left) if key.startswith(prefix)}
            stage.load_state_dict(own)
        if left:
            raise FormatError(
                f"codec state {sorted(left)[:4]} fits no stage of {self.chain.spec}; it is of another chain"
            )


class Encoder(_End):
    """The sending end."""

    def encode(self, tensor: torch.Tensor, *, training: bool = True) -> Encoded:
        """Code a tensor of any shape, on any device.

        `training=False` leaves the session's state alone (inference must not disturb error feedback).
        Raises InputError for values that the chain can't carry; the state is then as before.
        """
        if tensor.layout != torch.strided or tensor.is_complex() or tensor.is_quantized:
            raise InputError(
                f"a tensor {tuple(tensor.shape)} of {tensor.dtype}, {tensor.layout}: only dense real ones travel"
            )
        data = tensor.detach().resolve_neg().to("cpu").contiguous()
        spec = Spec.of(data)
        transforms, packer = self._route(spec)
        made: list[CodedStage] = []
        steps: list[tuple[Transform, Spec, Params, memoryview]] = []
        for transform in transforms:
            before = Spec.of(data)
            data, params, side = transform.encode(data, training)
            data = data.contiguous()
            made.append(_stage(transform, params))
            steps.append((transform, before, params, memoryview(side)))
        packed, params = packer.pack(data)
        if not isinstance(packer, Raw):
            made.append(_stage(packer, params))
        sides = [side for _, _, _, side in steps if side.nbytes]
        payload: Buffer = b"".join([*sides, packed]) if sides else packed
        for compressor in self._compressors:
            small = compressor.compress(payload)
            if small is not None:
                payload = small[0]
                made.append(_stage(compressor, small[1]))
        if training:
            self._settle(steps, packer, packed, params, Spec.of(data))
        shared = isinstance(payload, memoryview) and data.data_ptr() == tensor.data_ptr()
        return Encoded(tuple(made), payload, spec.dtype, spec.shape, borrowed=shared)

    @staticmethod
    def _settle(
        steps: Sequence[tuple[Transform, Spec, Params, memoryview]],
        packer: Packer,
        packed: Buffer,
        params: Params,
        spec: Spec,
    ) -> None:
        """Tell stages that remember what the receiver decodes, so that they make up for the loss of later ones too."""
        if not any(transform.remembers for transform, _, _, _ in steps):
            return
        decoded = packer.unpack(memoryview(packed), params, spec)
        for transform, before, own, side in reversed(steps):
            decoded = transform.decode(decoded, own, side, before)
            if transform.remembers:
                transform.settle(decoded)

    def apply(self, feedback: Mapping[str, Mapping[str, float]]) -> None:
        """Follow what `Decoder.feedback` returned at the other end, from the next tensor on. Raises FormatError."""
        by_name = {stage.name: stage for stage in self._stages}
        for name, values in feedback.items():
            if name not in by_name:
                raise FormatError(f"feedback for codec {name[:40]!r}, which is not in {self.chain.spec}")
            by_name[name].apply(values)


class Decoder(_End):
    """The receiving end. Everything it is given is checked; sizes are bounded by the header's dtype and shape."""

    def decode(
        self, stages: Sequence[StageHeader], payload: Buffer, dtype: torch.dtype, shape: Sequence[int]
    ) -> torch.Tensor:
        """A CPU tensor of `dtype` and `shape`, sharing the memory of `payload` where that is raw and writable.

        Raises FormatError for anything but what the other end's encoder makes of such a tensor.
        """
        spec = Spec(dtype, tuple(shape))
        transforms, packer = self._route(spec)
        lossy: list[Stage] = [*transforms, *(() if isinstance(packer, Raw) else (packer,))]
        numbers = [stage.number for stage in stages]
        expected = [stage.number for stage in lossy]
        packing = [c for c in self._compressors if c.number in numbers[len(expected) :]]
        if numbers != expected + [c.number for c in packing]:
            raise FormatError(f"a tensor {spec.shape} of {dtype} coded by stages {numbers}; agreed: {self.chain.spec}")
        read: list[Any] = []
        for stage, coded in zip([*lossy, *packing], stages, strict=True):
            if not 1 <= coded.version <= stage.version:
                raise FormatError(f"codec {stage.name} version {coded.version}: this build reads 1 to {stage.version}")
            read.append(read_params(stage, coded.params))
        specs, sides = [spec], []
        for transform, params in zip(transforms, read, strict=False):
            sides.append(transform.side_bytes(specs[-1], params))
            specs.append(transform.coded(specs[-1], params))
        limit = sum(sides) + packer.max_bytes(specs[-1])
        for compressor, params in reversed(list(zip(packing, read[len(lossy) :], strict=True))):
            payload = compressor.expand(memoryview(payload), params, limit)
        view = memoryview(payload)
        if view.nbytes < sum(sides) or view.nbytes > limit:
            raise FormatError(
                f"a tensor {spec.shape} of {dtype} in {view.nbytes} bytes; {self.chain.spec} needs at most {limit}"
            )
        body = view[sum(sides) :]
        own = Params() if isinstance(packer, Raw) else read[len(transforms)]
        tensor = packer.unpack(body, own, specs[-1])
        end = sum(sides)
        for i in reversed(range(len(transforms))):
            tensor = transforms[i].decode(tensor, read[i], view[end - sides[i] : end], specs[i])
            end -= sides[i]
        if Spec.of(tensor) != spec:
            raise InternalError(f"{self.chain.spec} decoded {Spec.of(tensor)} instead of {spec}")
        return tensor

    def observe(self, **measured: float) -> None:
        """Tell the stages what a step's backward pass measured here (see `errbound`)."""
        for stage in self._stages:
            stage.observe(**measured)

    def feedback(self) -> dict[str, dict[str, float]]:
        """What the other end's `Encoder.apply` should be given, by codec name; {} when there is nothing new."""
        return {stage.name: found for stage in self._stages if (found := stage.feedback())}


def _stage(stage: Stage, params: Params) -> CodedStage:
    data = msgspec.msgpack.encode(params)
    if len(data) > MAX_PARAMS:
        raise InternalError(f"codec {stage.name} made parameters of {len(data)} bytes; tables belong in the payload")
    return CodedStage(stage.number, stage.version, data)


def _parse_stage(item: str | Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    if isinstance(item, Mapping):
        options = {str(key): value for key, value in item.items()}
        return str(options.pop("name", "")), options
    match = _STAGE.fullmatch(item) if isinstance(item, str) else None
    if match is None:
        raise ConfigError(f"codec {item!r}: write name or name(option=value, …), joined by +")
    options = {}
    for part in re.split(r",(?![^\[]*\])", match[2] or ""):
        if not part.strip():
            continue
        key, equals, value = (text.strip() for text in part.partition("="))
        if not equals:
            raise ConfigError(f"codec {item!r}: option {part.strip()!r} has no value; write option=value")
        options[key] = [v.strip() for v in value[1:-1].split(",")] if value.startswith("[") else value
    return match[1], options


def _describe(cls: type[Stage], options: Options) -> str:
    default = {f.name: f.default for f in msgspec.structs.fields(options)}
    shown = {
        key: value
        for key, value in msgspec.to_builtins(options).items()
        if default[key] is msgspec.NODEFAULT or value != default[key]
    }
    text = ", ".join(f"{key}={_text(value)}" for key, value in shown.items())
    return f"{cls.name}({text})" if text else cls.name


def _text(value: Any) -> str:
    if isinstance(value, list | tuple):
        return "[" + ", ".join(map(str, value)) + "]"
    return str(value).lower() if isinstance(value, bool) else str(value)
