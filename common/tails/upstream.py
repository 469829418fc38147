"""What follows our part of a model, on a host further up: three tiers are two sessions, one behind the other."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from fogline.common.errors import InternalError
from fogline.common.rpc.slots import Slots
from fogline.common.split import weights
from fogline.common.split.segments import Segment
from fogline.common.tails.generator import Generator
from fogline.common.tails.parts import write_weights
from fogline.common.tails.remote import RemoteTail

# Opens a session further up for a segment; with what `RemoteTail.checkpoint` gave, goes on with one. Tells of the
# remote tail before it waits for the host.
Connect = Callable[[Segment, Mapping[str, Any] | None, Callable[[RemoteTail], None]], RemoteTail]


class Upstream:
    """Connects once it has the weights: it keeps none of them. `generator` is that of the session that goes on there,
    and `slots` are this host's, of which it takes none while it waits.

    One thread uses it, but for `interrupt`.
    """

    def __init__(self, segment: Segment, connect: Connect, generator: Generator, slots: Slots) -> None:
        self._segment: Segment | None = segment
        self._connect, self._generator, self._slots = connect, generator, slots
        self._remote: RemoteTail | None = None
        self._begun: RemoteTail | None = None
        self._interrupted = False
        self.token: dict[str, Any] | None = None  # of the newest checkpoint

    @property
    def remote(self) -> RemoteTail:
        """The session further up."""
        if self._remote is None:
            raise InternalError("an operation for the host further up before its weights")
        return self._remote

    def load_weights(self, data: bytes) -> None:
        """Send these weights, first by opening a session for them. Raises FormatError and what connecting raises."""
        if self._segment is not None:
            weights.load(self._segment, data)
            self._open(self._segment, None)
        else:
            self.remote.load_weights([data])

    def resume(self, token: dict[str, Any]) -> None:
        """Go on with a session from its checkpoint."""
        if self._segment is None:
            raise InternalError("a session further up is resumed twice")
        self._open(self._segment, token)
        self.token = token

    def _open(self, segment: Segment, token: Mapping[str, Any] | None) -> None:
        with self._slots.released():
            self._remote = self._connect(segment, token, self._opening)
        self._segment = None

    def _opening(self, remote: RemoteTail) -> None:
        remote.random = self._generator
        remote.waiting = self._slots.released  # others compute meanwhile
        self._begun = remote
        if self._interrupted:
            self.interrupt()

    def interrupt(self) -> None:
        """Have whatever waits for the host further up fail at once, and all that is to come. From any thread."""
        self._interrupted = True
        if self._begun is not None:
            self._begun.interrupt("this host is stopping")

    @property
    def failed(self) -> bool:
        """Whether the session further up can't be gone on with."""
        return self._remote is not None and self._remote.failure is not None

    def run(self, value: Any, training: bool, loss: tuple[str, dict[str, Any], Tensor] | None) -> Any:
        """Forward, or forward and loss (its name, options with scale, labels)."""
        remote = self.remote.train(training)
        given = value if isinstance(value, tuple) else (value,)
        if loss is None:
            return remote(*given)
        name, options, labels = loss
        return remote.loss(*given, labels, loss=name, **options)

    def zero_grad(self) -> None:
        """Drop gradients."""
        self.remote.zero_grad()

    def step(self, changes: Sequence[tuple[int, Mapping[str, float]]]) -> None:
        """Step after these changes."""
        self.remote.step(changes)

    def gradient_norms(self, norm_type: float) -> dict[str, Tensor]:
        """Of each gradient."""
        return self.remote.gradient_norms(norm_type)

    def scale_gradients(self, factor: float) -> None:
        """Multiply gradients."""
        self.remote.scale_gradients(factor)

    def checkpoint(self, keep: bool) -> None:
        """Make its state durable; `token` says how to go on from there. `keep` as in the contract."""
        self.token = self.remote.make_checkpoint(keep)

    def hold(self, steps: Sequence[int]) -> None:
        """Checkpoints of ours go on from these of its: no later one is to push them out."""
        if self._remote is not None:
            self._remote.held = tuple(steps)

    def fetch_weights(self) -> bytes:
        """As a safetensors file."""
        return write_weights(self.remote.weights())

    def close(self, *, forget: bool) -> None:
        """End the session, or leave it for another of us to go on with."""
        if self._remote is not None:
            if forget:
                self._remote.close()
            else:
                self._remote.abandon()
