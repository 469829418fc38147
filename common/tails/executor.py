"""One session's part of a model: runs the operations that its client sends, one after the other.

An operation that fails leaves everything as it was; one that fails half-way breaks the session (`BrokenSessionError`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fogline.common.codecs.adaptive import gradient_norm, mean_momentum
from fogline.common.errors import (
    CapacityError,
    ConfigError,
    FoglineError,
    FormatError,
    InputError,
    ProtocolError,
)
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.tensor_execution import BrokenSessionError, Done
from fogline.common.split import weights
from fogline.common.split.segments import Segment
from fogline.common.tails import losses, optimizer, outputs
from fogline.common.tails.checkpoint import MAX_HELD
from fogline.common.tails.generator import SessionGenerator
from fogline.common.tails.graphs import Graph, GraphMemory, Graphs
from fogline.common.tails.modes import modes_that_draw, modules_of, set_mode
from fogline.common.tails.parts import digest
from fogline.common.tails.setup import Setup
from fogline.common.tails.tensors import Receiver, Sender, of_role, raw, read_raw
from fogline.common.tails.upstream import Upstream
from fogline.common.wire.tensors import Buffer, Frame, Role, TensorHeader


class TailExecutor:
    """See the module. `segments` has the part for each of the session's cuts; of `upstream` they are followed."""

    def __init__(
        self,
        setup: Setup,
        segments: Sequence[Segment | None],
        device: torch.device,
        generator: SessionGenerator,
        *,
        training: bool,
        upstream: Upstream | None = None,
        memory: GraphMemory | None = None,
    ) -> None:
        self.setup, self.segments, self.device = setup, list(segments), device
        self.generator, self.upstream, self.training = generator, upstream, training
        activations, gradients, results, result_gradients = setup.codecs.chains()
        self.activations, self.gradients = Receiver(activations), Sender(gradients)
        self.outputs, self.output_gradients = Sender(results), Receiver(result_gradients)
        self._fixed = [[] if s is None else modules_of(s, setup.fixed) for s in self.segments]
        self._draws = [
            frozenset() if s is None else modes_that_draw(s, setup.fixed, setup.fixed_training) for s in self.segments
        ]
        self._adaptive = "errbound" in activations.spec
        self.graphs = Graphs(memory or GraphMemory(1 << 62))
        self.loaded = False
        self.optimizer: torch.optim.Optimizer | None = None
        if training:
            if len(segments) != 1:
                raise ConfigError(f"a training session over {len(segments)} cuts; it has one")
            if segments[0] is not None and segments[0].untrainable:
                raise InputError(f"no training over this cut: {segments[0].untrainable}")
            if setup.optimizer is not None:
                self.optimizer = optimizer.build(setup.optimizer, self.parameters())

    def parameters(self) -> list[tuple[str, nn.Parameter]]:
        """Those of the part, by name, in order."""
        segment = self.segments[0]
        return [] if segment is None else list(segment.named_parameters())

    # -- operations

    def execute(self, body: Any, frame: Frame) -> Done:
        """Execute the operation `body` (pb.Forward, …). Raises errors of the tree."""
        handlers: dict[type, Callable[[Any, Frame], Done]] = {
            pb.Forward: self._forward,
            pb.Backward: self._backward,
            pb.ForwardLoss: self._forward_loss,
            pb.Release: self._release,
            pb.ZeroGrad: self._zero_grad,
            pb.OptimizerStep: self._optimizer_step,
            pb.GradientNorms: self._gradient_norms,
            pb.ScaleGradients: self._scale_gradients,
            pb.Checkpoint: self._checkpoint,
            pb.FetchWeights: self._fetch_weights,
            pb.LoadWeights: self._load_weights,
        }
        handle = handlers.get(type(body))
        if handle is None:
            raise ProtocolError(f"operation {type(body).__name__} is unknown here; update the older end")
        if not self.loaded and not isinstance(body, pb.LoadWeights):
            raise ProtocolError(f"{type(body).__name__} before LoadWeights; a session begins with its weights")
        if not self.training and not isinstance(body, (pb.Forward, pb.ForwardLoss, pb.LoadWeights, pb.FetchWeights)):
            raise ProtocolError(f"{type(body).__name__} in an inference session; open one for training")
        try:
            return handle(body, frame)
        except FoglineError as error:
            if self.upstream is None or not self.upstream.failed or isinstance(error, BrokenSessionError):
                raise
            told = f"the host further up can't be worked with: {error}"
            raise BrokenSessionError(type(error)(told)) from error

    def interrupt(self) -> None:
        """Have what waits for the host further up fail at once. From any thread."""
        if self.upstream is not None:
            self.upstream.interrupt()

    def _forward(self, body: pb.Forward, frame: Frame) -> Done:
        keep = body.keep_graph
        if keep and not self.training:
            raise ProtocolError("a forward that keeps its graph in an inference session; open one for training")
        self.graphs.check()
        with self._undone(body.cut, body.training, frame.seq):
            graph, structure, drawn = self._run(frame, body.training, keep, body.cut)
            if keep:
                segment = self._segment(body.cut)
                self.graphs.add(
                    frame.seq, graph, () if segment is None else (*segment.parameters(), *segment.buffers())
                )
            tensors = [
                self.outputs.send(Role.OUTPUT, i, t, training=keep and body.training)
                for i, t in enumerate(graph.outputs)
            ]
        if drawn is not None:
            tensors.append(raw(Role.GENERATOR, drawn))
        return _done(tensors, structure)

    def _backward(self, body: pb.Backward, frame: Frame) -> Done:
        graph = self.graphs.get(body.forward)
        grads: dict[int, Tensor] = {}
        for header, part in of_role(frame.tensors, frame.parts, Role.OUTPUT_GRADIENT):
            number = int(header.name.partition(":")[0]) if header.name.partition(":")[0].isdigit() else -1
            if not 0 <= number < len(graph.outputs):
                raise ProtocolError(f"a gradient of output {header.name!r}; there are {len(graph.outputs)}")
            _, grads[number] = self.output_gradients.receive(header, part, _meta(graph.outputs[number]))
        wanted = [
            (graph.outputs[i], g.to(self.device)) for i, g in sorted(grads.items()) if graph.outputs[i].requires_grad
        ]
        self.graphs.drop(body.forward)
        return self._backpropagate(graph, [t for t, _ in wanted], [g for _, g in wanted], [])

    def _forward_loss(self, body: pb.ForwardLoss, frame: Frame) -> Done:
        options = dict(body.options)
        scale = options.pop("scale", 1.0)
        losses.check(body.loss, options)
        if body.backward and not self.training:
            raise ProtocolError("a backward in an inference session; open one for training")
        labels = [read_raw(h, p).to(self.device) for h, p in of_role(frame.tensors, frame.parts, Role.LABELS)]
        if len(labels) != 1:
            raise ProtocolError(f"{len(labels)} tensors of labels; one is wanted")
        loss: list[Tensor] = []

        def compute(value: Any) -> None:
            mean = losses.compute(body.loss, options, _scores(value), labels[0])
            loss.append(mean if scale == 1.0 else mean * scale)

        with self._undone(body.cut, body.training, frame.seq):
            if self.upstream is not None:
                further = (body.loss, options | {"scale": scale}, labels[0])
                graph, _, drawn = self._run(frame, body.training, body.backward, body.cut, loss=further)
                loss = graph.outputs
            else:
                graph, _, drawn = self._run(frame, body.training, body.backward, body.cut, then=compute)
        tensors = [raw(Role.LOSS, loss[0])]
        if drawn is not None:
            tensors.append(raw(Role.GENERATOR, drawn))
        if not body.backward:
            return _done(tensors)
        return self._backpropagate(graph, loss, None, tensors)

    def _release(self, body: pb.Release, frame: Frame) -> Done:
        self.graphs.get(body.forward)
        self.graphs.drop(body.forward)
        return Done()

    def _zero_grad(self, body: pb.ZeroGrad, frame: Frame) -> Done:
        for _, parameter in self.parameters():
            parameter.grad = None
        if self.upstream is not None:
            self.upstream.zero_grad()
        return Done()

    def _optimizer_step(self, body: pb.OptimizerStep, frame: Frame) -> Done:
        if self.optimizer is None or self.setup.optimizer is None:
            raise InputError("this session has no optimizer; pass optimizer={'name': 'sgd', 'lr': 0.1} to connect")
        changes = [(change.group, dict(change.values)) for change in body.changes]
        optimizer.change(self.optimizer, self.setup.optimizer, changes)
        with _half_way():
            if self.parameters():
                self.optimizer.step()
            if self.upstream is not None:
                self.upstream.step(changes)
        return Done()

    def _gradient_norms(self, body: pb.GradientNorms, frame: Frame) -> Done:
        if not body.norm_type > 0:
            raise ProtocolError(f"a norm of type {body.norm_type}; it must be above 0")
        own = self.gradient_norms(body.norm_type)
        if self.upstream is not None:
            own |= self.upstream.gradient_norms(body.norm_type)
        names = msgspec.json.encode(list(own))
        norms = torch.stack([n.cpu() for n in own.values()]) if own else torch.empty(0)
        return _done([raw(Role.NORMS, norms)], names)

    def gradient_norms(self, norm_type: float) -> dict[str, Tensor]:
        """The norm of each gradient that there is, by the parameter's name, in the parameters' order."""
        grads = [(name, p.grad) for name, p in self.parameters() if p.grad is not None]
        if not grads:
            return {}
        # What `torch.nn.utils.clip_grad_norm_` computes them with, so that the bits are the same.
        norms = torch._foreach_norm([g for _, g in grads], norm_type)
        return {name: norm for (name, _), norm in zip(grads, norms, strict=True)}

    def _scale_gradients(self, body: pb.ScaleGradients, frame: Frame) -> Done:
        grads = [p.grad for _, p in self.parameters() if p.grad is not None]
        with _half_way():
            if grads:
                torch._foreach_mul_(grads, body.factor)
            if self.upstream is not None:
                self.upstream.scale_gradients(body.factor)
        return Done()

    def _checkpoint(self, body: pb.Checkpoint, frame: Frame) -> Done:
        if self.graphs:
            raise InputError(
                f"a checkpoint while {len(self.graphs)} forwards wait for their backward; call it between steps"
            )
        if len(body.hold) > MAX_HELD:
            raise ProtocolError(f"{len(body.hold)} earlier checkpoints are to stay; at most {MAX_HELD}")
        if self.upstream is not None:
            self.upstream.checkpoint(body.keep)
        return Done()

    def _fetch_weights(self, body: pb.FetchWeights, frame: Frame) -> Done:
        tensors = []
        if self.segments[0] is not None:
            tensors.append(raw(Role.WEIGHTS, _bytes(weights.save(self.segments[0])), "0"))
        if self.upstream is not None:
            tensors.append(raw(Role.WEIGHTS, _bytes(self.upstream.fetch_weights()), "1"))
        return _done(tensors)

    def _load_weights(self, body: pb.LoadWeights, frame: Frame) -> Done:
        files = [bytes(part) for _, part in of_role(frame.tensors, frame.parts, Role.WEIGHTS)]
        self.load_weights(files)
        return Done()

    def load_weights(self, files: Sequence[bytes]) -> None:
        """Load the part's safetensors file, and what follows it further up. Raises FormatError, InputError."""
        if self.graphs:
            raise InputError("weights while forwards wait for their backward; load them between steps")
        wanted = (self.segments[0] is not None) + (self.upstream is not None)
        if len(files) != wanted:
            raise ProtocolError(f"{len(files)} files of weights; {wanted} are wanted")
        if (not self.loaded or not self.training) and digest(files) != self.setup.weights:
            raise FormatError("the weights that came are not those that the session was opened for; connect anew")
        if self.loaded and not self.training:
            return  # they are here, perhaps in use by other sessions too
        own = list(files)
        if self.segments[0] is not None:
            weights.load(self.segments[0], own.pop(0))
        if self.upstream is not None:
            with _half_way():
                self.upstream.load_weights(own.pop(0))
        self.loaded = True

    # -- running

    def _run(
        self,
        frame: Frame,
        training: bool,
        keep: bool,
        cut: int,
        *,
        then: Callable[[Any], None] | None = None,
        loss: tuple[str, dict[str, float], Tensor] | None = None,
    ) -> tuple[Graph, bytes, Tensor | None]:
        """Graph (its outputs: what the model returned), their structure, and the generator's state afterwards."""
        segment = self._segment(cut)
        inputs, wanted = self._inputs(frame, keep)
        given = [read_raw(h, p) for h, p in of_role(frame.tensors, frame.parts, Role.GENERATOR)]
        if given and (len(given) > 1 or self.device.type != "cpu"):
            raise ProtocolError("a generator's state is of use to a tail on a CPU only; connect with carry_rng=False")
        draws = bool(given) or (segment is not None and training in self._draws[cut])
        if segment is not None:
            set_mode(segment, training, self._fixed[cut], self.setup.fixed_training)
        caught: dict[int, Tensor] = {}
        for i, leaf in enumerate(inputs):
            if leaf.requires_grad:
                leaf.register_hook(_catch(caught, i))  # type: ignore[no-untyped-call]
        with _told(), torch.enable_grad() if keep else torch.no_grad():
            value: Any = inputs[0] if len(inputs) == 1 else tuple(inputs)
            # Not while the host further up is waited for: other sessions draw here too.
            with self.generator.drawing(given[0] if given else None) if draws else nullcontext():
                if segment is not None:
                    value = segment(*inputs) if segment.at[0] is not None else _called(segment, self.setup, inputs)
                if then is not None:
                    then(value)
                    value = ()
            if self.upstream is not None:
                value = self.upstream.run(value, training, loss)
            structure, found = outputs.describe(value)
        return Graph(inputs, wanted, found, caught), structure, self.generator.cpu if given else None

    def _inputs(self, frame: Frame, keep: bool) -> tuple[list[Tensor], list[bool]]:
        inputs: list[Tensor] = []
        wanted: list[bool] = []
        for header, part in of_role(frame.tensors, frame.parts, Role.ACTIVATION):
            # A mark behind the number says that the head has no use for the gradient.
            mark = header.name.endswith("-")
            plain = TensorHeader(
                header.role,
                header.dtype,
                header.shape,
                header.coded_bytes,
                header.stages,
                header.name.removesuffix("-"),
            )
            number, tensor = self.activations.receive(plain, part)
            if number != len(inputs):
                raise ProtocolError(f"activation {number} comes where {len(inputs)} should")
            tensor = tensor.to(self.device)
            wanted.append(keep and tensor.is_floating_point() and not mark)
            inputs.append(tensor.requires_grad_(wanted[-1]))
        if not inputs:
            raise ProtocolError("a forward without activations")
        return inputs, wanted

    def _segment(self, cut: int) -> Segment | None:
        if not 0 <= cut < len(self.segments):
            raise ProtocolError(f"cut {cut} of a session that has {len(self.segments)}")
        return self.segments[cut]

    @contextmanager
    def _undone(self, cut: int, training: bool, seq: int) -> Iterator[None]:
        """Put buffers and the generator back when the model fails, or what it returns can't be sent."""
        segment, generator = self._segment(cut), self.generator
        if training and not self.training:
            raise ProtocolError("a forward in training mode in an inference session; open one for training")
        kept = [b.clone() for b in segment.buffers()] if segment is not None and training else []
        drawn = generator.cpu, generator.cuda
        try:
            yield
        except Exception:
            self.graphs.drop(seq)
            generator.cpu, generator.cuda = drawn
            with torch.no_grad():
                for buffer, before in zip(segment.buffers() if segment is not None and kept else (), kept, strict=True):
                    buffer.copy_(before)
            raise

    def _backpropagate(
        self,
        graph: Graph,
        values: list[Tensor],
        grads: list[Tensor] | None,
        tensors: list[tuple[TensorHeader, Buffer]],
    ) -> Done:
        with _half_way():
            if values:
                torch.autograd.backward(values, grads)
            for i, (leaf, wanted) in enumerate(zip(graph.inputs, graph.wanted, strict=True)):
                if wanted and (gradient := graph.caught.get(i)) is not None:
                    tensors.append(self.gradients.send(Role.GRADIENT, i, gradient, training=True))
                leaf.grad = None
            return self._advised(_done(tensors), graph)

    def _advised(self, done: Done, graph: Graph) -> Done:
        """With what the client's encoder should do differently, where its codec follows the gradients."""
        if self.optimizer is None or 0 not in graph.caught or not self._adaptive:
            return done
        momentum = mean_momentum(self.optimizer, (p for _, p in self.parameters()))
        self.activations.first.observe(gradient_norm=gradient_norm(graph.caught[0]), momentum=momentum)
        advice = self.activations.first.feedback()
        return replace(done, feedback=msgspec.json.encode(advice)) if advice else done


