"""A model's traces in both modes, put together: which cuts are valid, who owns which weights, how sizes vary."""

from __future__ import annotations

import difflib
import inspect
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from fogline.common.errors import InputError
from fogline.common.split.liveness import Key, Liveness, Point
from fogline.common.split.sizes import Shape, Size, Variable, fit
from fogline.common.split.structure import Slot, tensors
from fogline.common.split.structure import replace as replace_in
from fogline.common.split.trace import Call, Example, View, arguments, call_shapes, trace


@dataclass(frozen=True)
class TensorSpec:
    """A tensor at a cut, as on the example. `order` lists its dims from the largest stride to the smallest."""

    name: str
    shape: tuple[int, ...]
    dtype: torch.dtype
    sizes: Shape
    order: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Its values' bytes."""
        return self.elements * self.dtype.itemsize

    @property
    def elements(self) -> int:
        """How many values it has."""
        count = 1
        for size in self.shape:
            count *= size
        return count


@dataclass(frozen=True)
class Place:
    """A valid cut: after the call `key`, with what goes over it."""

    name: str
    key: Key
    leaves: tuple[TensorSpec, ...]
    inputs: tuple[TensorSpec, ...]
    rerun: frozenset[Key]
    buffers: frozenset[str]
    mutated: frozenset[str]
    evaluation: Point
    training: Point | None
    untrainable: str  # why the cut is for inference only; empty when it isn't

    @property
    def tensors(self) -> tuple[TensorSpec, ...]:
        """What is sent, in order: what the module returns, then the model inputs that are used after the cut."""
        return self.leaves + self.inputs


@dataclass(frozen=True)
class Usage:
    """When each parameter and buffer is used, by operation number, in one trace."""

    parameters: dict[str, tuple[int, int]]
    buffers: dict[str, tuple[int, int]]


