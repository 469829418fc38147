"""What a client says of a session when it opens it: the model, the part of it, the optimizer, the codecs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

import msgspec
import torch
from msgspec import Meta
from torch import Tensor

from fogline.common.codecs import Chain
from fogline.common.errors import ConfigError, InputError, ProtocolError
from fogline.common.split.segments import Segment
from fogline.common.split.trace import Example
from fogline.common.tails import outputs
from fogline.common.tails.tensors import FROM_WIRE, TO_WIRE
from fogline.common.wire.tensors import Dtype

MAX_BYTES = 1 << 20
Name = Annotated[str, Meta(min_length=1, max_length=512)]
Digest = Annotated[str, Meta(pattern="^[0-9a-f]{64}$")]


class InputSpec(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A tensor among the example's arguments."""

    dtype: Annotated[int, Meta(ge=1, le=10)]
    shape: Annotated[tuple[Annotated[int, Meta(ge=0, le=1 << 24)], ...], Meta(max_length=8)]


class Codecs(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Chains of codecs, with what tells whether both ends mean the same by them."""

    activations: Annotated[str, Meta(max_length=512)] = "raw"
    gradients: Annotated[str, Meta(max_length=512)] = "raw"
    outputs: Annotated[str, Meta(max_length=512)] = "raw"
    output_gradients: Annotated[str, Meta(max_length=512)] = "raw"
    fingerprints: tuple[str, str, str, str] = ("", "", "", "")

    @classmethod
    def of(cls, activations: str, gradients: str, outputs: str, output_gradients: str) -> Codecs:
        """Checked, with fingerprints. Raises ConfigError."""
        chains = [Chain.parse(spec) for spec in (activations, gradients, outputs, output_gradients)]
        _check(chains)
        specs, prints = [c.spec for c in chains], [c.fingerprint().hex() for c in chains]
        return cls(specs[0], specs[1], specs[2], specs[3], (prints[0], prints[1], prints[2], prints[3]))

    def chains(self) -> tuple[Chain, Chain, Chain, Chain]:
        """Of activations, gradients, outputs and their gradients.

        Raises ConfigError, also where this end means something else by them (versions, keys).
        """
        made = []
        for spec, told in zip(
            (self.activations, self.gradients, self.outputs, self.output_gradients), self.fingerprints, strict=True
        ):
            chain = Chain.parse(spec)
            if told and chain.fingerprint().hex() != told:
                raise ConfigError(
                    f"codec {spec}: the two hosts have other versions or keys of it; update the older end"
                )
            made.append(chain)
        _check(made)
        return made[0], made[1], made[2], made[3]


def _check(chains: Sequence[Chain]) -> None:
    """Raise ConfigError for chains that don't go together, or that ask too much of the host, which encodes two."""
    chains[0].check_gradients(chains[1])
    chains[2].check_gradients(chains[3])
    for chain, option in ((chains[1], "gradient_codec"), (chains[2], "output_codec")):
        if chain.heavy:
            raise ConfigError(f"{option} {chain.spec} is encoded by the host, and {chain.heavy}")


class Setup(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """See the module. `cuts` are (begin, end) of the part; more than one only for inference."""

    model: Name
    architecture: Digest
    weights: Digest  # of the part's safetensors file
    cuts: Annotated[tuple[tuple[Name | None, Name | None], ...], Meta(min_length=1, max_length=64)]
    call: Annotated[str, Meta(max_length=256 * 1024)]  # the example's arguments, as `outputs.describe` writes them
    inputs: Annotated[tuple[InputSpec, ...], Meta(max_length=64)]
    kwargs: dict[str, Any] = {}
    max_tensors: Annotated[int, Meta(ge=1, le=64)] = 1
    optimizer: dict[str, Any] | None = None
    codecs: Codecs = Codecs()
    seed: Annotated[int, Meta(ge=0, le=(1 << 62))] = 0
    fixed: Annotated[tuple[Name, ...], Meta(max_length=4096)] = ()  # modules that keep a mode of their own, which is
    fixed_training: bool = False
    upstream: bool = False  # the weights are of this part and of all that follows it, which runs further up

    def pack(self) -> bytes:
        """As it travels."""
        return msgspec.json.encode(self)

    @classmethod
    def unpack(cls, data: bytes) -> Setup:
        """Raises ProtocolError for anything but what `pack` makes."""
        if len(data) > MAX_BYTES:
            raise ProtocolError(f"the setup of a session has {len(data)} bytes; at most {MAX_BYTES}")
        try:
            return msgspec.json.decode(data, type=cls)
        except (msgspec.DecodeError, RecursionError) as error:
            raise ProtocolError(f"the setup of a session is malformed: {error}; update the older end") from error

    def example(self, max_bytes: int) -> Example:
        """Arguments like those that the client traced its model on, with zeros. Raises ProtocolError."""
        # As if no dim were 0, which hides from a product that another one is out of all bounds.
        size = sum(math.prod(max(1, n) for n in spec.shape) * Dtype(spec.dtype).itemsize for spec in self.inputs)
        if size > max_bytes:
            raise ProtocolError(
                f"the example's inputs have {size} bytes; at most {max_bytes}. Call split with a smaller example"
            )

        def zeros(i: int) -> Tensor:
            spec = self.inputs[i]
            return torch.zeros(spec.shape, dtype=FROM_WIRE[Dtype(spec.dtype)])

        made = outputs.rebuild(self.call.encode(), len(self.inputs), zeros, {})
        if not isinstance(made, tuple) or len(made) != 2 or not isinstance(made[1], dict):
            raise ProtocolError("the setup of a session has malformed arguments")
        return Example(tuple(made[0]), made[1])


def described_call(segment: Segment) -> tuple[str, tuple[InputSpec, ...], tuple[str, ...]]:
    """`call` and `inputs` of the setup, and the names of these. Raises InputError for what can't be described."""
    plan = segment.plan
    described, slots = outputs.describe(plan.analysis.call)
    specs: list[InputSpec] = []
    names = tuple(plan.input_names[slot.index] for slot in slots)
    for name in names:
        spec = plan.specs[name]
        if spec.dtype not in TO_WIRE:
            raise InputError(f"input {spec.name!r} is of {spec.dtype}, which can't travel")
        specs.append(InputSpec(TO_WIRE[spec.dtype], spec.shape))
    return described.decode(), tuple(specs), names


def json_able(kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of the model's function as JSON gives them back. Raises ConfigError."""
    try:
        made = msgspec.json.decode(msgspec.json.encode(dict(kwargs)))
    except (TypeError, ValueError) as error:
        raise ConfigError(f"kwargs of the model: {error}; pass numbers, texts, lists and dicts") from error
    assert isinstance(made, dict)
    return made
