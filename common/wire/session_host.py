"""The host's end of a tensor session: operations in, in order and once; answers kept until they are acknowledged.

No I/O, no clock. It outlives connections: what came whole before one broke is still executed, and a half of a frame is
kept. See `session_client` for the rules that both ends share. The owner calls these methods from one thread.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Sequence
from dataclasses import dataclass

from fogline.common.errors import ProtocolError
from fogline.common.wire.memory import PayloadMemory
from fogline.common.wire.session_client import Opened, Opening
from fogline.common.wire.tensors import CHUNK_BYTES, MIN_CHUNK_BYTES, Chunk, Frame, Incoming, Limits, Outgoing, Start


@dataclass(frozen=True)
class Reply:
    """The header of an answer, to be sent with how far the session is durable."""

    start: Start
    durable_through: int


class HostSession:
    """See the module. `executed` and `answers` come from a checkpoint, where there is one."""

    def __init__(
        self,
        limits: Limits,
        *,
        executed: int = 0,
        answers: Sequence[Frame] = (),
        chunk_bytes: int = CHUNK_BYTES,
        memory: PayloadMemory | None = None,
    ) -> None:
        self._limits, self._chunk_bytes, self._memory = limits, chunk_bytes, memory or PayloadMemory()
        self._most = chunk_bytes  # at once, whatever a client asks for
        self.executed = self.durable = self._held = executed
        self._acknowledged = executed - len(answers)
        self._skipped = 0  # the client has the answers up to here already
        self._answers: OrderedDict[int, Outgoing] = OrderedDict((frame.seq, Outgoing(frame)) for frame in answers)
        self._waiting: deque[Frame] = deque()
        self._taken: Frame | None = None
        self._receiving: Incoming | None = None
        self._sending: Outgoing | None = None
        self._next = executed + 1  # the answer to send after that
        self._attached = False

    @property
    def kept_bytes(self) -> int:
        """Of operations that wait and answers that were not acknowledged."""
        coming = self._receiving.size if self._receiving else 0
        taken = self._taken.size if self._taken else 0
        waiting = sum(frame.size for frame in self._waiting)
        return waiting + sum(outgoing.size for outgoing in self._answers.values()) + coming + taken

    @property
    def answers(self) -> tuple[Frame, ...]:
        """Answers that the client has not acknowledged: what a checkpoint holds."""
        return tuple(outgoing.frame for outgoing in self._answers.values())

    @property
    def waiting(self) -> int:
        """Operations that came whole and are not executed."""
        return len(self._waiting) + (self._taken is not None)

    @property
    def held(self) -> int:
        """Operations up to here came whole."""
        return self._held

    @property
    def receiving(self) -> bool:
        """Whether a frame came in part."""
        return self._receiving is not None

    @property
    def full(self) -> bool:
        """As many operations wait as may: read no more until one is done."""
        return self.waiting >= self._limits.window

    # -- connection

    def attach(self, opening: Opening) -> Opened:
        """A client connected. Raises ProtocolError when its state and ours can't be of one session."""
        answered = opening.answered_through
        if opening.partial_answer and opening.partial_answer != answered + 1:
            raise ProtocolError(f"a part of answer {opening.partial_answer} after {answered} answers")
        self._chunk_bytes = min(self._most, max(MIN_CHUNK_BYTES, opening.chunk_bytes or self._most))
        self._acknowledge(answered)
        self._skipped = answered
        self._next, self._sending, self._attached = max(answered, self._acknowledged) + 1, None, True
        if opening.partial_answer in self._answers:
            self._begin(self._answers[opening.partial_answer], opening.partial_bytes)
            self._next += 1
        coming = self._receiving
        return Opened(
            fresh=False,
            held_through=self._held,
            partial_operation=coming.start.seq if coming else 0,
            partial_bytes=coming.offset if coming else 0,
            durable_through=self.durable,
        )

    def _begin(self, outgoing: Outgoing, offset: int | None = None) -> None:
        outgoing.chunk_bytes = self._chunk_bytes
        outgoing.rewind(offset)
        self._sending = outgoing

    def detach(self) -> None:
        """The connection is gone."""
        self._attached, self._sending = False, None

    def operation(self, start: Start, answered_through: int = 0) -> None:
        """The header of an operation came. Raises ProtocolError out of order, repeated, or beyond the limits."""
        if self._receiving is not None:
            raise ProtocolError(f"operation {start.seq} came within the payload of {self._receiving.start.seq}")
        if start.seq != self._held + 1:
            what = "was taken already" if start.seq <= self._held else "is out of order"
            raise ProtocolError(f"operation {start.seq} {what}; {self._held + 1} comes next")
        self.acknowledge(answered_through)
        # A client acknowledges twice a window, and has no more than a window without answers.
        if len(self._answers) > 2 * self._limits.window + 2:
            raise ProtocolError(f"{len(self._answers)} answers are not acknowledged; the client must read and say so")
        self._receiving = Incoming(start, self._limits, self._memory)
        self._received()

    def chunk(self, chunk: Chunk) -> None:
        """A part of an operation came."""
        if self._receiving is None:
            raise ProtocolError(f"a chunk of operation {chunk.seq} without its header")
        try:
            self._receiving.take(chunk)
        except ProtocolError:
            self._receiving = None
            raise
        self._received()

    def _received(self) -> None:
        if self._receiving is not None and self._receiving.complete:
            frame, self._receiving = self._receiving.frame(), None
            self._held = frame.seq
            self._waiting.append(frame)

    def acknowledge(self, through: int) -> None:
        """The client has every answer up to here. Raises ProtocolError for one that was never given."""
        if through > max(self.executed, self._skipped):
            raise ProtocolError(f"answer {through} is acknowledged; {self.executed} was the last to be given")
        self._acknowledge(through)

    def _acknowledge(self, through: int) -> None:
        self._acknowledged = max(self._acknowledged, through)
        while self._answers and next(iter(self._answers)) <= through:
            self._answers.popitem(last=False)

    # -- execution

    def take(self) -> Frame | None:
        """The operation to execute now; None while one is under way, or none waits. `done` ends it."""
        if self._taken is not None or not self._waiting:
            return None
        self._taken = self._waiting.popleft()
        return self._taken

    def done(self, answer: Frame) -> None:
        """The operation that was taken has this answer."""
        assert self._taken is not None
        assert answer.seq == self._taken.seq == self.executed + 1
        self._taken = None
        self.executed = answer.seq
        if answer.seq > self._skipped:
            self._answers[answer.seq] = Outgoing(answer)

    def checkpointed(self, through: int) -> None:
        """The state after `through` is durable."""
        self.durable = max(self.durable, through)

    def next(self) -> Start | Chunk | None:
        """What to send now; None: nothing until an operation is done."""
        if not self._attached:
            return None
        if self._sending is None and (outgoing := self._answers.get(self._next)) is not None:
            self._begin(outgoing)
            self._next += 1
        sending = self._sending
        if sending is None:
            return None
        message = sending.chunk() if sending.started else sending.start()
        if sending.done:
            self._sending = None
        return message
