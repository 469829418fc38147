"""What a tail host does with sessions: makes them from what a client says, or from their checkpoints."""

from __future__ import annotations

import json
import logging
import os
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

import msgspec
import torch
from torch import nn

from fogline.common import codecs as codec_stages
from fogline.common.blobs import BlobStore
from fogline.common.config import TlsConfig
from fogline.common.errors import (
    CapacityError,
    ConfigError,
    IdentityError,
    InputError,
    ProtocolError,
)
from fogline.common.models.loader import load_model
from fogline.common.rpc.accounting import LinkMeter
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.tensor_service import Started
from fogline.common.split import weights as weight_files
from fogline.common.split.cuts import architecture_hash
from fogline.common.split.profile import hardware_id
from fogline.common.split.segments import Segment, split
from fogline.common.split.trace import Example
from fogline.common.tails.checkpoint import Checkpoint, Checkpoints
from fogline.common.tails.config import TensorsConfig
from fogline.common.tails.executor import TailExecutor
from fogline.common.tails.generator import SessionGenerator
from fogline.common.tails.hosted import HostedTail, check_same
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

    def __init__(self, config: TensorsConfig, folder: Path, me: Peer, tls: TlsConfig, meter: LinkMeter) -> None:
        """Raises ConfigError for a device that is not there."""
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
        hosted = HostedTail(executor, message.session, peer, int(message.mode), self.checkpoints, lambda: None)
        return Started(hosted, durable_answers=False)

    def _resumed(self, peer: Peer, message: pb.OpenSession, given: Setup, saved: Checkpoint) -> Started:
        header = saved.header
        if (header.peer, header.role) != (peer.name, peer.role):
            raise IdentityError(f"session {message.session.hex()} is not of {peer.name}; open one of your own")
        setup = Setup.unpack(header.setup)
        check_same(setup, given)
        if message.rollback_to:
            self.checkpoints.rewind(message.session, message.rollback_to)
        executor = self._executor(setup, training=True)
        hosted = HostedTail(executor, message.session, peer, header.mode, self.checkpoints, lambda: None)
        hosted.restore(saved)
        return Started(hosted, durable_answers=False, executed=header.through, answers=saved.answers)

    def _inference(self, peer: Peer, message: pb.OpenSession, setup: Setup) -> Started | None:
        """An operation changes nothing, so that the weights are all there is to bring back."""
        if self.checkpoints.steps(message.session):  # which the end of the session would remove
            raise IdentityError(f"session {message.session.hex()} is not of {peer.name}; open one of your own")
        key = msgspec.structs.replace(setup, seed=0).pack().hex()
        shared = self._shared.get(key)
        executor = self._executor(setup, training=False, shared=shared)
        if message.answered_through and not executor.loaded:
            digest = bytes.fromhex(setup.weights)
            if executor.upstream is not None or not self._weights.has(digest):
                return None
            executor.load_weights([self._weights.get(digest)])
            os.utime(self._weights.path(digest))  # asked for
        held = shared or Shared(executor.segments)
        if executor.loaded:
            self._shared[key] = held

        def loaded() -> None:
            self._shared.setdefault(key, held)
            if executor.upstream is None and held.segments[0] is not None:
                try:
                    self._weights.put(weight_files.save(held.segments[0]))
                except CapacityError as error:  # it works without; a restart ends such sessions
                    log.warning("weights are not kept", extra={"error_text": str(error)})

        hosted = HostedTail(executor, message.session, peer, int(message.mode), self.checkpoints, loaded, held)
        return Started(hosted, durable_answers=True, executed=message.answered_through)

    # -- building

    def _executor(self, setup: Setup, *, training: bool, shared: Shared | None = None) -> TailExecutor:
        upstream = None
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
                upstream = Upstream(further, lambda segment, token: self._connect(setup, training, segment, token))
        executor = TailExecutor(
            setup,
            segments,
            self.device,
            SessionGenerator(setup.seed, self.device, self._drawing),
            training=training,
            upstream=upstream,
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

    def _connect(self, setup: Setup, training: bool, segment: Segment, token: Mapping[str, Any] | None) -> RemoteTail:
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
            meter=self._meter,
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
