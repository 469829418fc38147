"""`RemoteTail`: the part of a model that another host runs, as a module that autograd goes through."""

from __future__ import annotations

import asyncio
import collections
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from types import TracebackType
from typing import Any

import msgspec
import torch
from torch import Tensor, nn

from fogline.common.config import TlsConfig
from fogline.common.errors import ConfigError, FoglineError, InputError, ProtocolError, UnavailableError
from fogline.common.metrics import SplitMetrics
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.tensor_client import TensorClient, Timing
from fogline.common.split.segments import Segment
from fogline.common.tails import clipping, losses
from fogline.common.tails.ahead import through_losses, through_outputs
from fogline.common.tails.observed import Observed
from fogline.common.tails.operations import Operations
from fogline.common.tails.parts import Parts, digest, read_weights
from fogline.common.tails.remote_optimizer import RemoteOptimizer
from fogline.common.tails.setup import Codecs, Setup, json_able
from fogline.common.tails.tensors import of_role, raw, read_raw
from fogline.common.tails.through import LossThrough, Through
from fogline.common.wire.session_client import LOG_BYTES, ClientSession
from fogline.common.wire.tensors import Buffer, Limits, Role, TensorHeader

Sent = tuple[TensorHeader, Buffer]

# The host's own are lower unless its operator raised them; weights of a tail are one frame.
LIMITS = Limits(max_frame_bytes=8 << 30, max_tensor_bytes=8 << 30)


