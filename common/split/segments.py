"""`split(model, at)`: a model as two or three modules that compute together, bit for bit, what it computes alone.

Each segment runs the model's own forward on a copy of its modules that shares the parameters. A head leaves the
forward where the cut is. A tail skips the calls that the head made, computes with absent tensors until the cut, and
goes on from there with the tensors that it received.
"""

from __future__ import annotations

import inspect
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from fogline.common.errors import InputError
from fogline.common.split.absent import Absent, Phase, absent, phase
from fogline.common.split.analysis import Analysis, Place, TensorSpec
from fogline.common.split.cuts import Cut, analyse, kept
from fogline.common.split.layout import as_ordered
from fogline.common.split.liveness import Key
from fogline.common.split.sizes import solve, told
from fogline.common.split.structure import fill, plain_leaves, tensors
from fogline.common.split.trace import Example, arguments, called, clone

At = str | Cut | None


class _Reached(BaseException):
    """The forward has come to the segment's end. Not an Exception, which a model might catch."""


class _Running(Phase):
    """One call of a segment."""

    def __init__(self, name: str, received: list[Tensor], sizes: tuple[int, int], device: torch.device) -> None:
        super().__init__(name, received=False)
        self.tensors, self.sizes, self.device = received, sizes, device
        self.counts: dict[str, int] = {}
        self.outputs: tuple[Tensor, ...] = ()
        self.random: Tensor | None = None


class _Door:
    """Stands in the calls of one module that are skipped, received or the last."""

    def __init__(self, module: nn.Module, path: str) -> None:
        self.module, self.path = module, path
        self.actions: dict[int, Callable[[_Running, _Door, Any, Any], Any]] = {}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        now = phase.get()
        if not isinstance(now, _Running):
            return called(self.module, args, kwargs)
        k = now.counts[self.path] = now.counts.get(self.path, 0) + 1
        action = self.actions.get(k)
        return action(now, self, args, kwargs) if action else called(self.module, args, kwargs)


class _Skip:
    """Return what the call returned on the example, as absent tensors of the sizes of this run."""

    def __init__(self, structure: Any, specs: tuple[TensorSpec, ...]) -> None:
        self.structure, self.specs = structure, specs

    def __call__(self, now: _Running, door: _Door, args: Any, kwargs: Any) -> Any:
        return fill(self.structure, lambda i: _absent_of(self.specs[i], now))


class _Receive:
    """Return the received tensors in the place of the call's own."""

    def __init__(self, structure: Any, specs: tuple[TensorSpec, ...], place: Place) -> None:
        self.structure, self.specs = structure, specs
        self.number = {spec.name: n for n, spec in enumerate(place.leaves)}

    def __call__(self, now: _Running, door: _Door, args: Any, kwargs: Any) -> Any:
        now.received = True
        if now.random is not None:
            torch.set_rng_state(now.random)

        def value(i: int) -> Tensor:
            number = self.number.get(self.specs[i].name)
            return _absent_of(self.specs[i], now) if number is None else now.tensors[number]

        return fill(self.structure, value)


class _Stop:
    """Let the module run, keep what it returned, and leave the forward."""

    def __init__(self, place: Place) -> None:
        self.names = [spec.name for spec in place.leaves]

    def __call__(self, now: _Running, door: _Door, args: Any, kwargs: Any) -> Any:
        found = {f.path: f.tensor for f in tensors(called(door.module, args, kwargs))}
        if missing := [name for name in self.names if name not in found]:
            raise InputError(
                f"{now.name}: {door.path!r} returned no tensor {missing[0]!r}, as it did on the example; "
                "call split with an example that takes this path"
            )
        now.outputs = tuple(found[name] for name in self.names)
        raise _Reached


