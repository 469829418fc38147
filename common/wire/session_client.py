"""The client's end of a tensor session: a log of operations that is sent until it is answered. No I/O, no clock.

Operations are numbered 1, 2, 3, …; the host executes them in order and answers each once. An operation stays in the log
until its answer came *and* the host has made it durable (in inference, where an operation changes nothing, until its
answer came). So a lost connection costs a repeat of what the host lacks, and a restarted host is brought up from its
last checkpoint. The owner calls these methods under one lock, sends what `next` returns, and waits where it is None.
"""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass

from fogline.common.errors import CapacityError, ProtocolError, UnavailableError
from fogline.common.wire.memory import PayloadMemory
from fogline.common.wire.tensors import (
    CHUNK_BYTES,
    MIN_CHUNK_BYTES,
    Buffer,
    Chunk,
    Frame,
    Incoming,
    Limits,
    Outgoing,
    Start,
    TensorHeader,
)

LOG_BYTES = 256 << 20
ACK_BYTES = 4 << 20  # answers that the host keeps are acknowledged by a message of their own from here on


@dataclass(frozen=True)
class Opening:
    """What the client says of its state when it connects."""

    answered_through: int
    partial_answer: int = 0  # of which a part is held
    partial_bytes: int = 0
    rollback_to: int = 0  # a checkpoint to begin again from
    chunk_bytes: int = 0  # answers come in no larger chunks; 0: as the host likes


@dataclass(frozen=True)
class Opened:
    """What the host says of its."""

    fresh: bool  # it never heard of the session
    held_through: int
    partial_operation: int = 0
    partial_bytes: int = 0
    durable_through: int = 0


@dataclass(frozen=True)
class Ack:
    """Every answer up to here was received."""

    answered_through: int


@dataclass(frozen=True)
class Step:
    """A header of an operation, to be sent with the acknowledgement."""

    start: Start
    answered_through: int