class Analysis:
    """Everything that one example shows about a model. Immutable, so copies share it."""

    def __init__(self, model: nn.Module, example: Example, architecture: str = "") -> None:
        """Run the model's forward up to five times. Raises InputError when it fails on the example."""
        self.example_name = type(model).__name__
        self.architecture = architecture  # `architecture_hash` of the model
        self.evaluation = Liveness(trace(model, example, training=False))
        self.variable, self.shapes, self.varying = _vary(model, example, self.evaluation)
        # Batch normalisation refuses to train on a single value: the variant has at least two items.
        variant = self.variable.variant(example, batch=bool(self.variable.batch), length=False)
        self.training: Liveness | None = None
        self.no_training = ""
        try:
            self.training = Liveness(trace(model, variant, training=True))
        except InputError as error:
            self.no_training = f"it can't be traced in training mode: {error}"
        self.usage = [_usage(live) for live in (self.evaluation, self.training) if live]
        self.output = self.specs_of(("", 1), None)
        self.call = _call(model, example)
        self.signature = inspect.signature(model.forward)
        self.inputs = tuple(
            _spec(name, view, self._input_sizes(view)) for name, view in self.evaluation.trace.inputs.items()
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> Analysis:
        return self

    def _input_sizes(self, view: View) -> Shape:
        """Inputs vary in the dims that the variants changed."""
        batch, length = self.variable.dims(torch.empty(view.shape, device="meta"))
        sizes = [Size(size) for size in view.shape]
        if batch:
            sizes[0] = Size(0, batch=1)
        if length:
            sizes[1] = Size(0, length=1)
        return tuple(sizes)

    def specs_of(self, key: Key, paths: tuple[str, ...] | None) -> tuple[TensorSpec, ...]:
        """The tensors that a call returns, all or those of `paths`."""
        call = self.evaluation.trace.calls[self.evaluation.keys[key]]
        return tuple(
            _spec(leaf.path, leaf.view, sizes)
            for leaf, sizes in zip(call.outputs, self.shapes[key], strict=True)
            if paths is None or leaf.path in paths
        )

    def calls(self) -> list[tuple[str, Call]]:
        """Every call of a module below the model, with the name that `at=` takes, in the order of their ends."""
        counts: dict[str, int] = {}
        for call in self.evaluation.trace.calls:
            counts[call.path] = max(call.k, counts.get(call.path, 0))
        named = [
            (call.path if counts[call.path] == 1 else f"{call.path}#{call.k}", call)
            for call in self.evaluation.trace.calls[1:]
        ]
        return sorted(named, key=lambda pair: (pair[1].end, pair[1].path.count(".")))

    def place(self, name: str, call: Call) -> Place | str:
        """The cut after a call, or why there is none."""
        found = self.evaluation.point(call.key, self.varying)
        if isinstance(found, list):
            return "; ".join(map(str, found))
        if not 0 < found.time < self.evaluation.end:
            return "nothing is computed on one side of it"
        untrainable, training = self.no_training, None
        leaves, inputs = set(found.leaves), set(found.inputs)
        if self.training is not None:
            point = self.training.point(call.key, self.varying) if call.key in self.training.keys else None
            if isinstance(point, Point):
                training = point
                leaves |= set(point.leaves)
                inputs |= point.inputs
            elif point is None:
                untrainable = "the module isn't called in training mode"
            else:
                untrainable = "in training mode " + "; ".join(map(str, point))
        specs = self.specs_of(call.key, tuple(leaves))
        if not untrainable and not all(spec.dtype.is_floating_point for spec in specs):
            untrainable = "no gradient flows through whole numbers"
        points = [p for p in (found, training) if p]
        place = Place(
            name,
            call.key,
            specs,
            tuple(spec for spec in self.inputs if spec.name in inputs),
            frozenset().union(*(p.rerun for p in points)),
            frozenset().union(*(p.buffers for p in points)),
            frozenset().union(*(p.mutated for p in points)),
            found,
            training,
            untrainable,
        )
        if not untrainable and (tied := self.shared(place)):
            return _untrainable(place, f"parameter {tied[0]!r} is used on both sides")
        return place

    def shared(self, place: Place) -> list[str]:
        """Parameters that are used on both sides of a cut."""
        before, after = self.owned(None, place), self.owned(place, None, unused=False)
        return sorted(before[0] & after[0])

    def owned(self, begin: Place | None, end: Place | None, *, unused: bool = True) -> tuple[set[str], set[str]]:
        """Names of the parameters and buffers used between two cuts; unused ones belong to the last part."""
        parameters: set[str] = set()
        buffers: set[str] = set(begin.buffers) if begin else set()
        for usage, start, stop in self._spans(begin, end):
            for used, out in ((usage.parameters, parameters), (usage.buffers, buffers)):
                for name, times in used.items():
                    if any(start <= n < stop for n in times):
                        out.add(name)
        if end is None and unused:
            seen = [usage for usage, _, _ in self._spans(begin, end)]
            for out, named in ((parameters, [u.parameters for u in seen]), (buffers, [u.buffers for u in seen])):
                out |= {name for name in named[0] if not any(known[name] for known in named)}
        return parameters, buffers

    def _spans(self, begin: Place | None, end: Place | None) -> list[tuple[Usage, int, int]]:
        spans = []
        pairs = zip(self.usage, (self.evaluation, self.training), strict=False)
        for number, (usage, live) in enumerate(pairs):
            points = [(p.training if number else p.evaluation) if p else None for p in (begin, end)]
            if live is None or (begin and not points[0]) or (end and not points[1]):
                continue
            start = points[0].time if points[0] else 0
            spans.append((usage, start, points[1].time if points[1] else live.end))
        return spans

    def find(self, name: str, max_tensors: int) -> Place:
        """The cut of this name. Raises InputError when there is none, saying why and what is near."""
        calls = dict(self.calls())
        if name not in calls:
            counted = [known for known in calls if known.startswith(f"{name}#")]
            if counted:
                raise InputError(
                    f"cut {name!r}: this module is called {len(counted)} times; say which, {counted[0]!r} for the first"
                )
            near = difflib.get_close_matches(name, calls, n=3, cutoff=0.4) or list(calls)[:3]
            raise InputError(
                f"cut {name!r}: {self.example_name} calls no module of that name; near it: "
                f"{', '.join(map(repr, near))}. cuts(model, example) lists all that can be cut"
            )
        place = self.place(name, calls[name])
        if isinstance(place, str) or len(place.tensors) > max_tensors:
            others = [other.name for other, _ in self.places(max_tensors)]
            way_out = f"valid cuts: {_few(others)}" if others else f"{self.example_name} has no valid cut"
            if isinstance(place, str):
                raise InputError(f"cut {name!r}: {place}{_hint(place)}. {way_out}")
            raise InputError(
                f"cut {name!r}: {len(place.tensors)} tensors cross it ({', '.join(t.name for t in place.tensors)}); "
                f"pass max_tensors={len(place.tensors)} if they may. {way_out} for max_tensors={max_tensors}"
            )
        return place

    def places(self, max_tensors: int) -> list[tuple[Place, tuple[str, ...]]]:
        """Every valid cut of at most `max_tensors`, in forward order, with the other names for the same point.

        The first name is of the outermost module that ends there.
        """
        found: dict[Any, list[Place]] = {}
        for name, call in self.calls():
            place = self.place(name, call)
            if isinstance(place, str) or len(place.tensors) > max_tensors:
                continue
            views = tuple(leaf.view for leaf in call.outputs if leaf.path in {spec.name for spec in place.leaves})
            found.setdefault((call.end, views, place.training.time if place.training else -1), []).append(place)
        out = []
        for places in found.values():
            # Inside a module, code around the cut may need inputs that a cut after the whole module doesn't.
            least = min(len(place.inputs) for place in places)
            same = [place for place in places if len(place.inputs) == least]
            out.append((same[0], tuple(place.name for place in same[1:])))
        return out


def _untrainable(place: Place, why: str) -> Place:
    return replace(place, untrainable=why)


def _hint(why: str) -> str:
    return (
        ". Pass use_cache=False with the example"
        if "cache" in why or "past_key_values" in why or "can't be sent" in why
        else ""
    )


def _call(model: nn.Module, example: Example) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The example's arguments with a Slot for each tensor, numbered as the trace's inputs."""
    found = tensors(arguments(model, example.args, example.kwargs))
    numbers = {id(f.tensor): n for n, f in enumerate(found)}
    args, kwargs = replace_in((example.args, dict(example.kwargs)), Tensor, lambda t: Slot(numbers[id(t)]))
    return args, kwargs


def _few(names: list[str]) -> str:
    return ", ".join(map(repr, names[:6])) + (f" and {len(names) - 6} more" if len(names) > 6 else "")


def _spec(name: str, view: View, sizes: Shape) -> TensorSpec:
    return TensorSpec(name, view.shape, view.dtype, sizes, _order(view))


def _order(view: View) -> tuple[int, ...]:
    """Dims by falling stride; those of size 1 stay where C order has them."""
    return tuple(sorted(range(len(view.shape)), key=lambda d: (-view.stride[d], d)))


def _usage(live: Liveness) -> Usage:
    def times(named: dict[int, list[str]]) -> dict[str, tuple[int, int]]:
        return {
            name: tuple([n for n, _ in live.reads.get(storage, [])] + live.writes.get(storage, []))  # type: ignore[misc]
            for storage, names in named.items()
            for name in names
        }

    return Usage(times(live.trace.parameters), times(live.trace.buffers))


def _vary(
    model: nn.Module, example: Example, live: Liveness
) -> tuple[Variable, dict[Key, tuple[Shape, ...]], frozenset[Key]]:
    """Fit every call's sizes; and the calls whose plain values (or structure) follow the sizes too."""
    wanted = Variable.of(example)
    keys = [call.key for call in live.trace.calls]

    def attempt(batch: bool, length: bool) -> dict[Key, Any] | None:
        try:
            found = call_shapes(model, wanted.variant(example, batch=batch, length=length))
        except (InputError, RuntimeError):
            return None
        return found if list(found) == list(keys) or set(found) == set(keys) else None

    more = attempt(True, False) if wanted.batch else None
    shorter = attempt(False, True) if wanted.length else None
    both = attempt(True, True) if more and shorter else None
    if more and shorter and not both:
        shorter = None
    variable = Variable(wanted.batch if more else 0, wanted.length if shorter else 0)
    shapes: dict[Key, tuple[Shape, ...]] = {}
    varying: set[Key] = set()
    for call in live.trace.calls:
        variants = [v for v in (more, shorter, both) if v]
        if any(v[call.key][1] != call.plain or len(v[call.key][0]) != len(call.outputs) for v in variants):
            varying.add(call.key)
        fitted = []
        for number, leaf in enumerate(call.outputs):
            at = [v[call.key][0][number] if v and number < len(v[call.key][0]) else None for v in (more, shorter, both)]
            sizes = fit(variable, leaf.view.shape, at[0], at[1], at[2])
            if sizes is None:
                varying.add(call.key)
                sizes = fit(variable, leaf.view.shape, None, None, None)
            assert sizes is not None
            fitted.append(sizes)
        shapes[call.key] = tuple(fitted)
    return variable, shapes, frozenset(varying)
