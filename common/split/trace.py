"""One forward of a model, written down: which operation reads and writes which memory, inside which module's call.

The model itself is not touched: the forward runs on a structural copy that shares the parameters and has buffers of its
own, without gradients, and the random state is put back. Memory is followed by storage, so views and operations in
place need no rules of their own.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry, sdpa_flop_count

from fogline.common.errors import InputError
from fogline.common.split.absent import SHAPE_ONLY
from fogline.common.split.structure import Found, plain_leaves, template, tensors

_REVEALS = (torch.Tag.data_dependent_output, torch.Tag.dynamic_output_shape)


@dataclass(frozen=True)
class View:
    """Which part of a storage a tensor is, and what it holds."""

    storage: int
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype

    def covers(self, nbytes: int) -> bool:
        """Whether it is all of a storage of `nbytes`."""
        count = 1
        for size in self.shape:
            count *= size
        return count * self.dtype.itemsize == nbytes


@dataclass(frozen=True)
class Leaf:
    """A tensor that a call returned; `inside` as in `structure.Found`."""

    path: str
    view: View
    inside: bool


@dataclass(frozen=True)
class Operation:
    """What one operation did; `call` is the innermost module call around it."""

    name: str
    call: int
    reads: tuple[View, ...]
    writes: tuple[int, ...]
    macs: int
    random: bool
    reveals: bool  # Python sees values: a branch or a shape may depend on them


@dataclass
class Call:
    """A module's call: the `k`-th of that module, from 1; operations `begin` to `end` (exclusive) are in it."""

    path: str
    k: int
    parent: int
    begin: int
    end: int = -1
    outputs: tuple[Leaf, ...] = ()
    template: Any = None
    plain: dict[str, Any] = field(default_factory=dict)

    @property
    def key(self) -> tuple[str, int]:
        """What names the call in every trace of the model."""
        return self.path, self.k


@dataclass
class Trace:
    """A whole forward. Storages are numbered; `calls[0]` is the model's own."""

    operations: list[Operation]
    calls: list[Call]
    inputs: dict[str, View]
    constants: dict[str, Any]
    parameters: dict[int, list[str]]  # storage to names: more than one where weights are tied
    buffers: dict[int, list[str]]
    sizes: dict[int, int]  # storage to bytes
    born: set[int]  # storages that the forward made


@dataclass(frozen=True)
class Example:
    """Arguments of a forward."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    @classmethod
    def of(cls, example: Any) -> Example:
        """From what users pass: a tensor, a tuple or list of positional arguments, a dict of keywords, an Example."""
        if isinstance(example, Example):
            return example
        if isinstance(example, Mapping):
            return cls((), dict(example))
        return cls(tuple(example) if isinstance(example, (tuple, list)) else (example,), {})


def arguments(
    model: nn.Module,
    args: tuple[Any, ...],
    kwargs: Mapping[str, Any],
    signature: inspect.Signature | None = None,
) -> dict[str, Any]:
    """The arguments by the names of `model.forward`, whose `signature` a caller may know.

    Raises InputError when they don't fit.
    """
    try:
        bound = (signature or inspect.signature(model.forward)).bind(*args, **kwargs)
    except TypeError as error:
        raise InputError(f"{type(model).__name__}.forward: {error}; pass what the model itself takes") from error
    named = dict(bound.arguments)
    for name, parameter in bound.signature.parameters.items():
        if parameter.kind is inspect.Parameter.VAR_KEYWORD:
            named |= named.pop(name, {})
    return named


def clone(model: nn.Module, *, own_buffers: bool) -> nn.Module:
    """A copy of the modules that shares every parameter and plain tensor, and the buffers unless `own_buffers`."""
    memo: dict[int, Any] = {}
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule):
            raise InputError(f"{type(module).__name__}: a scripted module can't be cut; use the Python module")
        kept = [*module._parameters.values(), *(() if own_buffers else module._buffers.values())]
        kept += [value for value in vars(module).values() if isinstance(value, Tensor)]
        memo |= {id(tensor): tensor for tensor in kept if tensor is not None}
    try:
        return copy.deepcopy(model, memo)
    except Exception as error:  # the model's own code runs here
        raise InputError(
            f"{type(model).__name__}: can't be copied ({error}); keep locks and files out of it"
        ) from error


def trace(model: nn.Module, example: Example, *, training: bool) -> Trace:
    """Run `model` once in the given mode and write down what it did. Raises InputError when the forward fails."""
    copied = clone(model, own_buffers=True).train(training)
    recorder = _Recorder(copied, example)
    with _undisturbed(copied), recorder:
        _run(copied, example)
    return recorder.finish()


def call_shapes(model: nn.Module, example: Example) -> dict[tuple[str, int], tuple[tuple[Any, ...], dict[str, Any]]]:
    """Shapes and plain values that every call returns in evaluation mode, by its key. Raises InputError."""
    found: dict[tuple[str, int], tuple[tuple[Any, ...], dict[str, Any]]] = {}
    counts: dict[str, int] = {}

    def around(path: str, call: Callable[[], Any]) -> Any:
        k = counts[path] = counts.get(path, 0) + 1
        out = call()
        found[path, k] = (tuple(tuple(f.tensor.shape) for f in tensors(out)), plain_leaves(out))
        return out

    copied = clone(model, own_buffers=True).eval()
    watch(copied, around)
    with _undisturbed(copied):
        _run(copied, example)
    return found


def watch(model: nn.Module, around: Callable[[str, Callable[[], Any]], Any]) -> None:
    """Let `around(path, call)` stand in every module's call, hooks included. For copies: there is no way back.

    Not by hooks: some modules of torch take another path when they have any.
    """
    for path, module in model.named_modules():
        intercept(module, _Around(path, module, around))


class _Around:
    def __init__(self, path: str, module: nn.Module, around: Callable[[str, Callable[[], Any]], Any]) -> None:
        self.path, self.module, self.around = path, module, around

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.around(self.path, lambda: called(self.module, args, kwargs))


def intercept(module: nn.Module, door: Callable[..., Any]) -> None:
    """Let calls of `module` go to `door`, which may use `called` to let them through."""
    module.__dict__["_call_impl"] = door


def called(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an intercepted module returns by itself."""
    return type(module)._call_impl(module, *args, **kwargs)  # type: ignore[no-untyped-call]


