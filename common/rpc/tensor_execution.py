"""What executes operations at a tail host, as the tensor service sees it, and the running of one operation."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from fogline.common.errors import FoglineError, InternalError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.rpc.peer import Peer
from fogline.common.rpc.slots import Slots
from fogline.common.wire.tensors import Buffer, Frame, TensorHeader

log = logging.getLogger(__name__)


class BrokenSessionError(FoglineError):
    """An operation failed half-way: the state of the session can't be trusted any more. `cause` says why."""

    def __init__(self, cause: FoglineError) -> None:
        super().__init__(str(cause))
        self.cause = cause


@dataclass(frozen=True)
class Done:
    """What an operation gave."""

    tensors: tuple[TensorHeader, ...] = ()
    parts: tuple[Buffer, ...] = ()
    structure: bytes = b""
    feedback: bytes = b""


class Hosted(Protocol):
    """The executing side of one session. One thread at a time calls it, never the event loop's."""

    def execute(self, body: Any, frame: Frame) -> Done:
        """Execute an operation: `body` is a pb.Forward, pb.Backward, … and `frame` has its tensors.

        Raises an error of the tree when nothing has changed, BrokenSessionError when something has.
        """

    def save(self, through: int, answers: Sequence[Frame]) -> None:
        """Make the state after operation `through` durable, with the answers that were not acknowledged."""

    def interrupt(self) -> None:
        """Have what waits for another host fail at once, and all that is to come. From any thread."""

    def close(self, *, forget: bool) -> None:
        """Free everything; with `forget` the checkpoints too."""


@dataclass(frozen=True)
class Started:
    """A session that was made, or brought back from a checkpoint."""

    hosted: Hosted
    durable_answers: bool  # inference: nothing has to be saved
    executed: int = 0
    answers: tuple[Frame, ...] = ()


class Executor(Protocol):
    """What a tail host does with sessions. Called from worker threads."""

    def describe(self, model: str) -> pb.DescribeResponse:
        """What is said of a model, without what the service knows itself."""

    def open(self, peer: Peer, message: pb.OpenSession) -> Started | None:
        """Make a session, or bring it back from its last checkpoint or that of `rollback_to`.

        None: it is continued (`setup` is empty) and nothing is known of it. Raises errors of the tree.
        """

    def interrupt(self) -> None:
        """Have an `open` that waits for another host fail at once. From any thread."""


def run(hosted: Hosted, box: list[Frame], kept: tuple[Frame, ...], arrived: float, slots: Slots) -> tuple[Frame, bool]:
    """Execute on the session's thread; returns the answer, and whether the state after it is durable.

    Empties `box`. `kept` are the answers before it that may have to be sent again; it came at `arrived`, by the
    monotonic clock, and waits for one of the `slots`.
    """
    frame = box.pop()
    with slots.taken():
        return _run(hosted, frame, kept, time.monotonic() - arrived)


def _run(hosted: Hosted, frame: Frame, kept: tuple[Frame, ...], queued_s: float) -> tuple[Frame, bool]:
    began, queued_us, saved = time.monotonic(), int(queued_s * 1e6), False
    try:
        done = hosted.execute(frame.body, frame)
        body = pb.Answer(structure=done.structure, feedback=done.feedback, queued_us=queued_us)
        body.compute_us = int((time.monotonic() - began) * 1e6)
        answer = Frame(frame.seq, body, done.tensors, done.parts)
        if isinstance(frame.body, pb.Checkpoint):
            hosted.save(frame.seq, (*kept, answer))
            saved = True
    except BrokenSessionError as error:
        answer = _failure(frame.seq, error.cause, fatal=True)
    except FoglineError as error:
        answer = _failure(frame.seq, error, fatal=False)
    except Exception:
        log.exception("operation failed by a mistake of ours", extra={"seq": frame.seq})
        mistake = InternalError(f"operation {frame.seq} failed; see the log of the host")
        answer = _failure(frame.seq, mistake, fatal=True)
    return answer, saved


def _failure(seq: int, error: FoglineError, *, fatal: bool) -> Frame:
    failure = pb.Failure(error=type(error).__name__, detail=str(error)[:4096], fatal=fatal)
    return Frame(seq, pb.Answer(failure=failure))
