"""What a client keeps of the parts of its model that run elsewhere: everything but their weights."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fogline.common.errors import ConfigError, InputError, ProtocolError
from fogline.common.split import weights as weight_files
from fogline.common.split.cuts import Cut
from fogline.common.split.segments import Segment
from fogline.common.split.structure import plain_leaves, tensors
from fogline.common.tails import outputs
from fogline.common.tails.modes import fixed_in, modes_that_draw
from fogline.common.tails.setup import InputSpec, described_call

Ends = tuple[str | None, str | None]


@dataclass
class Parts:
    """See the module."""

    cuts: tuple[Ends, ...]
    architecture: str
    max_tensors: int
    call: str
    inputs: tuple[InputSpec, ...]
    input_names: tuple[str, ...]  # those of `inputs`
    further: bool  # the second part runs further up
    untrainable: str
    draws: frozenset[bool]  # in which modes they draw random numbers: training, or not
    fixed: tuple[str, ...]  # modules that keep a mode of their own, which is
    fixed_training: bool
    order: tuple[str, ...]  # every parameter of the model
    names: frozenset[str]  # the parameters of the parts
    classes: outputs.Classes
    _signature: inspect.Signature
    _constants: Mapping[str, Any]
    _dtypes: tuple[tuple[tuple[str, Any], ...], ...]  # of what goes over each cut: names and dtypes
    _segments: list[Segment] = field(default_factory=list)

    @classmethod
    def of(cls, given: Segment | Sequence[Segment | None], at: Any = None) -> Parts:
        """From `RemoteTail.connect`'s weights and at. Raises ConfigError, InputError."""
        listed = [given] if isinstance(given, Segment) else list(given)
        segments = [s for s in listed if s is not None]
        if not segments or not all(isinstance(s, Segment) for s in segments):
            raise ConfigError("weights: pass the tail (or middle and tail) that split(model, at=…) returned")
        for segment in segments:
            if not segment.resolved:
                raise InputError(
                    "the model was not traced yet, so nobody knows what the tail's weights are; call "
                    "cuts(model, example) first, pass example= to split, or call the head once"
                )
        chained = len(listed) == 2 and (listed[0] is None or listed[0].at[1] is not None)
        last, further = segments[-1], chained and listed[1] is not None
        if chained:
            begin = segments[0].at[0]
            end = listed[1].at[0] if listed[1] is not None else None
            ends: tuple[Ends, ...] = ((begin, end),)
            if listed[0] is not None and listed[1] is not None and listed[0].at[1] != listed[1].at[0]:
                raise ConfigError(
                    f"weights: the middle ends at {listed[0].at[1]!r}, the tail begins at {listed[1].at[0]!r}"
                )
        else:
            ends = tuple(s.at for s in segments)
            if any(end is not None for _, end in ends):
                raise ConfigError("weights: a part that ends before the model does, and nothing that follows it")
        _agree(at, ends, further)
        plan = last.plan
        fixed, fixed_training = fixed_in(segments)
        call, inputs, names = described_call(segments[0])
        trace = plan.analysis.evaluation.trace
        return cls(
            cuts=ends,
            architecture=plan.analysis.architecture,
            max_tensors=max(1, *(len(s.input_spec) for s in segments if s.at[0] is not None), 1),
            call=call,
            inputs=inputs,
            input_names=names,
            further=further,
            untrainable=next((s.untrainable for s in segments if s.untrainable), ""),
            draws=frozenset().union(*(modes_that_draw(s, fixed, fixed_training) for s in segments)),
            fixed=fixed,
            fixed_training=fixed_training,
            order=tuple(known[0] for known in trace.parameters.values()),
            names=frozenset(name for s in segments for name, _ in s.named_parameters()),
            classes=outputs.classes_of(trace.calls[0].template),
            _signature=segments[0].signature,
            _constants=trace.constants,
            _dtypes=tuple(tuple((spec.name, spec.dtype) for spec in s.input_spec) for s in segments),
            _segments=segments if chained else segments[:1],
        )

    def files(self) -> list[bytes]:
        """The weights of each part that is sent. Those of the first of several cuts hold the others'."""
        return [weight_files.save(segment) for segment in self._segments]

    def drop(self) -> None:
        """Let the weights go."""
        self._segments = []

    def cut(self, at: str | None) -> int:
        """The number of a cut. Raises InputError."""
        if at is None:
            return 0
        begins = [begin for begin, _ in self.cuts]
        if at not in begins:
            raise InputError(
                f"at={at!r}: this session has cuts {', '.join(map(repr, begins))}; connect with weights of it"
            )
        return begins.index(at)

    def flat(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], cut: int) -> list[Tensor]:
        """The tensors to send. Raises InputError for other than what goes over the cut."""
        if self.cuts[cut][0] is None:
            return self._model_inputs(args, kwargs)
        given = list(args[0]) if len(args) == 1 and isinstance(args[0], (tuple, list)) else list(args)
        wanted = self._dtypes[cut]
        if kwargs or len(given) != len(wanted) or not all(isinstance(t, Tensor) for t in given):
            raise InputError(
                f"the tail takes {len(wanted)} tensors ({', '.join(name for name, _ in wanted)}), got "
                f"{', '.join([type(t).__name__ for t in given] + list(kwargs)) or 'nothing'}; pass what the head "
                "returned"
            )
        return given

    def _model_inputs(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> list[Tensor]:
        try:
            bound = self._signature.bind(*args, **kwargs)
        except TypeError as error:
            raise InputError(f"the model's forward: {error}; pass what the model itself takes") from error
        named = dict(bound.arguments)
        for name, parameter in self._signature.parameters.items():
            if parameter.kind is inspect.Parameter.VAR_KEYWORD:
                named |= named.pop(name, {})
        found = {f.path: f.tensor for f in tensors(named)}
        if odd := sorted(found.keys() ^ set(self.input_names)):
            raise InputError(
                f"input {odd[0]!r} is given either here or in the example, not in both; use such an example"
            )
        constants = plain_leaves(named)
        for key in constants.keys() | self._constants.keys():
            if constants.get(key) != self._constants.get(key):
                raise InputError(
                    f"argument {key!r} is {constants.get(key)!r}, and was {self._constants.get(key)!r} on the example; "
                    "the host can't know. Call split with an example that has it"
                )
        return [found[name] for name in self.input_names]


def _agree(at: Any, ends: tuple[Ends, ...], further: bool) -> None:
    """Raise ConfigError where `at` says another place than the parts do."""
    if at is None:
        return
    names = [p.name if isinstance(p, Cut) else p for p in (at if isinstance(at, (tuple, list)) else [at])]
    have: list[str | None] = list(ends[0]) if further else [begin for begin, _ in ends]
    if names != have and names != list(ends[0]):
        raise ConfigError(
            f"at={at!r}, but the weights are of a part cut at {have}; pass what split(model, at={at!r}) gave"
        )


def digest(files: Sequence[bytes]) -> str:
    """What a setup calls the weights by: the SHA-256 of their file, or of the digests of several."""
    found = [hashlib.sha256(data).digest() for data in files]
    return found[0].hex() if len(found) == 1 else hashlib.sha256(b"".join(found)).hexdigest()


def read_weights(data: bytes) -> dict[str, Tensor]:
    """A safetensors file that came from a host. Raises ProtocolError."""
    try:
        found: dict[str, Tensor] = load(data)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise ProtocolError(f"the weights that came are no safetensors file: {str(error)[:200]}") from error
    return found


def write_weights(tensors: Mapping[str, Tensor]) -> bytes:
    """Such a file, of tensors by name."""
    return bytes(save({n: t.detach().cpu().contiguous() for n, t in tensors.items()}, {"format": "fogline-segment-1"}))