class RemoteTail(Operations):
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
        carry: frozenset[bool],
        watch: Observed | None = None,
    ) -> None:
        """For `connect`."""
        super().__init__(client, parts, setup, training=training, carry=carry, watch=watch)
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
        begun: Callable[[RemoteTail], None] | None = None,
    ) -> RemoteTail:
        """Open a session at the tail host `address` (host:port) and send it the tail's weights.

        `model` ("package.module:function") and `kwargs` build the model there; `weights` is the tail of `split`, or
        (for three tiers) its middle and tail, either of which may be None, or (for inference) tails of several cuts.
        `at` is only checked against these. With `optimizer` (see `tails.optimizer`) the session is for training,
        without for inference, unless `training` says so. Without `tls` nothing is encrypted, and only loopback is
        allowed; `name` is then who we say we are. Codecs are chains like "fp16+zstd"; gradients have that of what they
        belong to, unless told. `carry_rng`: one stream of random numbers through head and tail (default: in the modes
        in which the tail draws any). Modules of the tail that were set to another mode than the tail itself keep it.
        `resume`: what `checkpoint` returned. Waiting ends when nothing was heard for `stall_s` (then the connection is
        made again) or nothing works for `give_up_s`; for `connect_s` where nobody answered yet. `begun` is told of the
        remote tail before that, so that another thread can `interrupt` it. `metrics`: where what steps take, their
        bytes and the cut are counted, for Prometheus.

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
            fixed=parts.fixed,
            fixed_training=parts.fixed_training,
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
        carry = parts.draws | {True} if carry_rng else frozenset() if carry_rng is False else parts.draws
        remote = cls(client, parts, setup, training=for_training, carry=carry, watch=watch)
        watch.connected(remote)
        remote.session_id = session_id
        try:
            if begun is not None:
                begun(remote)
            client.wait_open()
            if resume is None:
                tensors = tuple(raw(Role.WEIGHTS, torch.frombuffer(bytearray(f), dtype=torch.uint8)) for f in files)
                remote._wait(remote._submit(pb.LoadWeights(), tensors))
                if for_training:
                    remote._later(remote._for_restarts())
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
        return self.rebuilt(call.structure, found)

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
        if self._mode:
            raise InputError("submit is for inference; call eval() first, or the module itself for training")
        if self._mode in self._carry:
            raise InputError(
                "submit: this tail draws random numbers in evaluation mode, too, and each answer brings the state that "
                "the next call goes on from; call the module itself, or connect with carry_rng=False"
            )
        cut = self._parts.cut(at)
        tensors = self._parts.flat(args, kwargs, cut)
        answered = self._send_forward(tensors, cut, keep=False, wanted=None)
        return self._decoding.submit(lambda: self._result(tensors, self._decoded(self._wait(answered), tensors)))

    async def ainfer(self, *args: Any, at: str | None = None, **kwargs: Any) -> Any:
        """`submit` on an event loop."""
        return await asyncio.wrap_future(await asyncio.to_thread(self.submit, *args, at=at, **kwargs))

    # -- training

    def accumulate(
        self,
        head: Callable[..., Any] | None,
        batches: Iterable[tuple[Any, Any]],
        loss: Callable[[Any, Any], Tensor] | str,
        *,
        ahead: int = 8,
        at: str | None = None,
        scale: float = 1.0,
        **options: float,
    ) -> Iterator[Tensor]:
        """Run micro-batches (inputs, labels) forward and backward, up to `ahead` of them under way at the host.

        Gradients add up at both ends as a loop over the micro-batches would leave them, to the bit; zero_grad, step and
        clipping stay the script's. Yields each loss, detached, once its gradients are in: go through all of them
        before a step. `loss` is a function of (output, labels), whose result times `scale` is gone backward from; or a
        name as for `loss()`, with its options: then labels travel, and a micro-batch is one round trip, not two.
        `head` is called with the inputs (a tuple: as arguments, a dict: by name); None where the tail begins with the
        model. The graphs of twice `ahead` micro-batches stay in the head's memory, and in the host's.

        Raises what `forward` and `loss` raise; ConfigError, where the tail draws random numbers in this mode and they
        are those of the head's stream: each micro-batch would have to wait for the one before.
        """
        if self._mode in self._carry:
            raise ConfigError(
                "accumulate: this tail draws random numbers, and each answer brings the state that the next forward "
                "goes on from; loop over the micro-batches, or connect with carry_rng=False, which gives the tail a "
                "stream of its own"
            )
        if not self._for_training:
            raise InputError("accumulate: this session is for inference; pass optimizer= to connect")
        if ahead < 1:
            raise InputError(f"ahead={ahead}; at least one micro-batch must be under way")
        if isinstance(loss, str):
            losses.check(loss, options)
            named = options | ({"scale": scale} if scale != 1.0 else {})
            return through_losses(self, head, batches, loss, named, self._parts.cut(at), ahead)
        if options:
            raise InputError(f"option {sorted(options)[0]!r} is for losses that are given by name")
        return through_outputs(self, head, batches, loss, scale, self._parts.cut(at), ahead)

    def zero_grad(self, set_to_none: bool = True) -> None:
        """As `optimizer.zero_grad()`."""
        if not set_to_none:
            raise InputError("a remote tail drops gradients; call zero_grad() without set_to_none=False")
        self._later(pb.ZeroGrad())

    def step(self, changes: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """For `optimizer`: a step after these changes of hyper-parameters, by group."""
        made = [pb.GroupChange(group=group, values=dict(values)) for group, values in changes]
        self._later(pb.OptimizerStep(changes=made))
        if self._client.session.wants_checkpoint and not self._graphs and not self._begun:
            self._later(self._for_restarts())

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
        return self.make_checkpoint(keep=True)

    def make_checkpoint(self, keep: bool) -> dict[str, Any]:
        """`checkpoint`; without `keep` the next one replaces it at the host, unless it is in `held` then."""
        self.settle()
        self._wait(self._submit(pb.Checkpoint(keep=keep, hold=self.held)))
        token: dict[str, Any] = {"session": self.session_id.hex(), "seq": self._client.session.answered}
        if "optimizer" in self.__dict__:
            token["optimizer"] = self.optimizer.state_dict()
        if codecs := {key: state for key, end in self._coders().items() if (state := end.state_dict())}:
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
        if not self._ours:
            return
        self._client.close()
        self._decoding.shutdown(wait=False)

    def interrupt(self, why: str) -> None:
        """Have what waits for the host fail with UnavailableError, and all that is to come. From any thread."""
        self._client.interrupt(UnavailableError(f"{why}; connect anew, or from a checkpoint"))

    def abandon(self) -> None:
        """Leave without ending the session, so that `connect(resume=…)` can go on with it."""
        if not self._ours:
            return
        self._client.abandon()
        self._decoding.shutdown(wait=False)

    def __enter__(self) -> RemoteTail:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _restore_groups(self, resume: Mapping[str, Any]) -> None:
        if (state := resume.get("optimizer")) is not None:
            self.optimizer.load_state_dict(dict(state))
        self.optimizer.resend()
        coders = self._coders()
        for key, kept in dict(resume.get("codecs") or {}).items():
            if key in coders:
                coders[key].load_state_dict(kept)


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
