"""What a tail host does with sessions: makes them from what a client says, or from their checkpoints."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any
from weakref import WeakSet, WeakValueDictionary

import msgspec
import torch
from torch import nn

from fogline.common import codecs as codec_stages
from fogline.common.blobs import DIGEST_BYTES, BlobStore
from fogline.common.config import TlsConfig
from fogline.common.errors import (
    CapacityError,
    ConfigError,
    IdentityError,
    InputError,
    ProtocolError,
    UnavailableError,
)
from fogline.common.models.loader import load_model
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.slots import Slots
from fogline.common.rpc.tensor_execution import Started
from fogline.common.split.cuts import architecture_hash
from fogline.common.split.profile import hardware_id
from fogline.common.split.segments import Segment, split
from fogline.common.split.trace import Example
from fogline.common.tails.checkpoint import Checkpoint, Checkpoints
from fogline.common.tails.config import TensorsConfig
from fogline.common.tails.executor import TailExecutor
from fogline.common.tails.generator import SessionGenerator
from fogline.common.tails.graphs import GraphMemory
from fogline.common.tails.hosted import HostedTail, check_same
from fogline.common.tails.modes import modules_of, set_mode
from fogline.common.tails.remote import RemoteTail
from fogline.common.tails.setup import Setup
from fogline.common.tails.tensors import TO_WIRE
from fogline.common.tails.upstream import Upstream

log = logging.getLogger(__name__)


class Shared:
    """Parts of a model whose weights no session changes: sessions for inference have them together."""

    def __init__(self, segments: list[Segment | None]) -> None:
        self.segments = segments


class SessionFactory:
    """The tensor service's `Executor`. `me` is who we are to the host further up."""

    def __init__(
        self,
        config: TensorsConfig,
        folder: Path,
        me: Peer,
        tls: TlsConfig,
        meter: LinkMeter,
        slots: Slots | None = None,
    ) -> None:
        """`slots`: the service's. Raises ConfigError for a device that is not there."""
        self._slots = slots or Slots(config.parallel)
        self._config, self._me, self._tls, self._meter = config, me, tls, meter
        self.device = _device(config.device)
        if config.threads:
            torch.set_num_threads(config.threads)
        self.checkpoints = Checkpoints(folder / "sessions", config.checkpoint_bytes)
        self._weights = BlobStore(folder / "weights", config.checkpoint_bytes)
        # Torch's default generators are the process's. Whoever draws from them, or builds a model, holds this.
        self._drawing = threading.Lock()
        self._building = threading.Lock()
        self._shared: WeakValueDictionary[str, Shared] = WeakValueDictionary()
        self._upstreams: WeakSet[Upstream] = WeakSet()
        self._interrupted = False
        self._graphs = GraphMemory(config.max_graph_bytes)

    def describe(self, model: str) -> pb.DescribeResponse:
        """Whether a model may be run here, and on what."""
        allowed = model in self._config.models
        detail = "" if allowed or not model else _not_allowed(model)
        return pb.DescribeResponse(
            allowed=allowed,
            detail=detail,
            codecs=sorted({stage.number for stage in codec_stages.stages().values()}),
            dtypes=[pb.TensorDtype.ValueType(d) for d in TO_WIRE.values()],
            torch=torch.__version__,
            device=str(self.device),
            hardware=hardware(self.device),
        )

    def open(self, peer: Peer, message: pb.OpenSession) -> Started | None:
        """Make a session, or bring it back. None: nothing is known of one that goes on. Raises errors of the tree."""
        setup = Setup.unpack(message.setup)
        if setup.model not in self._config.models:
            raise IdentityError(_not_allowed(setup.model))
        setup.codecs.chains()  # refused before anything is built
        training = message.mode == pb.SESSION_MODE_TRAINING
        if not training:
            if message.rollback_to:
                raise ProtocolError("an inference session has no checkpoints to go back to; connect anew")
            return self._inference(peer, message, setup)
        saved = self.checkpoints.read(message.session, message.rollback_to)
        if saved is None:
            if message.rollback_to:
                raise ConfigError(
                    f"there is no checkpoint of step {message.rollback_to} of session {message.session.hex()} here; "
                    f"kept: {self.checkpoints.steps(message.session)}. Resume from one of these, or connect anew"
                )
            return self._fresh(peer, message, setup)  # the client sends again what it has, or says that it can't
        return self._resumed(peer, message, setup, saved)

    def interrupt(self) -> None:
        """Have sessions that are being made fail where they wait for a host further up. From any thread."""
        self._interrupted = True
        for upstream in list(self._upstreams):
            upstream.interrupt()

    def sweep(self, older_than_s: float) -> int:
        """Remove states and weights that nobody has asked for in so long; returns how many sessions went."""
        for digest in list(self._weights.digests()):
            with suppress(OSError):
                if time.time() - self._weights.path(digest).stat().st_mtime > older_than_s:
                    self._weights.delete(digest)
        return self.checkpoints.sweep(older_than_s)

    # -- kinds of beginnings

    def _fresh(self, peer: Peer, message: pb.OpenSession, setup: Setup) -> Started:
        executor = self._executor(setup, training=True)
        hosted = HostedTail(executor, message.session, peer, int(message.mode), self.checkpoints, lambda files: None)
        return Started(hosted, durable_answers=False)

    def _resumed(self, peer: Peer, message: pb.OpenSession, given: Setup, saved: Checkpoint) -> Started:
        header = saved.header
        if (header.peer, header.role) != (peer.name, peer.role):
            raise IdentityError(f"session {message.session.hex()} is not of {peer.name}; open one of your own")
        setup = Setup.unpack(header.setup)
        check_same(setup, given)
        executor = self._executor(setup, training=True)
        hosted = HostedTail(executor, message.session, peer, header.mode, self.checkpoints, lambda files: None)
        try:
            hosted.restore(saved, rewind=bool(message.rollback_to))
        except BaseException:
            hosted.close(forget=False)
            raise
        return Started(hosted, durable_answers=False, executed=header.through, answers=saved.answers)

    def _inference(self, peer: Peer, message: pb.OpenSession, setup: Setup) -> Started | None:
        """An operation changes nothing, so that the weights are all there is to bring back."""
        if self.checkpoints.steps(message.session):  # which the end of the session would remove
            raise IdentityError(f"session {message.session.hex()} is not of {peer.name}; open one of your own")
        key = msgspec.structs.replace(setup, seed=0).pack().hex()
        shared = self._shared.get(key)
        executor = self._executor(setup, training=False, shared=shared)
        if message.answered_through and not executor.loaded:
            files = self._kept_weights(setup)
            if files is None:
                return None
            executor.load_weights(files)
        held = shared or Shared(executor.segments)
        if executor.loaded:
            self._shared[key] = held

        def loaded(files: Sequence[bytes]) -> None:
            if executor.upstream is None:
                self._shared.setdefault(key, held)
            try:
                found = [self._weights.put(data) for data in files]
                if len(found) > 1:
                    self._weights.put(b"".join(found))  # whose own digest is what a setup calls them by
            except CapacityError as error:  # it works without; a restart ends such sessions
                log.warning("weights are not kept", extra={"error_text": str(error)})

        hosted = HostedTail(executor, message.session, peer, int(message.mode), self.checkpoints, loaded, held)
        return Started(hosted, durable_answers=True, executed=message.answered_through)

    def _kept_weights(self, setup: Setup) -> list[bytes] | None:
        """The files that a setup names, from before a restart. Raises FormatError for damaged ones."""
        name = bytes.fromhex(setup.weights)
        if not self._weights.has(name):
            return None
        found = [name]
        if setup.upstream and setup.cuts[0][0] != setup.cuts[0][1]:  # that of the middle, and that of what follows
            joined = self._weights.get(name)
            found += [joined[i : i + DIGEST_BYTES] for i in range(0, len(joined), DIGEST_BYTES)]
        if not all(self._weights.has(digest) for digest in found):
            return None
        for digest in found:
            os.utime(self._weights.path(digest))  # asked for
        return [self._weights.get(digest) for digest in found[-2:]]

    # -- building

    def _executor(self, setup: Setup, *, training: bool, shared: Shared | None = None) -> TailExecutor:
        upstream = None
        generator = SessionGenerator(setup.seed, self.device, self._drawing)
        if setup.upstream:
            if self._config.upstream is None:
                raise ConfigError(
                    "this host has nobody further up to run what follows the middle; set tensors.upstream here, or "
                    "use one cut"
                )
            if len(setup.cuts) != 1:
                raise ProtocolError("several cuts with a part further up; use one pair of cuts")
        if shared is not None and not setup.upstream:
            segments = shared.segments
        else:
            with self._building:
                segments, further = self._build(setup)
            if setup.upstream:
                if further is None:
                    raise ProtocolError("nothing of the model follows this part")
                upstream = Upstream(further, partial(self._connect, setup, training), generator, self._slots)
                self._upstreams.add(upstream)
                if self._interrupted:
                    raise UnavailableError("this host is stopping; try again when it is back")
        executor = TailExecutor(
            setup, segments, self.device, generator, training=training, upstream=upstream, memory=self._graphs
        )
        executor.loaded = shared is not None and not setup.upstream
        return executor

    def _build(self, setup: Setup) -> tuple[list[Segment | None], Segment | None]:
        """Our parts, and what follows them. Nothing of the rest of the model stays."""
        example = setup.example(self._config.max_tensor_bytes)
        with self._drawing:
            before = torch.get_rng_state()
            try:
                model = load_model(setup.model, json.dumps(setup.kwargs), self._config.models)
                if architecture_hash(model) != setup.architecture:
                    raise ConfigError(
                        f"{setup.model} builds another model here than at the client (names, classes, shapes or dtypes "
                        "differ); install the same versions of its package and pass the same kwargs"
                    )
                model.to(self.device)
                return self._split(model, setup, _on(example, self.device))
            finally:
                torch.set_rng_state(before)

    def _split(self, model: nn.Module, setup: Setup, example: Example) -> tuple[list[Segment | None], Segment | None]:
        if setup.upstream:
            _, middle, tail = split(model, setup.cuts[0], example=example, max_tensors=setup.max_tensors)
            if tail is not None and setup.fixed:  # which the host further up is told of in its turn
                fixed = modules_of(tail, setup.fixed)
                set_mode(tail, not setup.fixed_training, fixed, setup.fixed_training)
            return [middle], tail
        segments: list[Segment | None] = []
        for begin, end in setup.cuts:
            if end is not None:
                raise ProtocolError(f"a part that ends at {end!r}, and nothing that follows it")
            made = split(model, begin, example=None if segments else example, max_tensors=setup.max_tensors)
            if made[-1] is None:
                raise InputError(f"cut {begin!r}: nothing of the model is left for the tail; use an earlier cut")
            segments.append(made[-1])
        return segments, None

    def _connect(
        self,
        setup: Setup,
        training: bool,
        segment: Segment,
        token: Mapping[str, Any] | None,
        begun: Callable[[RemoteTail], None],
    ) -> RemoteTail:
        assert self._config.upstream is not None
        codecs = setup.codecs
        return RemoteTail.connect(
            self._config.upstream,
            model=setup.model,
            kwargs=setup.kwargs,
            weights=segment,
            optimizer=setup.optimizer,
            training=training,
            tls=self._tls,
            name=self._me.name,
            role=self._me.role,
            codec=codecs.activations,
            gradient_codec=codecs.gradients,
            output_codec=codecs.outputs,
            output_gradient_codec=codecs.output_gradients,
            seed=setup.seed,
            resume=token,
            give_up_s=self._config.upstream_give_up_s,
            log_bytes=self._config.upstream_log_bytes,
            meter=self._meter,
            begun=begun,
        )


def _not_allowed(model: str) -> str:
    return (
        f"model {model[:200]!r} is not allowed here; its host's operator adds it to tensors.models, and installs its "
        "package"
    )


def _device(name: str) -> torch.device:
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if name.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"tensors.device is {name}, and torch finds no CUDA device; use cpu or auto")
    return torch.device(name)


def _on(example: Example, device: torch.device) -> Example:
    def move(value: Any) -> Any:
        if isinstance(value, torch.Tensor):
            return value.to(device)
        if isinstance(value, (list, tuple)):
            return type(value)(move(v) for v in value)
        return {k: move(v) for k, v in value.items()} if isinstance(value, dict) else value

    return Example(tuple(move(v) for v in example.args), {k: move(v) for k, v in example.kwargs.items()})


def hardware(device: torch.device) -> str:
    """What profiles are kept by."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return hardware_id(torch.get_num_threads())
