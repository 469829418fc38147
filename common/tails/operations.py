"""What a remote tail sends and how it reads the answers: tensors coded and decoded, graphs kept, errors told later."""

from __future__ import annotations

import collections
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import msgspec
import torch
from torch import Tensor

from fogline.common.errors import CapacityError, ProtocolError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.tensor_client import Answered, TensorClient
from fogline.common.tails import outputs
from fogline.common.tails.connected import Connected
from fogline.common.tails.generator import DefaultGenerator, Generator
from fogline.common.tails.observed import Observed
from fogline.common.tails.parts import Parts
from fogline.common.tails.setup import Setup
from fogline.common.tails.tensors import Receiver, Sender, of_role, raw, read_raw
from fogline.common.wire.tensors import Buffer, Role, TensorHeader

Sent = tuple[TensorHeader, Buffer]


class Operations(Connected):
    """See the module. `run_kept` to `abandon_graph` are what `Through` needs."""

    def __init__(
        self,
        client: TensorClient,
        parts: Parts,
        setup: Setup,
        *,
        training: bool,
        carry: frozenset[bool],
        watch: Observed | None = None,
    ) -> None:
        """For `connect`."""
        super().__init__()
        self._client, self._parts, self._setup = client, parts, setup
        self._watch = watch or Observed(None)
        self._for_training = training
        self._carry = carry  # modes (training: True) in which the state of the random numbers travels
        activations, gradients, results, result_gradients = setup.codecs.chains()
        self._activations, self._gradients = Sender(activations), Receiver(gradients)
        self._outputs, self._output_gradients = Receiver(results), Sender(result_gradients)
        self._encoding = threading.Lock()  # codecs are told of tensors in the order in which these are sent
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="tensor-answers")
        self._unseen: collections.deque[Future[Answered]] = collections.deque()  # nobody waits for their answers
        self._abandoned: collections.deque[int] = collections.deque()  # forwards whose graph nobody needs
        self._graphs: set[int] = set()
        self._begun: set[Future[Answered]] = set()  # forwards that keep a graph, and were not looked at yet
        self._dropped: set[Future[Answered]] = set()  # of them, those that nobody will look at
        self._dropping = threading.Lock()
        self.random: Generator = DefaultGenerator()  # of the numbers that head and tail draw one after the other
        self.waiting: Callable[[], AbstractContextManager[None]] = nullcontext  # entered while an answer is awaited
        self.held: tuple[int, ...] = ()  # checkpoints that the host is to keep besides the newest
        self.training = training

    # -- for Through

    def run_kept(self, tensors: Sequence[Tensor], cut: int, wanted: Sequence[bool]) -> tuple[int, bytes, list[Tensor]]:
        """A forward that keeps its graph: its number, the outputs' structure and the outputs."""
        return self.end_kept(self.begin_kept(tensors, cut, wanted), tensors)

    def begin_kept(self, tensors: Sequence[Tensor], cut: int, wanted: Sequence[bool]) -> Future[Answered]:
        """Send it. `end_kept` or `drop_kept` follows."""
        future = self._send_forward(tensors, cut, keep=True, wanted=wanted)
        self._begun.add(future)
        return future

    def end_kept(self, future: Future[Answered], tensors: Sequence[Tensor]) -> tuple[int, bytes, list[Tensor]]:
        """Wait for its answer."""
        try:
            answered = self._wait(future)
            structure, found = self._decoded(answered, tensors)
        except BaseException:  # an interrupt too: nobody will go backward through it
            self.drop_kept(future)
            raise
        self._begun.discard(future)
        self._graphs.add(answered.frame.seq)
        return answered.frame.seq, structure, found

    def drop_kept(self, future: Future[Answered]) -> None:
        """Nobody wants its answer, or its graph."""
        self._dropped.add(future)
        future.add_done_callback(self._drop_graph)

    def _drop_graph(self, future: Future[Answered]) -> None:
        with self._dropping:
            if future not in self._dropped:
                return
            self._dropped.discard(future)
        self._begun.discard(future)
        if future.exception() is None:
            seq = future.result().frame.seq
            self._graphs.add(seq)
            self.abandon_graph(seq)

    def settle(self) -> None:
        """Wait until the host can be told of every forward that nobody wants any more."""
        for future in list(self._dropped):
            wait((future,))
            self._drop_graph(future)

    def run_backward(
        self, forward: int, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of a forward's activations, from those of its outputs."""
        future = self.begin_backward(forward, grads)
        if not any(wanted):
            self._unseen.append(future)
            return [None] * len(tensors)
        return self.end_backward(future, tensors)

    def begin_backward(self, forward: int, grads: Sequence[Tensor | None]) -> Future[Answered]:
        """Send it. `end_backward` follows, or nobody waits for its answer."""
        self._check_process()
        try:
            with self._encoding, self._watch.part("backward", "encode"):
                sent = [
                    self._output_gradients.send(Role.OUTPUT_GRADIENT, i, grad, training=True, keep=True)
                    for i, grad in enumerate(grads)
                    if grad is not None
                ]
                self._watch.moved("sent", [header for header, _ in sent])
                future = self._submit(pb.Backward(forward=forward), tuple(sent))
        except BaseException:
            self.abandon_graph(forward)
            raise
        self._graphs.discard(forward)
        return future

    def end_backward(self, future: Future[Answered], tensors: Sequence[Tensor]) -> list[Tensor | None]:
        """Wait for the gradients of the activations, which were like `tensors`."""
        return self._gradients_of(self._wait(future), tensors, "backward")

    def run_loss(
        self,
        tensors: Sequence[Tensor],
        cut: int,
        loss: str,
        options: Mapping[str, float],
        labels: Tensor,
        wanted: Sequence[bool] | None,
    ) -> tuple[Tensor, list[Tensor | None]]:
        """The loss, and the gradients of the activations if any are `wanted`."""
        return self.end_loss(self.begin_loss(tensors, cut, loss, options, labels, wanted), tensors)

    def begin_loss(
        self,
        tensors: Sequence[Tensor],
        cut: int,
        loss: str,
        options: Mapping[str, float],
        labels: Tensor,
        wanted: Sequence[bool] | None,
    ) -> Future[Answered]:
        """Send it. `end_loss` follows, or nobody waits for its answer."""
        self._check_process()
        with self._encoding:
            sent = self._coded(tensors, wanted, "forward_loss", keep=wanted is not None)
            sent.append(raw(Role.LABELS, labels.detach().clone()))
            body = pb.ForwardLoss(training=self._mode, backward=wanted is not None, loss=loss, options=options, cut=cut)
            future = self._submit(body, tuple(sent))
        self._watch.called(self._parts.cuts[cut][0])
        return future

    def end_loss(self, future: Future[Answered], tensors: Sequence[Tensor]) -> tuple[Tensor, list[Tensor | None]]:
        """Wait for the loss and the gradients."""
        answered = self._wait(future)
        self._take_generator(answered)
        found = [read_raw(h, p) for h, p in of_role(answered.frame.tensors, answered.frame.parts, Role.LOSS)]
        if len(found) != 1 or found[0].ndim:
            raise ProtocolError("the host's answer has no loss")
        return found[0].to(tensors[0].device), self._gradients_of(answered, tensors, "forward_loss")

    def abandon_graph(self, forward: int) -> None:
        """The graph of a forward is not needed; told with the next operation. Safe where garbage is collected."""
        self._abandoned.append(forward)

    def crossing(self, args: tuple[Any, ...], kwargs: Mapping[str, Any], cut: int) -> list[Tensor]:
        """What the head returned, as it goes over a cut. Raises InputError."""
        return self._parts.flat(args, kwargs, cut)

    def rebuilt(self, structure: bytes, found: Sequence[Tensor]) -> Any:
        """What the model returns, of the tensors that came."""
        return outputs.rebuild(structure, len(found), lambda i: found[i], self._parts.classes)

    # -- operations

    def _anchor(self) -> Tensor:
        """Something that wants a gradient, so that autograd comes here also where the head has no parameters."""
        return torch.zeros((), requires_grad=True)

    def _run(self, tensors: Sequence[Tensor], cut: int) -> tuple[bytes, list[Tensor]]:
        return self._decoded(self._wait(self._send_forward(tensors, cut, keep=False, wanted=None)), tensors)

    def _result(self, tensors: Sequence[Tensor], decoded: tuple[bytes, list[Tensor]]) -> Any:
        structure, found = decoded
        return self.rebuilt(structure, found)

    def _send_forward(
        self, tensors: Sequence[Tensor], cut: int, *, keep: bool, wanted: Sequence[bool] | None
    ) -> Future[Answered]:
        self._check_process()
        with self._encoding:
            sent = self._coded(tensors, wanted, "forward", keep=keep)
            future = self._submit(pb.Forward(training=self._mode, keep_graph=keep, cut=cut), tuple(sent))
        self._watch.called(self._parts.cuts[cut][0])
        return future

    @property
    def _mode(self) -> bool:
        """Whether what is run now is run in training mode: never in a session for inference."""
        return self.training and self._for_training

    def _coded(
        self, tensors: Sequence[Tensor], wanted: Sequence[bool] | None, operation: str, *, keep: bool
    ) -> list[Sent]:
        sent: list[Sent] = []
        with self._watch.part(operation, "encode"):
            for i, tensor in enumerate(tensors):
                header, part = self._activations.send(
                    Role.ACTIVATION, i, tensor, training=keep and self.training, keep=self._for_training
                )
                if keep and wanted is not None and not wanted[i]:
                    header = dataclasses.replace(header, name=header.name + "-")  # the head has no use for the gradient
                sent.append((header, part))
        self._watch.moved("sent", [header for header, _ in sent])
        if self._mode in self._carry:
            sent.append(raw(Role.GENERATOR, self.random.get()))
        return sent

    def _submit(self, body: Any, tensors: Sequence[Sent] = ()) -> Future[Answered]:
        """Append an operation. Raises what went wrong with an earlier one that nobody waited for."""
        self._check_process()
        self._look()
        while self._abandoned:
            forward = self._abandoned.popleft()
            if forward in self._graphs:
                self._graphs.discard(forward)
                self._unseen.append(self._client.submit(pb.Release(forward=forward)))
        headers, parts = tuple(h for h, _ in tensors), tuple(p for _, p in tensors)
        try:
            return self._client.submit(body, headers, parts)
        except CapacityError:
            if not self._for_training or self._graphs or self._begun:
                raise
            # Make room: what is durable leaves the log.
            self._client.submit(self._for_restarts()).result()
            return self._client.submit(body, headers, parts)

    def _later(self, body: Any) -> None:
        """An operation whose answer says nothing; errors are raised by a later one."""
        self._unseen.append(self._submit(body))

    def _look(self) -> None:
        while self._unseen and self._unseen[0].done():
            self._unseen.popleft().result()

    def _wait(self, future: Future[Answered]) -> Answered:
        with self.waiting():
            answered = future.result()
        self._look()  # answers come in order: those of all earlier operations are there
        if answered.body.feedback:
            self._follow(answered.body.feedback)
        return answered

    def _follow(self, feedback: bytes) -> None:
        try:
            made = msgspec.json.decode(feedback, type=dict[str, dict[str, float]])
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the host's feedback on the codec is malformed: {error}") from error
        with self._encoding:
            self._activations.first.apply(made)

    def _decoded(self, answered: Answered, tensors: Sequence[Tensor]) -> tuple[bytes, list[Tensor]]:
        self._take_generator(answered)
        found: list[Tensor] = []
        coded = of_role(answered.frame.tensors, answered.frame.parts, Role.OUTPUT)
        with self._watch.part("forward", "decode"):
            for header, part in coded:
                number, tensor = self._outputs.receive(header, part)
                if number != len(found):
                    raise ProtocolError(f"output {number} comes where {len(found)} should")
                found.append(tensor.to(tensors[0].device))
        self._watch.moved("received", [header for header, _ in coded])
        return answered.body.structure, found

    def _take_generator(self, answered: Answered) -> None:
        for header, part in of_role(answered.frame.tensors, answered.frame.parts, Role.GENERATOR):
            if not self._carry:
                raise ProtocolError("the host sent a generator's state that nobody asked for")
            self.random.set(read_raw(header, part))

    def _gradients_of(self, answered: Answered, tensors: Sequence[Tensor], operation: str) -> list[Tensor | None]:
        found: list[Tensor | None] = [None] * len(tensors)
        coded = of_role(answered.frame.tensors, answered.frame.parts, Role.GRADIENT)
        with self._watch.part(operation, "decode"):
            for header, part in coded:
                number = Receiver.number(header)
                if not 0 <= number < len(tensors):
                    raise ProtocolError(f"a gradient of activation {number}; there are {len(tensors)}")
                _, gradient = self._gradients.receive(header, part, like=tensors[number])
                found[number] = gradient.to(tensors[number].device)
        self._watch.moved("received", [header for header, _ in coded])
        return found

    def _for_restarts(self) -> pb.Checkpoint:
        return pb.Checkpoint(hold=self.held)

    def _coders(self) -> dict[str, Sender | Receiver]:
        return {
            "activations": self._activations,
            "gradients": self._gradients,
            "outputs": self._outputs,
            "output_gradients": self._output_gradients,
        }
