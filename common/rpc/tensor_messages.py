"""Frames of the tensor plane as messages of the contract, and back. What comes from a peer is checked here."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Protocol, TypeVar

from fogline.common.errors import ProtocolError
from fogline.common.rpc.gen import tensors_pb2 as pb
from fogline.common.wire.session_client import Opened, Opening, Step
from fogline.common.wire.tensors import MAX_DIMS, MAX_STAGES, Chunk, Dtype, Limits, Role, Stage, Start, TensorHeader

PROTOCOL = 1
SESSION_ID_BYTES = 16

# The field of an operation for each kind of body.
BODIES: dict[type, str] = {
    pb.Forward: "forward",
    pb.Backward: "backward",
    pb.ForwardLoss: "forward_loss",
    pb.Release: "release",
    pb.ZeroGrad: "zero_grad",
    pb.OptimizerStep: "optimizer_step",
    pb.GradientNorms: "gradient_norms",
    pb.ScaleGradients: "scale_gradients",
    pb.Checkpoint: "checkpoint",
    pb.FetchWeights: "fetch_weights",
    pb.LoadWeights: "load_weights",
}

T = TypeVar("T")


def operation_of(step: Step) -> pb.Operation:
    """An operation, without the first part of its payload."""
    start = step.start
    operation = pb.Operation(seq=start.seq, answered_through=step.answered_through, tensors=map(_header, start.tensors))
    if start.crc32 is not None:
        operation.crc32 = start.crc32
    body: Any = start.body
    field = getattr(operation, BODIES[type(body)])
    field.CopyFrom(body)
    field.SetInParent()  # also where it is empty
    return operation


def operation(message: pb.Operation) -> Start:
    """An operation that came. Raises ProtocolError."""
    name = message.WhichOneof("body")
    if name is None:
        raise ProtocolError(f"operation {message.seq} is of no kind that this host knows; update the older end")
    body = _copy(getattr(message, name))
    return _start(message, body)


def answer_of(start: Start, durable_through: int) -> pb.Answer:
    """An answer, without the first part of its payload; its body is a pb.Answer with what else it says."""
    answer = pb.Answer()
    body: Any = start.body
    answer.CopyFrom(body)
    answer.seq, answer.durable_through = start.seq, min(durable_through, start.seq)
    answer.tensors.extend(map(_header, start.tensors))
    if start.crc32 is not None:
        answer.crc32 = start.crc32
    return answer


def answer(message: pb.Answer) -> Start:
    """An answer that came; its body is the pb.Answer without tensors and data. Raises ProtocolError."""
    body = pb.Answer(
        seq=message.seq,
        structure=message.structure,
        feedback=message.feedback,
        compute_us=message.compute_us,
        queued_us=message.queued_us,
        durable_through=message.durable_through,
    )
    if message.HasField("failure"):
        body.failure.CopyFrom(message.failure)
    return _start(message, body)


def chunk_of(message: pb.PayloadChunk) -> Chunk:
    """A part of a payload that came."""
    return Chunk(message.seq, message.offset, message.data, message.crc32 if message.HasField("crc32") else None)


def opening(message: pb.OpenSession) -> Opening:
    """The state of a client that opens. Raises ProtocolError."""
    if message.protocol != PROTOCOL:
        raise ProtocolError(
            f"the client speaks protocol {message.protocol}, this host {PROTOCOL}; update the older end"
        )
    if len(message.session) != SESSION_ID_BYTES:
        raise ProtocolError(f"a session id of {len(message.session)} bytes; {SESSION_ID_BYTES} are wanted")
    return Opening(
        message.answered_through,
        message.partial_answer,
        message.partial_bytes,
        message.rollback_to,
        message.max_chunk_bytes,
    )


def opened(message: pb.SessionOpened) -> Opened:
    """The state of a host that answered."""
    return Opened(
        message.fresh,
        message.held_through,
        message.partial_operation,
        message.partial_bytes,
        message.durable_through,
    )


def limits_message(limits: Limits) -> pb.TensorLimits:
    """Limits, as they are told."""
    return pb.TensorLimits(
        max_frame_bytes=limits.max_frame_bytes,
        max_tensor_bytes=limits.max_tensor_bytes,
        max_tensors=limits.max_tensors,
        max_chunk_bytes=limits.max_chunk_bytes,
        window=limits.window,
    )


def limits_of(message: pb.TensorLimits, own: Limits) -> Limits:
    """The host's limits as far as they are within `own`, where it told any."""
    return Limits(
        max_frame_bytes=min(message.max_frame_bytes or own.max_frame_bytes, own.max_frame_bytes),
        max_tensor_bytes=min(message.max_tensor_bytes or own.max_tensor_bytes, own.max_tensor_bytes),
        max_tensors=min(message.max_tensors or own.max_tensors, own.max_tensors),
        max_chunk_bytes=own.max_chunk_bytes,
        window=min(message.window or own.window, own.window),
    )


class _FrameMessage(Protocol):
    seq: int
    data: bytes
    crc32: int

    @property
    def tensors(self) -> Iterable[pb.TensorHeader]: ...

    def HasField(self, field_name: Any) -> bool: ...


def _start(message: _FrameMessage, body: object) -> Start:
    crc32 = message.crc32 if message.HasField("crc32") else None
    return Start(message.seq, body, tuple(_header_of(message.seq, h) for h in message.tensors), message.data, crc32)


def _header(header: TensorHeader) -> pb.TensorHeader:
    return pb.TensorHeader(
        role=pb.TensorRole.ValueType(header.role),
        name=header.name,
        dtype=pb.TensorDtype.ValueType(header.dtype),
        shape=header.shape,
        stages=[pb.CodecStage(number=s.number, version=s.version, params=s.params) for s in header.stages],
        coded_bytes=header.coded_bytes,
    )


def _header_of(seq: int, message: pb.TensorHeader) -> TensorHeader:
    if len(message.shape) > MAX_DIMS or len(message.stages) > MAX_STAGES:
        raise ProtocolError(
            f"frame {seq}: a tensor of {len(message.shape)} dimensions and {len(message.stages)} codec stages; at most "
            f"{MAX_DIMS} and {MAX_STAGES}"
        )
    try:
        role, dtype = Role(message.role), Dtype(message.dtype)
    except ValueError as error:
        raise ProtocolError(f"frame {seq}: {error}; this end knows no such tensor, update the older end") from error
    stages = tuple(Stage(s.number, s.version, s.params) for s in message.stages)
    return TensorHeader(role, dtype, tuple(message.shape), message.coded_bytes, stages, message.name)


def _copy(message: T) -> T:
    """A message of its own: a field would keep the payload of its parent in memory."""
    made: Any = type(message)()
    made.CopyFrom(message)
    result: T = made
    return result
