"""`RemoteTail`: the part of a model that another host runs, as a module that autograd goes through."""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import secrets
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from types import TracebackType
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fogline.common.config import TlsConfig
from fogline.common.errors import CapacityError, ConfigError, FoglineError, InputError, ProtocolError
from fogline.common.metrics import SplitMetrics
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.tensor_client import Answered, TensorClient, Timing
from fogline.common.split.segments import Segment
from fogline.common.tails import clipping, losses, outputs
from fogline.common.tails.generator import set_state
from fogline.common.tails.observed import Observed
from fogline.common.tails.parts import Parts, digest, read_weights
from fogline.common.tails.remote_optimizer import RemoteOptimizer
from fogline.common.tails.setup import Codecs, Setup, json_able
from fogline.common.tails.tensors import Receiver, Sender, of_role, raw, read_raw
from fogline.common.tails.through import LossThrough, Through
from fogline.common.wire.session_client import LOG_BYTES, ClientSession
from fogline.common.wire.tensors import Buffer, Limits, Role, TensorHeader

Sent = tuple[TensorHeader, Buffer]

# The host's own are lower unless its operator raised them; weights of a tail are one frame.
LIMITS = Limits(max_frame_bytes=8 << 30, max_tensor_bytes=8 << 30)


class RemoteTail(nn.Module):
    """See the module; made by `connect`. Close it, or use it in `with`.

    Training is one thread's; `submit` and `ainfer` may be called from any. It has no parameters of its own: they are at
    the host, where `optimizer` steps them. `train()` and `eval()` hold for what is run afterwards.
    """

    def __init__(
        self,
        client: TensorClient,
        parts: Parts,
        setup: Setup,
        *,
        training: bool,
        carry_rng: bool,
        watch: Observed | None = None,
    ) -> None:
        """For `connect`."""
        super().__init__()
        self._client, self._parts, self._setup = client, parts, setup
        self._watch = watch or Observed(None)
        self._for_training, self._carry = training, carry_rng
        activations, gradients, results, result_gradients = setup.codecs.chains()
        self._activations, self._gradients = Sender(activations), Receiver(gradients)
        self._outputs, self._output_gradients = Receiver(results), Sender(result_gradients)
        self._encoding = threading.Lock()  # codecs are told of tensors in the order in which these are sent
        self._decoding = ThreadPoolExecutor(1, thread_name_prefix="tensor-answers")
        self._unseen: collections.deque[Future[Answered]] = collections.deque()  # nobody waits for their answers
        self._abandoned: collections.deque[int] = collections.deque()  # forwards whose graph nobody needs
        self._graphs: set[int] = set()
        self.training = training
        self.optimizer: RemoteOptimizer
        if setup.optimizer is not None:
            self.__dict__["optimizer"] = RemoteOptimizer(self, setup.optimizer)

    def __getattr__(self, name: str) -> Any:
        if name == "optimizer":
            raise ConfigError("this remote tail has no optimizer; pass optimizer={'name': 'sgd', 'lr': 0.1} to connect")
        return super().__getattr__(name)

    @classmethod
    def connect(
        cls,
        address: str,
        *,
        model: str,
        weights: Segment | Sequence[Segment | None],
        at: Any = None,
        kwargs: Mapping[str, Any] | None = None,
        optimizer: Mapping[str, Any] | None = None,
        tls: TlsConfig | None = None,
        name: str = "edge",
        role: str = "edge",
        codec: str = "raw",
        gradient_codec: str | None = None,
        output_codec: str = "raw",
        output_gradient_codec: str | None = None,
        training: bool | None = None,
        carry_rng: bool | None = None,
        seed: int | None = None,
        resume: Mapping[str, Any] | None = None,
        connect_s: float = 20.0,
        stall_s: float = 30.0,
        give_up_s: float = 120.0,
        log_bytes: int = LOG_BYTES,
        meter: LinkMeter | None = None,
        observe: Callable[[Timing], None] | None = None,
        metrics: SplitMetrics | Observed | None = None,
    ) -> RemoteTail:
        """Open a session at the tail host `address` (host:port) and send it the tail's weights.

        `model` ("package.module:function") and `kwargs` build the model there; `weights` is the tail of `split`, or
        (for three tiers) its middle and tail, either of which may be None, or (for inference) tails of several cuts.
        `at` is only checked against these. With `optimizer` (see `tails.optimizer`) the session is for training,
        without for inference, unless `training` says so. Without `tls` nothing is encrypted, and only loopback is
        allowed; `name`
        is then who we say we are. Codecs are chains like "fp16+zstd"; gradients have that of what they belong to,
        unless told. `carry_rng`: one stream of random numbers through head and tail (default: if the tail draws any, in
        training). `resume`: what `checkpoint` returned. Waiting ends when nothing was heard for `stall_s` (then the
        connection is made again) or nothing works for `give_up_s`; for `connect_s` where nobody answered yet.
        `metrics`: where what steps take, their bytes and the cut are counted, for Prometheus.

        Raises ConfigError, InputError, FormatError, IdentityError, CapacityError or UnavailableError.
        """
        parts = Parts.of(weights, at)
        for_training = (optimizer is not None) if training is None else training
        if for_training and (why := parts.untrainable):
            raise InputError(f"no training over this cut: {why}. Use another, or leave `optimizer` out")
        codecs = Codecs.of(
            codec,
            codec if gradient_codec is None else gradient_codec,
            output_codec,
            output_codec if output_gradient_codec is None else output_gradient_codec,
        )
        files = [] if resume is not None else parts.files()
        parts.drop()
        setup = Setup(
            model=model,
            kwargs=json_able(kwargs or {}),
            architecture=parts.architecture,
            weights=digest(files) if files else "0" * 64,
            cuts=parts.cuts,
            max_tensors=parts.max_tensors,
            call=parts.call,
            inputs=parts.inputs,
            optimizer=None if optimizer is None else json_able(optimizer),
            codecs=codecs,
            seed=torch.initial_seed() & ((1 << 62) - 1) if seed is None else seed,
            upstream=parts.further,
        )
        if optimizer is not None:
            RemoteOptimizer(_Nobody(), optimizer)  # refuse a wrong one before anybody is called
        session_id, begin = _resumed(resume)
        watch = metrics if isinstance(metrics, Observed) else Observed(metrics)
        watch.codec = codec
        counter = None if watch.metrics is None else watch.metrics.link_bytes
        client = TensorClient(
            address,
            tls or TlsConfig(insecure=True),
            ClientSession(durable_answers=not for_training, log_bytes=log_bytes, limits=LIMITS, resume_from=begin),
            session_id=session_id,
            mode=pb.SESSION_MODE_TRAINING if for_training else pb.SESSION_MODE_INFERENCE,
            setup=setup.pack(),
            meter=meter or LinkMeter("edge-fog", counter),
            me=Peer(name, role),
            limits=LIMITS,
            connect_s=connect_s,
            stall_s=stall_s,
            give_up_s=give_up_s,
            observe=lambda timing: _tell(timing, watch, observe),
        )
        carry = for_training and parts.draws_random if carry_rng is None else carry_rng
        remote = cls(client, parts, setup, training=for_training, carry_rng=carry, watch=watch)
        watch.connected(remote)
        remote.session_id = session_id
        try:
            client.wait_open()
            if resume is None:
                tensors = tuple(raw(Role.WEIGHTS, torch.frombuffer(bytearray(f), dtype=torch.uint8)) for f in files)
                remote._wait(remote._submit(pb.LoadWeights(), tensors))
                if for_training:
                    remote._later(pb.Checkpoint())
            elif optimizer is not None:
                remote._restore_groups(resume)
        except BaseException:
            client.close(0.0)
            remote._decoding.shutdown(wait=False)
            raise
        return remote

    session_id: bytes

    # -- running

    def forward(self, *args: Any, at: str | None = None, **kwargs: Any) -> Any:
        """What the tail returns for what the head returned: the same structure as that of the unsplit model.

        Goes through autograd in a session for training, unless under `torch.no_grad`. `at`: of several cuts.
        Raises what the host says, InputError for what is no output of the head.
        """
        cut = self._parts.cut(at)
        tensors = self._parts.flat(args, kwargs, cut)
        if not torch.is_grad_enabled():
            return self._result(tensors, self._run(tensors, cut))
        if not self._for_training:
            if any(t.requires_grad for t in tensors):
                raise InputError("this session is for inference; use torch.no_grad(), or pass optimizer= to connect")
            return self._result(tensors, self._run(tensors, cut))
        call = Through.Call(self, cut)
        found = Through.apply(call, self._anchor(), *tensors)  # type: ignore[no-untyped-call]
        return outputs.rebuild(call.structure, len(found), lambda i: found[i], self._parts.classes)

    def loss(self, *args: Any, loss: str, at: str | None = None, scale: float = 1.0, **options: float) -> Tensor:
        """Send labels with the activations: `remote.loss(h, labels, loss="cross_entropy")`. Returns a scalar.

        One round trip for a step: the host computes the loss times `scale` and goes backward at once, so that
        `backward()` here only goes on through the head. With accumulation over n batches pass scale=1 / n; the loss
        itself is not to be multiplied. Losses and options are those of `tails.losses`. Raises InputError.
        """
        if len(args) < 2 or not isinstance(args[-1], Tensor):
            raise InputError(
                'loss takes what the head returned, then the labels: remote.loss(h, labels, loss="cross_entropy")'
            )
        losses.check(loss, options)
        labels, cut = args[-1], self._parts.cut(at)
        tensors = self._parts.flat(args[:-1], {}, cut)
        wanted = dict(options) | ({"scale": scale} if scale != 1.0 else {})
        if torch.is_grad_enabled() and self._for_training:
            call = LossThrough.Call(self, cut, loss, wanted, labels)
            result: Tensor = LossThrough.apply(call, self._anchor(), *tensors)  # type: ignore[no-untyped-call]
            return result
        if torch.is_grad_enabled() and any(t.requires_grad for t in tensors):
            raise InputError("this session is for inference; use torch.no_grad(), or pass optimizer= to connect")
        value, _ = self.run_loss(tensors, cut, loss, wanted, labels, None)
        return value

    def submit(self, *args: Any, at: str | None = None, **kwargs: Any) -> Future[Any]:
        """`forward` for inference without waiting; several may be under way. Results come in order.

        The tensors must stay unchanged until then. Raises CapacityError when too much is under way, and InputError in
        training mode, where answers change the state of random numbers.
        """
        if self._for_training and self.training:
            raise InputError("submit is for inference; call eval() first, or the module itself for training")
        cut = self._parts.cut(at)
        tensors = self._parts.flat(args, kwargs, cut)
        answered = self._send_forward(tensors, cut, keep=False, wanted=None)
        return self._decoding.submit(lambda: self._result(tensors, self._decoded(self._wait(answered), tensors)))

    async def ainfer(self, *args: Any, at: str | None = None, **kwargs: Any) -> Any:
        """`submit` on an event loop."""
        return await asyncio.wrap_future(await asyncio.to_thread(self.submit, *args, at=at, **kwargs))

    # -- training

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `optimizer.zero_grad()`."""
        if not set_to_none:
            raise InputError("a remote tail drops gradients; call zero_grad() without set_to_none=False")
        self._later(pb.ZeroGrad())

    def step(self, changes: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """For `optimizer`: a step after these changes of hyper-parameters, by group."""
        made = [pb.GroupChange(group=group, values=dict(values)) for group, values in changes]
        self._later(pb.OptimizerStep(changes=made))
        if self._client.session.wants_checkpoint and not self._graphs:
            self._later(pb.Checkpoint())

    def clip_grad_norm_(
        self,
        parameters: nn.Module | Tensor | Iterable[Tensor],
        max_norm: float,
        norm_type: float = 2.0,
        error_if_nonfinite: bool = False,
    ) -> Tensor:
        """Clip the gradients of the head's `parameters` and of the tail by their common norm, which is returned.

        The same to the bit as `torch.nn.utils.clip_grad_norm_` over the unsplit model, if these are all of the head's.
        """
        given = list(parameters.parameters()) if isinstance(parameters, nn.Module) else parameters
        head = [given] if isinstance(given, Tensor) else list(given)
        tail = self.gradient_norms(norm_type)
        others = [n for n in self._parts.order if n not in self._parts.names]
        names = others if len(others) == len(head) else [""] * len(head)
        own = [(n, norm) for n, norm in zip(names, clipping.norms_of(head, norm_type), strict=True) if norm is not None]
        norm = clipping.total(self._parts.order, own, tail, norm_type)
        if error_if_nonfinite and not bool(norm.isfinite()):
            raise InputError(f"the gradients' norm of type {norm_type} is {float(norm)}, so they can't be clipped")
        factor = clipping.coefficient(max_norm, norm)
        grads = [p.grad for p in head if p.grad is not None]
        if grads:
            torch._foreach_mul_(grads, factor.to(grads[0].device))
        self.scale_gradients(float(factor))
        return norm

    def gradient_norms(self, norm_type: float = 2.0) -> dict[str, Tensor]:
        """The norm of each gradient at the host, by the parameter's name in the model."""
        answer = self._wait(self._submit(pb.GradientNorms(norm_type=norm_type)))
        found = [read_raw(h, p) for h, p in of_role(answer.frame.tensors, answer.frame.parts, Role.NORMS)]
        try:
            names = msgspec.json.decode(answer.body.structure, type=list[str])
        except msgspec.DecodeError as error:
            raise ProtocolError(f"the host's answer with norms is malformed: {error}") from error
        if len(found) != 1 or found[0].shape != (len(names),):
            raise ProtocolError("the host's answer has another number of norms than of names")
        return dict(zip(names, found[0].unbind(), strict=True))

    def scale_gradients(self, factor: float) -> None:
        """Multiply every gradient at the host."""
        self._later(pb.ScaleGradients(factor=factor))

    # -- state

    def checkpoint(self) -> dict[str, Any]:
        """Make the host's state durable; returns what `connect(resume=…)` goes on from.

        The host keeps the last two that were asked for. Not between forward and backward. A small dict of plain values,
        but for codecs that keep tensors (top-k): save it beside the head's own state.
        """
        self._wait(self._submit(pb.Checkpoint(keep=True)))
        token: dict[str, Any] = {"session": self.session_id.hex(), "seq": self._client.session.answered}
        if "optimizer" in self.__dict__:
            token["optimizer"] = self.optimizer.state_dict()
        ends = {"activations": self._activations.encoder, "gradients": self._gradients.decoder}
        ends |= {"outputs": self._outputs.decoder, "output_gradients": self._output_gradients.encoder}
        if codecs := {key: state for key, end in ends.items() if (state := end.state_dict())}:
            token["codecs"] = codecs
        return token

    def weights(self) -> dict[str, Tensor]:
        """The tail's parameters and persistent buffers as they are at the host, under the model's names."""
        answer = self._wait(self._submit(pb.FetchWeights()))
        found: dict[str, Tensor] = {}
        for header, part in of_role(answer.frame.tensors, answer.frame.parts, Role.WEIGHTS):
            found |= read_weights(read_raw(header, part).numpy().tobytes())
        return found

    def state_dict(self, *args: Any, destination: Any = None, prefix: str = "", keep_vars: bool = False) -> Any:
        """`weights`, in the way of modules: `head.state_dict() | remote.state_dict()` is the unsplit model's."""
        state = collections.OrderedDict() if destination is None else destination
        state.update({prefix + name: tensor for name, tensor in self.weights().items()})
        return state

    def load_weights(self, files: Sequence[bytes]) -> None:
        """Replace the weights at the host by safetensors files, one for each part of the tail."""
        tensors = tuple(raw(Role.WEIGHTS, torch.frombuffer(bytearray(f), dtype=torch.uint8)) for f in files)
        self._wait(self._submit(pb.LoadWeights(), tensors))

    @property
    def connected(self) -> bool:
        """Whether a host has the session now; what is sent meanwhile waits for one."""
        return self._client.connected

    @property
    def failure(self) -> FoglineError | None:
        """What ended the session for good, if something did: connect anew."""
        return self._client.failure

    def close(self) -> None:
        """End the session: the host forgets it, and its checkpoints. Idempotent."""
        self._client.close()
        self._decoding.shutdown(wait=False)

    def abandon(self) -> None:
        """Leave without ending the session, so that `connect(resume=…)` can go on with it."""
        self._client.abandon()
        self._decoding.shutdown(wait=False)

    def __enter__(self) -> RemoteTail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    # -- for Through

    def run_kept(self, tensors: Sequence[Tensor], cut: int, wanted: Sequence[bool]) -> tuple[int, bytes, list[Tensor]]:
        """A forward that keeps its graph: its number, the outputs' structure and the outputs."""
        future = self._send_forward(tensors, cut, keep=True, wanted=wanted)
        try:
            answered = self._wait(future)
            self._graphs.add(answered.frame.seq)
            structure, found = self._decoded(answered, tensors)
        except BaseException:  # an interrupt too: nobody will go backward through it
            future.add_done_callback(self._drop_graph)
            raise
        return answered.frame.seq, structure, found

    def _drop_graph(self, future: Future[Answered]) -> None:
        if future.exception() is None:
            seq = future.result().frame.seq
            self._graphs.add(seq)
            self.abandon_graph(seq)

    def run_backward(
        self, forward: int, grads: Sequence[Tensor | None], tensors: Sequence[Tensor], wanted: Sequence[bool]
    ) -> list[Tensor | None]:
        """Gradients of a forward's activations, from those of its outputs."""
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
        if not any(wanted):
            self._unseen.append(future)
            return [None] * len(tensors)
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
        with self._encoding:
            sent = self._coded(tensors, wanted, "forward_loss", keep=wanted is not None)
            sent.append(raw(Role.LABELS, labels.detach().clone()))
            body = pb.ForwardLoss(
                training=self.training, backward=wanted is not None, loss=loss, options=options, cut=cut
            )
            future = self._submit(body, tuple(sent))
        self._watch.called(self._parts.cuts[cut][0])
        answered = self._wait(future)
        self._take_generator(answered)
        found = [read_raw(h, p) for h, p in of_role(answered.frame.tensors, answered.frame.parts, Role.LOSS)]
        if len(found) != 1 or found[0].ndim:
            raise ProtocolError("the host's answer has no loss")
        return found[0].to(tensors[0].device), self._gradients_of(answered, tensors, "forward_loss")

    def abandon_graph(self, forward: int) -> None:
        """The graph of a forward is not needed; told with the next operation. Safe where garbage is collected."""
        self._abandoned.append(forward)

    # -- operations

    def _anchor(self) -> Tensor:
        """Something that wants a gradient, so that autograd comes here also where the head has no parameters."""
        return torch.zeros((), requires_grad=True)

    def _run(self, tensors: Sequence[Tensor], cut: int) -> tuple[bytes, list[Tensor]]:
        return self._decoded(self._wait(self._send_forward(tensors, cut, keep=False, wanted=None)), tensors)

    def _result(self, tensors: Sequence[Tensor], decoded: tuple[bytes, list[Tensor]]) -> Any:
        structure, found = decoded
        return outputs.rebuild(structure, len(found), lambda i: found[i], self._parts.classes)

    def _send_forward(
        self, tensors: Sequence[Tensor], cut: int, *, keep: bool, wanted: Sequence[bool] | None
    ) -> Future[Answered]:
        with self._encoding:
            sent = self._coded(tensors, wanted, "forward", keep=keep)
            training = self.training and self._for_training
            future = self._submit(pb.Forward(training=training, keep_graph=keep, cut=cut), tuple(sent))
        self._watch.called(self._parts.cuts[cut][0])
        return future

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
        if self._carry and self.training:
            sent.append(raw(Role.GENERATOR, torch.get_rng_state()))
        return sent

    def _submit(self, body: Any, tensors: Sequence[Sent] = ()) -> Future[Answered]:
        """Append an operation. Raises what went wrong with an earlier one that nobody waited for."""
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
            if not self._for_training or self._graphs:
                raise
            # Make room: what is durable leaves the log.
            self._client.submit(pb.Checkpoint()).result()
            return self._client.submit(body, headers, parts)

    def _later(self, body: Any) -> None:
        """An operation whose answer says nothing; errors are raised by a later one."""
        self._unseen.append(self._submit(body))

    def _look(self) -> None:
        while self._unseen and self._unseen[0].done():
            self._unseen.popleft().result()

    def _wait(self, future: Future[Answered]) -> Answered:
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
            self._activations.encoder.apply(made)

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
            set_state(read_raw(header, part))

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

    def _restore_groups(self, resume: Mapping[str, Any]) -> None:
        if (state := resume.get("optimizer")) is not None:
            self.optimizer.load_state_dict(dict(state))
        self.optimizer.resend()
        ends: dict[str, Any] = {"activations": self._activations.encoder, "gradients": self._gradients.decoder}
        ends |= {"outputs": self._outputs.decoder, "output_gradients": self._output_gradients.encoder}
        for key, kept in dict(resume.get("codecs") or {}).items():
            if key in ends:
                ends[key].load_state_dict(kept)


def _tell(timing: Timing, watch: Observed, observe: Callable[[Timing], None] | None) -> None:
    watch.timing(timing)
    if observe is not None:
        observe(timing)


class _Nobody:
    """A tail for an optimizer that is only looked at."""

    def zero_grad(self) -> None:
        """Nothing."""

    def step(self, changes: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Nothing."""


def _resumed(resume: Mapping[str, Any] | None) -> tuple[bytes, int]:
    if resume is None:
        return secrets.token_bytes(16), 0
    try:
        session, seq = bytes.fromhex(resume["session"]), int(resume["seq"])
        if len(session) != 16 or seq < 1:
            raise ValueError(f"session of {len(session)} bytes at {seq}")
    except (KeyError, TypeError, ValueError) as error:
        raise ConfigError(f"resume={resume!r} is not what checkpoint() returned: {error}") from error
    return session, seq
