"""`cuts(model, example)`: every place where a model can be cut, and what each costs."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from torch import nn

from fogline.common.split.analysis import Analysis, Place, TensorSpec
from fogline.common.split.trace import Example

_KEPT = "_fogline_analysis"


class _Kept:
    """An analysis on a model's instance: left behind when the model is pickled."""

    def __init__(self, architecture: str, analysis: Analysis) -> None:
        self.architecture, self.analysis = architecture, analysis

    def __deepcopy__(self, memo: dict[int, Any]) -> _Kept:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        return (type(None), ())


@dataclass(frozen=True)
class Cut:
    """One cut of a model, as on the example.

    `tensors` is what goes over it: what module `name` returns and is used afterwards, then the model inputs named in
    `inputs`, which the tail needs too. `bytes` are theirs, `ratio` their elements ÷ those of the model's inputs (the c
    of dynamic split computing). `head_macs` and `tail_macs` are multiply-adds of matrix products, convolutions and
    attention. Parameters used on both sides count on both. `untrainable` says why a cut is for inference only, and is
    empty when it isn't. `aliases` are modules that end at the same point.
    """

    name: str
    aliases: tuple[str, ...]
    tensors: tuple[TensorSpec, ...]
    inputs: tuple[str, ...]
    bytes: int
    ratio: float
    head_macs: int
    tail_macs: int
    head_params_bytes: int
    tail_params_bytes: int
    untrainable: str

    @property
    def trainable(self) -> bool:
        """Whether both sides can be trained through this cut."""
        return not self.untrainable


class CutTable(list[Cut]):
    """The cuts in the order of the forward. Prints as a table."""

    def __str__(self) -> str:
        if not self:
            return "no valid cut: after every module more crosses than may be sent (see max_tensors)"
        rows = [("cut", "shape", "kB", "ratio", "head MMACs", "tail MMACs", "head kB", "tail kB", "train")]
        for cut in self:
            shapes = " + ".join("x".join(map(str, t.shape)) or "1" for t in cut.tensors)
            rows.append(
                (
                    cut.name, shapes, f"{cut.bytes / 1e3:.1f}", f"{cut.ratio:.3f}", f"{cut.head_macs / 1e6:.1f}",
                    f"{cut.tail_macs / 1e6:.1f}", f"{cut.head_params_bytes / 1e3:.0f}",
                    f"{cut.tail_params_bytes / 1e3:.0f}", "yes" if cut.trainable else "no",
                )
            )  # fmt: skip
        widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
        return "\n".join(
            "  ".join(
                cell.ljust(w) if i < 2 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
            )
            for row in rows
        )

    __repr__ = __str__


def cuts(model: nn.Module, example: Any, *, max_tensors: int = 1) -> CutTable:
    """Every valid cut of `model` over which at most `max_tensors` tensors go, in the order of its forward.

    `example` is what the model takes: a tensor, a tuple of positional arguments or a dict of keyword arguments. The
    forward runs a few times on copies of the modules; weights, buffers and random state stay as they are. Modules that
    end at the same point are one cut, under the outermost name. Raises InputError when the forward fails on the
    example.
    """
    return table(analyse(model, example), max_tensors)


def table(analysis: Analysis, max_tensors: int) -> CutTable:
    """The cuts that an analysis found."""
    return CutTable(_cut(analysis, place, aliases) for place, aliases in analysis.places(max_tensors))


def analyse(model: nn.Module, example: Any) -> Analysis:
    """Trace `model` on `example`, and keep what it shows on the model. Raises InputError when the forward fails."""
    architecture = architecture_hash(model)
    made = Analysis(model, Example.of(example), architecture)
    # So that `split` needs no example again.
    model.__dict__[_KEPT] = _Kept(architecture, made)
    return made


def kept(model: nn.Module) -> Analysis | None:
    """The analysis that an earlier `cuts` or `split` left on the model, if its architecture is still the same."""
    found = model.__dict__.get(_KEPT)
    return found.analysis if isinstance(found, _Kept) and found.architecture == architecture_hash(model) else None


def architecture_hash(model: nn.Module) -> str:
    """SHA-256 over module names and classes, and names, shapes and dtypes of parameters and buffers: not their values.

    Equal on two hosts that built the same model; settings that leave no trace in these (a stride, a dropout rate) are
    the model's package's and its arguments' to keep equal.
    """
    lines = [f"{name} {type(module).__module__}.{type(module).__qualname__}" for name, module in model.named_modules()]
    for kind, named in (
        ("p", model.named_parameters(remove_duplicate=False)),
        ("b", model.named_buffers(remove_duplicate=False)),
    ):
        lines += [f"{kind} {name} {tuple(tensor.shape)} {tensor.dtype}" for name, tensor in named]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def _cut(analysis: Analysis, place: Place, aliases: tuple[str, ...]) -> Cut:
    operations = analysis.evaluation.trace.operations
    time = place.evaluation.time
    elements = sum(spec.elements for spec in place.tensors)
    return Cut(
        place.name,
        aliases,
        place.tensors,
        tuple(spec.name for spec in place.inputs),
        sum(spec.bytes for spec in place.tensors),
        elements / max(sum(spec.elements for spec in analysis.inputs), 1),
        sum(operation.macs for operation in operations[:time]),
        sum(operation.macs for operation in operations[time:]),
        _bytes(analysis, analysis.owned(None, place)[0]),
        _bytes(analysis, analysis.owned(place, None)[0]),
        place.untrainable,
    )


def _bytes(analysis: Analysis, names: set[str]) -> int:
    trace = analysis.evaluation.trace
    return sum(trace.sizes[storage] for storage, known in trace.parameters.items() if names & set(known))
