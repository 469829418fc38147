"""A session at its host: the executor with what makes its state durable."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from fogline.common.errors import ConfigError, FormatError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.tensor_execution import Done
from fogline.common.tails import optimizer
from fogline.common.tails.checkpoint import (
    Checkpoint,
    Checkpoints,
    Header,
    optimizer_state,
    restore_optimizer,
    saved_answers,
)
from fogline.common.tails.executor import TailExecutor
from fogline.common.tails.setup import Setup
from fogline.common.tails.tensors import of_role
from fogline.common.wire.tensors import Frame, Role

# Must be what they were when a session goes on; weights and hyper-parameters have moved on since.
_SAME = ("model", "kwargs", "architecture", "cuts", "call", "inputs", "max_tensors", "codecs", "fixed", "upstream")


class HostedTail:
    """What the tensor service calls; see its `Hosted`."""

    def __init__(
        self,
        executor: TailExecutor,
        session: bytes,
        peer: Peer,
        mode: int,
        checkpoints: Checkpoints,
        loaded: Callable[[Sequence[bytes]], None],
        holds: object = None,
    ) -> None:
        """`loaded` is called with the weights' files when they have come; `holds` is kept as long as the session."""
        self._executor, self._session, self._peer, self._mode = executor, session, peer, mode
        self._checkpoints, self._loaded, self._holds = checkpoints, loaded, holds
        self._asked = pb.Checkpoint()  # what the checkpoint that is being made is for
        self._upstreams: dict[int, int] = {}  # checkpoints, and those further up that they go on from

    def execute(self, body: Any, frame: Frame) -> Done:
        """Execute an operation."""
        was = self._executor.loaded
        if isinstance(body, pb.Checkpoint):
            self._asked = body
        done = self._executor.execute(body, frame)
        if self._executor.loaded and not was:
            self._loaded([bytes(part) for _, part in of_role(frame.tensors, frame.parts, Role.WEIGHTS)])
        return done

    def interrupt(self) -> None:
        """Have what waits for a host further up fail at once. From any thread."""
        self._executor.interrupt()

    def save(self, through: int, answers: Sequence[Frame]) -> None:
        """Write a checkpoint. Raises CapacityError."""
        executor = self._executor
        saved, parts = saved_answers(answers)
        upstream = executor.upstream
        token = dict(upstream.token) if upstream is not None and upstream.token is not None else None
        tensors = self._tensors()
        if token is not None:
            for end, state in token.pop("codecs", {}).items():
                tensors |= {f"upstream/{end}/{key}": value for key, value in state.items()}
        header = Header(
            peer=self._peer.name,
            role=self._peer.role,
            mode=self._mode,
            setup=executor.setup.pack(),
            through=through,
            groups=self._groups(),
            upstream=token,
            answers=saved,
        )
        asked = self._asked
        self._checkpoints.write(self._session, header, tensors, parts, keep=asked.keep, hold=asked.hold)
        if token is not None:
            self._upstreams[through] = int(token["seq"])
            self._hold()

    def _hold(self) -> None:
        """Checkpoints here are of use as long as those further up are there."""
        if self._executor.upstream is not None:
            there = self._checkpoints.steps(self._session)
            self._upstreams = {step: further for step, further in self._upstreams.items() if step in there}
            self._executor.upstream.hold(list(self._upstreams.values()))

    def restore(self, checkpoint: Checkpoint, *, rewind: bool) -> None:
        """Become what was saved; `rewind`: and forget what came later, once that was possible.

        Raises FormatError for a checkpoint of another model.
        """
        executor, tensors = self._executor, checkpoint.tensors
        state = _under(tensors, "state")
        own = self._state()
        if {n: (t.shape, t.dtype) for n, t in state.items()} != {n: (t.shape, t.dtype) for n, t in own.items()}:
            raise FormatError("the checkpoint is of other weights than this part of the model has; connect anew")
        named = dict(executor.parameters())
        with torch.no_grad():
            for name, tensor in own.items():
                tensor.copy_(state[name])
            for name, gradient in _under(tensors, "gradient").items():
                if name not in named or named[name].shape != gradient.shape:
                    raise FormatError(f"the checkpoint has a gradient of {name!r}, which this part of the model lacks")
                named[name].grad = torch.empty_like(named[name], requires_grad=False).copy_(gradient)
        if executor.optimizer is not None and executor.setup.optimizer is not None:
            restore_optimizer(executor.optimizer, named, _under(tensors, "optimizer"))
            optimizer.change(executor.optimizer, executor.setup.optimizer, list(enumerate(checkpoint.header.groups)))
        executor.generator.cpu = tensors["generator/cpu"]
        if "generator/cuda" in tensors and executor.generator.cuda is not None:
            executor.generator.cuda = tensors["generator/cuda"]
        for end, coder in self._ends().items():
            coder.load_state_dict(_under(tensors, f"codec/{end}"))
        if executor.upstream is not None and checkpoint.header.upstream is not None:
            token: dict[str, Any] = dict(checkpoint.header.upstream)
            codecs: dict[str, dict[str, Tensor]] = {}
            for name, tensor in _under(tensors, "upstream").items():
                end, _, key = name.partition("/")
                codecs.setdefault(end, {})[key] = tensor
            executor.upstream.resume(token | ({"codecs": codecs} if codecs else {}))
        executor.loaded = True
        if rewind:
            self._checkpoints.rewind(self._session, checkpoint.header.through)
        self._upstreams = self._checkpoints.upstreams(self._session)
        self._hold()

    def close(self, *, forget: bool) -> None:
        """Free everything."""
        executor = self._executor
        executor.graphs.clear()
        if executor.upstream is not None:
            executor.upstream.close(forget=forget)
        executor.segments, executor.optimizer, self._holds = [], None, None
        if forget:
            self._checkpoints.forget(self._session)

    def _groups(self) -> tuple[dict[str, float], ...]:
        made, spec = self._executor.optimizer, self._executor.setup.optimizer
        if made is None or spec is None:
            return ()
        return tuple(optimizer.flat(group, spec) for group in made.param_groups)

    def _state(self) -> dict[str, Tensor]:
        segment = self._executor.segments[0]
        if segment is None:
            return {}
        return dict(segment.named_parameters()) | dict(segment.named_buffers())

    def _ends(self) -> dict[str, Any]:
        executor = self._executor
        return {
            "activations": executor.activations,
            "gradients": executor.gradients,
            "outputs": executor.outputs,
            "output_gradients": executor.output_gradients,
        }

    def _tensors(self) -> dict[str, Tensor]:
        executor = self._executor
        found = {f"state/{name}": tensor for name, tensor in self._state().items()}
        found |= {f"gradient/{n}": p.grad for n, p in executor.parameters() if p.grad is not None}
        if executor.optimizer is not None:
            names: dict[int, str] = {id(p): n for n, p in executor.parameters()}
            found |= {f"optimizer/{n}": t for n, t in optimizer_state(executor.optimizer, names).items()}
        found["generator/cpu"] = executor.generator.cpu
        if executor.generator.cuda is not None:
            found["generator/cuda"] = executor.generator.cuda
        for end, coder in self._ends().items():
            found |= {f"codec/{end}/{key}": tensor for key, tensor in coder.state_dict().items()}
        return found


def check_same(saved: Setup, given: Setup) -> None:
    """Raise ConfigError unless a session may go on with `given`, which was opened with `saved`."""
    for name in _SAME:
        if getattr(saved, name) != getattr(given, name):
            raise ConfigError(
                f"the session was opened with {name} {str(getattr(saved, name))[:200]}, and is resumed with "
                f"{str(getattr(given, name))[:200]}; use the same, or connect anew"
            )
    names = [(setup.optimizer or {}).get("name") for setup in (saved, given)]
    if names[0] != names[1]:
        raise ConfigError(f"the session was opened with optimizer {names[0]!r}, and is resumed with {names[1]!r}")


def _under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    return {n.removeprefix(f"{prefix}/"): t for n, t in tensors.items() if n.startswith(f"{prefix}/")}