@contextmanager
def _undisturbed(model: nn.Module) -> Iterator[None]:
    devices = {p.device.index or 0 for p in model.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)), torch.no_grad():
        yield


def _run(model: nn.Module, example: Example) -> None:
    try:
        model(*example.args, **example.kwargs)
    except Exception as error:  # the model's own code, which may raise anything
        raise InputError(
            f"{type(model).__name__}: its forward fails on the example ({type(error).__name__}: {error}); "
            "pass an example that the model accepts"
        ) from error


def _macs(func: Any, args: Any, kwargs: Any, out: Any) -> int:
    packet = func.overloadpacket
    if packet in flop_registry:
        return int(flop_registry[packet](*args, **kwargs, out_val=out)) // 2
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return int(sdpa_flop_count(*(t.shape for t in args[:3]))) // 2  # type: ignore[no-untyped-call]
    return 0


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Sees every operation and, through `watch`, every call."""

    def __init__(self, model: nn.Module, example: Example) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.held: dict[
            int, tuple[int, StorageWeakRef]
        ] = {}  # weak, so that memory is freed and addresses are not reused
        self.sizes: dict[int, int] = {}
        self.operations: list[Operation] = []
        self.calls: list[Call] = []
        self.stack: list[int] = []
        self.counts: dict[str, int] = {}
        named = arguments(model, example.args, example.kwargs)
        self.inputs = {f.path: self.view(f.tensor) for f in tensors(named)}
        self.constants = plain_leaves(named)
        self.parameters = self.names(model.named_parameters(remove_duplicate=False))
        self.buffers = self.names(model.named_buffers(remove_duplicate=False))
        self.known = set(self.sizes)
        self.born: set[int] = set()
        watch(model, self.call)

    def names(self, found: Iterator[tuple[str, Tensor]]) -> dict[int, list[str]]:
        out: dict[int, list[str]] = {}
        for name, tensor in found:
            out.setdefault(self.view(tensor).storage, []).append(name)
        return out

    def view(self, tensor: Tensor) -> View:
        if tensor.layout is not torch.strided or tensor.is_nested:
            raise InputError(f"a {tensor.layout} tensor in the forward: only dense tensors can be followed")
        storage = tensor.untyped_storage()
        reference = StorageWeakRef(storage)  # type: ignore[no-untyped-call]
        number, _ = self.held.setdefault(reference.cdata, (len(self.held), reference))
        self.sizes.setdefault(number, storage.nbytes())
        return View(number, int(tensor.storage_offset()), tuple(tensor.shape), tensor.stride(), tensor.dtype)

    def call(self, path: str, run: Callable[[], Any]) -> Any:
        k = self.counts[path] = self.counts.get(path, 0) + 1
        made = Call(path, k, self.stack[-1] if self.stack else -1, len(self.operations))
        self.stack.append(len(self.calls))
        self.calls.append(made)
        out = run()
        self.stack.pop()
        made.end = len(self.operations)
        made.outputs = tuple(self.leaf(f) for f in tensors(out))
        made.template, made.plain = template(out), plain_leaves(out)
        return out

    def leaf(self, found: Found) -> Leaf:
        return Leaf(found.path, self.view(found.tensor), found.inside)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = [self.view(t) for t in _tensors_of((args, kwargs))]
        out = func(*args, **kwargs)
        written = {
            self.view(value).storage
            for declared, value in _declared(func, args, kwargs)
            if declared.alias_info is not None and declared.alias_info.is_write
            for value in _tensors_of(value)
        }
        fresh = {self.view(t).storage for t in _tensors_of(out)} - {view.storage for view in given}
        self.born |= fresh - self.known
        self.known |= fresh
        self.operations.append(
            Operation(
                str(func),
                self.stack[-1],
                () if func.overloadpacket in SHAPE_ONLY else tuple(given),
                tuple(sorted(written | fresh)),
                _macs(func, args, kwargs, out),
                torch.Tag.nondeterministic_seeded in func.tags,
                any(tag in func.tags for tag in _REVEALS),
            )
        )
        return out

    def finish(self) -> Trace:
        return Trace(
            self.operations,
            self.calls,
            self.inputs,
            self.constants,
            self.parameters,
            self.buffers,
            self.sizes,
            self.born,
        )


def _declared(func: Any, args: Any, kwargs: Any) -> Iterator[tuple[Any, Any]]:
    for number, declared in enumerate(func._schema.arguments):
        if number < len(args):
            yield declared, args[number]
        elif declared.name in kwargs:
            yield declared, kwargs[declared.name]


def _tensors_of(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value]
    if isinstance(value, (list, tuple)):
        return [tensor for item in value for tensor in _tensors_of(item)]
    if isinstance(value, dict):
        return [tensor for item in value.values() for tensor in _tensors_of(item)]
    return []