class ClientSession:
    """See the module. `durable_answers`: an answer alone makes an operation durable (inference)."""

    def __init__(
        self,
        *,
        durable_answers: bool,
        log_bytes: int = LOG_BYTES,
        chunk_bytes: int = CHUNK_BYTES,
        limits: Limits | None = None,
        resume_from: int = 0,
    ) -> None:
        self._durable_answers, self._log_bytes, self._chunk_bytes = durable_answers, log_bytes, chunk_bytes
        self._limits = limits or Limits()
        self._memory = PayloadMemory()
        self._log: OrderedDict[int, Frame] = OrderedDict()
        self.log_size = 0  # bytes of payloads in the log
        self.submitted = self.answered = self.durable = resume_from
        self._rollback = resume_from
        self._told = resume_from  # acknowledged
        self._untold_bytes = 0
        self._window = self._limits.window
        self._attached = False
        self._sending: Outgoing | None = None
        self._next = resume_from + 1  # the operation to send after that
        self._receiving: Incoming | None = None
        self._broken_off = False  # what is being received came over a connection that is gone
        self._durable_then = 0  # once the answer that is coming is whole

    # -- what the user does

    @property
    def under_way(self) -> int:
        """Operations without an answer."""
        return self.submitted - self.answered

    @property
    def wants_checkpoint(self) -> bool:
        """The log is half full: submit a checkpoint at the next place where no graph is kept."""
        return not self._durable_answers and self.log_size * 2 > self._log_bytes

    def submit(
        self,
        body: object,
        tensors: tuple[TensorHeader, ...] = (),
        parts: tuple[Buffer, ...] = (),
    ) -> int:
        """Append an operation; returns its number. The caller leaves the buffers alone from now on.

        Raises CapacityError when the log can't hold it, ProtocolError for headers that a host refuses.
        """
        frame = Frame(self.submitted + 1, body, tensors, parts)
        for header in tensors:
            header.check(self._limits)
        if frame.size > self._limits.max_frame_bytes:
            raise ProtocolError(
                f"operation of {frame.size} bytes; at most {self._limits.max_frame_bytes} are taken: send smaller "
                "batches, cut later (weights are one operation), or raise the host's tensors.max_frame_bytes"
            )
        # What has no payload always has room: a checkpoint is what empties the log.
        if self._log and frame.size and self.log_size + frame.size > self._log_bytes:
            raise CapacityError(
                f"{self.log_size} bytes of operations wait to become durable and {frame.size} more are over the "
                f"{self._log_bytes} of log_bytes; wait for answers, checkpoint(), or raise it"
            )
        self.submitted += 1
        self._log[frame.seq] = frame
        self.log_size += frame.size
        return frame.seq

    # -- what the connection does

    def opening(self) -> Opening:
        """What to open a connection with."""
        held = self._receiving
        if held is None:
            return Opening(self.answered, 0, 0, self._rollback, self._chunk_bytes)
        return Opening(self.answered, held.start.seq, held.offset, self._rollback, self._chunk_bytes)

    @property
    def chunk_bytes(self) -> int:
        """What is sent at once, and asked for."""
        return self._chunk_bytes

    def limit_chunks(self, most: int) -> None:
        """From the next frame on send no more than `most` at once, from the next connection on ask for no more."""
        self._chunk_bytes = min(self._chunk_bytes, max(MIN_CHUNK_BYTES, most))

    def opened(self, opened: Opened, limits: Limits | None = None) -> None:
        """The host answered. Raises UnavailableError when it has lost what the log no longer holds."""
        first = next(iter(self._log), self.submitted + 1)
        if self._rollback and opened.held_through != self._rollback:
            raise UnavailableError(
                f"the host has no checkpoint of step {self._rollback} (it is at {opened.held_through}); resume from "
                "another, or connect anew"
            )
        if opened.held_through > self.submitted or opened.held_through + 1 < first:
            raise UnavailableError(
                f"the session is lost: the host holds operations up to {opened.held_through}, and of {self.submitted} "
                f"this end still has those from {first}; load a checkpoint of your own and connect anew"
            )
        if opened.partial_operation and opened.partial_operation != opened.held_through + 1:
            raise ProtocolError(f"the host holds a part of {opened.partial_operation} after {opened.held_through}")
        self._rollback = 0
        if limits is not None:
            self._limits, self._window = limits, max(1, limits.window)
        self._made_durable(opened.durable_through)
        self._attached, self._told, self._sending = True, self.answered, None
        self._next = opened.held_through + 1
        if opened.partial_operation in self._log:
            self._sending = Outgoing(self._log[opened.partial_operation], self._chunk_bytes)
            self._sending.rewind(opened.partial_bytes)
            self._next += 1

    def lost(self) -> None:
        """The connection is gone; the log stays."""
        self._attached, self._sending = False, None
        self._broken_off = self._receiving is not None

    @property
    def ready(self) -> bool:
        """Whether `next` has something to send."""
        return self._attached and (self._sending is not None or self._may_begin or self._owes_ack)

    @property
    def _may_begin(self) -> bool:
        return self._next <= self.submitted and self._next - self.answered <= self._window

    @property
    def _owes_ack(self) -> bool:
        behind = self.answered - self._told
        return behind > 0 and (self._untold_bytes >= ACK_BYTES or behind * 2 >= self._window)

    def next(self) -> Step | Chunk | Ack | None:
        """What to send now; None: nothing until something is submitted or answered."""
        if not self._attached:
            return None
        if self._sending is None and self._may_begin:
            self._sending = Outgoing(self._log[self._next], self._chunk_bytes)
            self._next += 1
        sending = self._sending
        if sending is None:
            return self._tell(Ack(self.answered)) if self._owes_ack else None
        message: Step | Chunk = sending.chunk() if sending.started else Step(sending.start(), self.answered)
        if isinstance(message, Step):
            self._told, self._untold_bytes = self.answered, 0
        if sending.done:
            self._sending = None
        return message

    def _tell(self, ack: Ack) -> Ack:
        self._told, self._untold_bytes = ack.answered_through, 0
        return ack

    def answer(self, start: Start, durable_through: int = 0) -> Frame | None:
        """The header of an answer came; returns the answer if that is all of it. Raises ProtocolError."""
        if self._receiving is not None and not self._broken_off:
            raise ProtocolError(f"answer {start.seq} came within the payload of {self._receiving.start.seq}")
        if start.seq != self.answered + 1 or start.seq > self.submitted:
            raise ProtocolError(f"an answer to {start.seq}; {self.answered + 1} of {self.submitted} comes next")
        if durable_through > start.seq:
            raise ProtocolError(
                f"the answer to {start.seq} calls {durable_through} durable, which was not executed yet"
            )
        self._receiving, self._broken_off = None, False  # a restarted host begins an answer anew
        self._receiving, self._durable_then = Incoming(start, self._limits, self._memory), durable_through
        return self._received()

    def chunk(self, chunk: Chunk) -> Frame | None:
        """A part of an answer came; returns the answer if that was the last."""
        if self._receiving is None:
            raise ProtocolError(f"a chunk of answer {chunk.seq} without its header")
        self._broken_off = False
        try:
            self._receiving.take(chunk)
        except ProtocolError:
            self._receiving = None  # begin it again after the reconnection
            raise
        return self._received()

    def _received(self) -> Frame | None:
        if self._receiving is None or not self._receiving.complete:
            return None
        frame, self._receiving = self._receiving.frame(), None
        self.answered = frame.seq
        self._untold_bytes += frame.size
        self._made_durable(frame.seq if self._durable_answers else self._durable_then)
        return frame

    def _made_durable(self, through: int) -> None:
        self.durable = max(self.durable, min(through, self.answered))
        while self._log and next(iter(self._log)) <= self.durable:
            _, frame = self._log.popitem(last=False)
            self.log_size -= frame.size