class Plan:
    """What a segment needs to know: resolved once an example is there."""

    def __init__(self, analysis: Analysis, begin: Place | None, end: Place | None) -> None:
        self.analysis, self.begin, self.end = analysis, begin, end
        self.parameters, self.buffers = analysis.owned(begin, end)
        if begin and end and (lost := {s.name for s in end.inputs} - {s.name for s in begin.inputs}):
            raise InputError(
                f"cut {end.name!r} needs input {sorted(lost)[0]!r}, which does not go over cut {begin.name!r}; "
                "use another pair of cuts"
            )
        self.trace = analysis.evaluation.trace
        self.input_names = list(self.trace.inputs)
        self.signature = analysis.signature
        self.specs = {spec.name: spec for spec in analysis.inputs}

    @property
    def input_spec(self) -> tuple[TensorSpec, ...]:
        """What the segment takes: the cut's tensors, or the model's inputs."""
        return self.begin.tensors if self.begin else self.analysis.inputs

    @property
    def output_spec(self) -> tuple[TensorSpec, ...]:
        """What it returns: the cut's tensors, or those of the model's output."""
        return self.end.tensors if self.end else self.analysis.output

    def skipped(self) -> list[Key]:
        """The calls before the begin that need not run."""
        assert self.begin is not None
        live = self.analysis.evaluation
        keep = {live.keys[key] for key in self.begin.rerun if key in live.keys}
        return [self.trace.calls[n].key for n in sorted(live.skipped(self.begin.evaluation.call, keep))]