def _catch(caught: dict[int, Tensor], number: int) -> Callable[[Tensor], None]:
    def hook(gradient: Tensor) -> None:
        caught[number] = gradient

    return hook


def _called(segment: Segment, setup: Setup, inputs: list[Tensor]) -> Any:
    """A part that begins with the model takes the model's own arguments."""
    args, kwargs = outputs.rebuild(setup.call.encode(), len(inputs), lambda i: inputs[i], {})
    return segment(*args, **kwargs)


def _scores(value: Any) -> Tensor:
    """What a loss is computed on: the output, or the one that transformers call logits."""
    if isinstance(value, Tensor):
        return value
    logits = getattr(value, "logits", None)
    if logits is None and isinstance(value, dict):
        logits = value.get("logits")
    if not isinstance(logits, Tensor):
        raise InputError(
            f"a loss of a {type(value).__name__} without logits; let the model return one tensor, or compute the loss "
            "yourself"
        )
    return logits


@contextmanager
def _told() -> Iterator[None]:
    """Say in an error of ours that the model failed."""
    try:
        yield
    except FoglineError:
        raise
    except torch.OutOfMemoryError as error:
        raise CapacityError("the tail's device has no memory left; send smaller batches") from error
    except Exception as error:
        raise InputError(f"the tail fails on this input: {type(error).__name__}: {str(error)[:500]}") from error


@contextmanager
def _half_way() -> Iterator[None]:
    """Whatever goes wrong in here leaves the session in a state that nobody knows."""
    try:
        yield
    except Exception as error:
        # What torch refuses here is mostly a script's mistake, such as a step between a forward and its backward.
        told = f"the tail fails half-way, which ends the session: {type(error).__name__}: {str(error)[:500]}"
        cause = error if isinstance(error, FoglineError) else InputError(told)
        if isinstance(error, torch.OutOfMemoryError):
            cause = CapacityError("the tail's device has no memory left; send smaller batches")
        raise BrokenSessionError(cause) from error


def _meta(tensor: Tensor) -> Tensor:
    return torch.empty(tensor.shape, dtype=tensor.dtype, device="meta")


def _bytes(data: bytes) -> Tensor:
    return torch.frombuffer(bytearray(data), dtype=torch.uint8)


def _done(tensors: Sequence[tuple[TensorHeader, Buffer]], structure: bytes = b"") -> Done:
    return Done(tuple(h for h, _ in tensors), tuple(p for _, p in tensors), structure)