class Segment(nn.Module):
    """A part of a model between two cuts.

    Its parameters, buffers and `state_dict` are those that it uses, under the names that they have in the model, and
    shared with the model. `train()` and `eval()` act on this segment alone.
    """

    def __init__(self, model: nn.Module, name: str) -> None:
        super().__init__()
        self._name = name
        # In a tuple, so that its modules don't become this one's: first the whole model, then this segment's copy.
        self._model = (model,)
        self._plan: Plan | None = None
        self._pending: Callable[[Example], None] | None = None
        self.training = model.training

    @property
    def at(self) -> tuple[str | None, str | None]:
        """The cuts where it begins and ends; None for the model's own begin and end."""
        plan = self.plan
        return plan.begin.name if plan.begin else None, plan.end.name if plan.end else None

    @property
    def resolved(self) -> bool:
        """Whether the model was traced; until then only calling the first segment is possible."""
        return self._plan is not None

    @property
    def plan(self) -> Plan:
        """The plan. Raises InputError before an example is known."""
        plan = self._plan
        if plan is None:
            raise InputError(
                f"{self._name}: the model was not traced yet, so nobody knows what belongs to this segment; "
                "call cuts(model, example) first, pass example= to split, or call the head once"
            )
        return plan

    @property
    def input_spec(self) -> tuple[TensorSpec, ...]:
        """The tensors that it takes, as on the example."""
        return self.plan.input_spec

    @property
    def output_spec(self) -> tuple[TensorSpec, ...]:
        """The tensors that it returns, as on the example."""
        return self.plan.output_spec

    @property
    def signature(self) -> inspect.Signature:
        """What the model's forward takes, by name."""
        return inspect.signature(self._model[0].forward)

    @property
    def untrainable(self) -> str:
        """Why gradients can't go through its cuts; empty when they can."""
        return next((p.untrainable for p in (self.plan.begin, self.plan.end) if p and p.untrainable), "")

    @property
    def draws_random(self) -> bool:
        """Whether it draws random numbers in training mode (dropout)."""
        return self.draws_in(training=True)

    def draws_in(self, *, training: bool) -> bool:
        """Whether it draws random numbers in a mode, all of its modules being in that."""
        live = self.plan.analysis.training if training else self.plan.analysis.evaluation
        start, stop = 0, live.end if live else 0
        for place, is_begin in ((self.plan.begin, True), (self.plan.end, False)):
            if place is None:
                continue
            point = place.training if training else place.evaluation
            if point is None:
                return False
            start, stop = (point.time, stop) if is_begin else (start, point.time)
        if live is None:
            return False
        return any(start <= n < stop for n in live.draws)

    def resolve(self, plan: Plan, model: nn.Module) -> None:
        """Become the part of `model` that the plan says."""
        copied = clone(model, own_buffers=False)
        copied.__dict__.pop("_fogline_analysis", None)
        modules = dict(copied.named_modules())
        _drop(modules, plan)
        doors: dict[str, _Door] = {}

        def put(key: Key, action: Callable[[_Running, _Door, Any, Any], Any]) -> None:
            door = doors.setdefault(key[0], _Door(modules[key[0]], key[0]))
            door.actions[key[1]] = action

        if plan.begin:
            for key in plan.skipped():
                put(key, _Skip(_template(plan, key), plan.analysis.specs_of(key, None)))
            key = plan.begin.key
            put(key, _Receive(_template(plan, key), plan.analysis.specs_of(key, None), plan.begin))
        if plan.end:
            put(plan.end.key, _Stop(plan.end))
        for door in doors.values():
            door.module.__dict__["_call_impl"] = door
        # The same dicts, so that names, moving and loading are the copy's own, without a prefix.
        for kept_dict in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
            self.__dict__[kept_dict] = copied.__dict__[kept_dict]
        self._model, self._plan, self._pending = (copied,), plan, None
        if model.training == self.training:
            copied.training = self.training
        else:  # it was told otherwise before it was traced
            copied.train(self.training)

    def train(self, mode: bool = True) -> Segment:
        """Set training mode, as the model's own `train` does it."""
        self.training = mode
        if self.resolved:
            self._model[0].train(mode)
        return self

    def named_parameters(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, nn.Parameter]]:
        """The parameters that it uses. Raises InputError before the model was traced."""
        assert self.plan
        return super().named_parameters(*args, **kwargs)

    def named_buffers(self, *args: Any, **kwargs: Any) -> Iterator[tuple[str, Tensor]]:
        """The buffers that it uses. Raises InputError before the model was traced."""
        assert self.plan
        return super().named_buffers(*args, **kwargs)

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Its parameters and persistent buffers. Raises InputError before the model was traced."""
        assert self.plan
        return super().state_dict(*args, **kwargs)

    def load_state_dict(self, state_dict: Mapping[str, Any], strict: bool = True, assign: bool = False) -> Any:
        """As of any module. A plain dict will do: without versions, modules that own nothing here would want more."""
        if not hasattr(state_dict, "_metadata"):
            versions = self.state_dict()._metadata
            state_dict = OrderedDict(state_dict)
            state_dict._metadata = versions  # type: ignore[attr-defined]
        return super().load_state_dict(state_dict, strict, assign)

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        assert self.plan
        return super()._apply(fn, recurse)  # type: ignore[no-untyped-call]

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Compute this part.

        The first segment takes what the model takes. Any other takes the cut's tensors, as arguments or as one tuple.
        It returns what the model returns, or the cut's tensors: one tensor, or a tuple. Raises InputError when these
        differ from the example in more than the batch size and the sequence length, or when the forward takes
        a path on which the cut isn't valid.
        """
        if self._plan is None and self._pending is not None:
            self._pending(Example(args, kwargs))
        plan = self.plan
        name = self._name
        if plan.begin:
            given = args[0] if len(args) == 1 and isinstance(args[0], (tuple, list)) else args
            now, args, kwargs = self._received(plan, name, given, kwargs)
            inputs: dict[str, Tensor] = {}
            if plan.end:
                inputs = {s.name: t for s, t in zip(plan.begin.tensors, now.tensors, strict=True)}
        else:
            now, inputs = self._checked(plan, name, args, kwargs)
        token = phase.set(now)
        try:
            out = self._model[0](*args, **kwargs)
        except _Reached:
            assert plan.end is not None
            sent = now.outputs + tuple(inputs[spec.name] for spec in plan.end.inputs)
            if any(isinstance(t, Absent) for t in sent):
                raise InputError(f"{name}: {_OTHER_PATH}") from None
            return sent[0] if len(sent) == 1 else sent
        finally:
            phase.reset(token)
        if plan.end or not now.received or any(isinstance(f.tensor, Absent) for f in tensors(out)):
            raise InputError(f"{name}: {_OTHER_PATH}")
        return out

    def _checked(
        self, plan: Plan, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[_Running, dict[str, Tensor]]:
        """Hold a first segment's arguments against the example."""
        named = arguments(self._model[0], args, kwargs, plan.signature)
        inputs = {f.path: f.tensor for f in tensors(named)}
        if inputs.keys() != plan.specs.keys():
            odd = sorted(inputs.keys() ^ plan.specs.keys())
            raise InputError(
                f"{name}: input {odd[0]!r} is {'not' if odd[0] in plan.specs else 'only'} given here, unlike on the "
                "example; call split with an example of the inputs that you use"
            )
        constants = plain_leaves(named)
        for key in constants.keys() | plan.trace.constants.keys():
            if constants.get(key) != plan.trace.constants.get(key):
                raise InputError(
                    f"{name}: argument {key!r} is {constants.get(key)!r}, and was {plan.trace.constants.get(key)!r} "
                    "on the example; the other segment can't know. Call split with an example that has it"
                )
        variable = plan.analysis.variable
        specs = [plan.specs[key].sizes for key in inputs]
        sizes = solve(name, variable, specs, [t.shape for t in inputs.values()])
        if plan.end:
            for size, known, is_told, what in zip(
                sizes,
                (variable.batch, variable.length),
                told([spec.sizes for spec in plan.end.tensors]),
                ("batch size", "sequence length"),
                strict=True,
            ):
                if size != known and not is_told:
                    raise InputError(
                        f"{name}: {what} {size}, {known} on the example; what goes over cut {plan.end.name!r} doesn't "
                        "tell the tail. Use the example's, or an earlier cut"
                    )
        now = _Running(name, [], sizes, torch.device("cpu"))
        now.received = True
        return now, inputs

    def _received(
        self, plan: Plan, name: str, given: Sequence[Any], kwargs: dict[str, Any]
    ) -> tuple[_Running, tuple[Any, ...], dict[str, Any]]:
        """Hold a later segment's tensors against the cut, and make the model's arguments from them."""
        place = plan.begin
        assert place is not None
        specs = place.tensors
        if kwargs or len(given) != len(specs) or not all(isinstance(t, Tensor) for t in given):
            raise InputError(
                f"{name}: takes {len(specs)} tensors ({', '.join(s.name for s in specs)}), got "
                f"{', '.join([type(t).__name__ for t in given] + list(kwargs)) or 'nothing'}; "
                "pass what the head returned"
            )
        sizes = solve(name, plan.analysis.variable, [s.sizes for s in specs], [t.shape for t in given])
        device = given[0].device
        taken = [_taken(t, spec, spec.name in place.mutated) for t, spec in zip(given, specs, strict=True)]
        now = _Running(name, taken, sizes, device)
        if any(p and p.random for p in (place.evaluation, place.training)):
            now.random = torch.get_rng_state()
        sent = dict(zip([s.name for s in place.inputs], taken[len(place.leaves) :], strict=True))

        def value(i: int) -> Tensor:
            spec = plan.specs[plan.input_names[i]]
            return sent[spec.name] if spec.name in sent else _absent_of(spec, now)

        args, kwargs = (fill(part, value) for part in plan.analysis.call)
        return now, args, kwargs


_OTHER_PATH = (
    "the forward took another path than on the example, and never came to the cut; "
    "call split with an example that takes this path"
)


def _absent_of(spec: TensorSpec, now: _Running) -> Absent:
    return absent(tuple(size.at(*now.sizes) for size in spec.sizes), spec.dtype, now.device, spec.order)


def _taken(tensor: Tensor, spec: TensorSpec, mutated: bool) -> Tensor:
    """A received tensor, in the layout of the module's own if a link lost it; a copy where the tail writes to it."""
    ordered = as_ordered(tensor, spec.order)
    return ordered.clone() if mutated and ordered is tensor else ordered


def _template(plan: Plan, key: Key) -> Any:
    return plan.trace.calls[plan.analysis.evaluation.keys[key]].template


def _drop(modules: dict[str, nn.Module], plan: Plan) -> None:
    """Take away what the segment doesn't use: it keeps shapes, for code that asks for them, and no memory."""
    for path, module in modules.items():
        for known, owned in ((module._parameters, plan.parameters), (module._buffers, plan.buffers)):
            for name, tensor in list(known.items()):
                if tensor is None or (f"{path}.{name}" if path else name) in owned:
                    continue
                del known[name]
                stand_in = Absent(tensor.detach())
                module.__dict__[name] = stand_in
                module._non_persistent_buffers_set.discard(name)
                for listed in vars(module).values():  # such as the flat weights of recurrent layers
                    if isinstance(listed, list):
                        listed[:] = [stand_in if item is tensor else item for item in listed]


def split(
    model: nn.Module, at: At | Sequence[At], *, example: Any | None = None, max_tensors: int = 1
) -> tuple[Segment | None, ...]:
    """Cut `model` after the module `at` into (head, tail), or after two into (head, middle, tail).

    Names are those of `cuts(model, example)`; None is the model's own begin as the first of two cuts (and as the only
    one), and its end as the second. A segment that would be empty is None. Without `example` and an earlier `cuts`, the
    first call of the head traces the model on what it is given. Raises InputError for a name that isn't a
    valid cut, saying what crosses there.
    """
    places: Sequence[At] = [at] if isinstance(at, (str, Cut)) or at is None else at
    if not 1 <= len(places) <= 2:
        raise InputError(f"at={at!r}: {len(places)} cuts; use one (head, tail) or two (head, middle, tail)")
    names = [p.name if isinstance(p, Cut) else p for p in places]
    # Parts between begin, cuts and end. An only or first None cuts at the begin, a second one at the end.
    last_is_end = len(names) == 2 and names[1] is None
    bounds: list[tuple[str | None, bool]] = [(None, False), (names[0], False)]
    if len(names) == 2:
        bounds.append((names[1], last_is_end))
    bounds.append((None, True))
    parts: list[tuple[str | None, str | None] | None] = []
    for (start, start_is_end), (stop, stop_is_end) in pairwise(bounds):
        empty = start_is_end or (start == stop and stop is not None) or (stop is None and not stop_is_end)
        parts.append(None if empty else (start, stop))
    labels = ("head", "tail") if len(parts) == 2 else ("head", "middle", "tail")
    segments = [
        None if part is None else Segment(model, f"{label} of {type(model).__name__}")
        for part, label in zip(parts, labels, strict=True)
    ]

    def resolve(analysis: Analysis) -> None:
        found = {name: analysis.find(name, max_tensors) for name in names if name is not None}
        order = [found[name].evaluation.time for name in names if name is not None]
        if order != sorted(order):
            raise InputError(f"at={at!r}: {names[1]!r} comes before {names[0]!r} in the forward; swap them")
        plans = [
            None if part is None else Plan(analysis, *(found[n] if n is not None else None for n in part))
            for part in parts
        ]
        for segment, plan in zip(segments, plans, strict=True):
            if segment is not None and plan is not None:
                segment.resolve(plan, model)

    known = analyse(model, example) if example is not None else kept(model)
    if known is not None:
        resolve(known)
    else:
        first = next(s for s in segments if s is not None)
        first._pending = lambda given: resolve(analyse(model, given))
    return tuple(segments)
