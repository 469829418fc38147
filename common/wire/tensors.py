"""Tensors in frames: what a header may say, cutting a payload into chunks, putting it together. No I/O, no torch.

A frame is a header (whose tensors, how coded) and a payload: the coded bytes of its tensors, one after the other. Its
beginning travels with the header, so that a small frame is one message; the rest follows in chunks. A receiver checks
the header, allocates once, and takes exactly the bytes that come next. One CRC-32 covers the payload; it comes with the
last bytes.
"""

from __future__ import annotations

import math
import zlib
from bisect import bisect_right
from dataclasses import dataclass, field
from enum import IntEnum

from fogline.common.errors import ProtocolError
from fogline.common.wire.memory import PayloadMemory

CHUNK_BYTES = 256 * 1024
MIN_CHUNK_BYTES = 8 * 1024  # below, the messages around them cost more
MAX_DIMS = 8
MAX_STAGES = 4
MAX_PARAMS = 64 * 1024  # bytes, of one stage
MAX_NAME = 256
MARK_BYTES = 1 << 20
EXPANSION = 64 * 1024  # bytes that a codec may need beyond twice the raw size: headers and tables of tiny tensors

Buffer = bytes | bytearray | memoryview


class Dtype(IntEnum):
    """Types of elements that cross the wire, little-endian."""

    FLOAT32 = 1
    FLOAT16 = 2
    BFLOAT16 = 3
    FLOAT64 = 4
    UINT8 = 5
    INT8 = 6
    INT16 = 7
    INT32 = 8
    INT64 = 9
    BOOL = 10

    @property
    def itemsize(self) -> int:
        """Bytes of an element."""
        return _ITEMSIZE[self]


_ITEMSIZE = {
    Dtype.FLOAT32: 4,
    Dtype.FLOAT16: 2,
    Dtype.BFLOAT16: 2,
    Dtype.FLOAT64: 8,
    Dtype.UINT8: 1,
    Dtype.INT8: 1,
    Dtype.INT16: 2,
    Dtype.INT32: 4,
    Dtype.INT64: 8,
    Dtype.BOOL: 1,
}


class Role(IntEnum):
    """What a tensor is to a step."""

    ACTIVATION = 1
    GRADIENT = 2  # of an activation
    OUTPUT = 3
    OUTPUT_GRADIENT = 4
    LABELS = 5
    LOSS = 6
    GENERATOR = 7  # state of a generator of random numbers
    NORMS = 8
    WEIGHTS = 9  # a safetensors file, as bytes


@dataclass(frozen=True)
class Limits:
    """What a host takes, or a client lets come back."""

    max_frame_bytes: int = 256 << 20
    max_tensor_bytes: int = 1 << 30  # decoded
    max_tensors: int = 64
    max_chunk_bytes: int = 1 << 20
    window: int = 16  # operations under way


@dataclass(frozen=True)
class Stage:
    """A stage of a codec, with the parameters of this tensor."""

    number: int
    version: int
    params: bytes = b""


@dataclass(frozen=True)
class TensorHeader:
    """A tensor in a frame. Without stages its bytes are raw: little-endian, C order."""

    role: Role
    dtype: Dtype  # once decoded
    shape: tuple[int, ...]  # once decoded; () is a scalar
    coded_bytes: int
    stages: tuple[Stage, ...] = ()
    name: str = ""

    @property
    def raw_bytes(self) -> int:
        """Bytes once decoded."""
        return math.prod(self.shape) * self.dtype.itemsize

    def check(self, limits: Limits) -> None:
        """Raise ProtocolError for what is not allowed; nothing is allocated before."""
        what = f"tensor {self.role.name.lower()} {self.name[:40]!r}"
        if len(self.name) > MAX_NAME or len(self.shape) > MAX_DIMS or len(self.stages) > MAX_STAGES:
            raise ProtocolError(
                f"{what}: a name of {len(self.name)} characters, {len(self.shape)} dimensions, {len(self.stages)} "
                f"codec stages; at most {MAX_NAME}, {MAX_DIMS} and {MAX_STAGES}"
            )
        if any(not 0 <= n < 1 << 63 for n in self.shape):
            raise ProtocolError(f"{what}: a dimension of {max(self.shape, key=abs)}; none is that long")
        # As if no dim were 0: an empty tensor has strides, too, and they overflow.
        size = math.prod(max(1, n) for n in self.shape) * self.dtype.itemsize
        if size > limits.max_tensor_bytes:
            raise ProtocolError(
                f"{what}: {size} bytes once decoded; at most {limits.max_tensor_bytes}. Send smaller batches, or "
                "raise tensors.max_tensor_bytes"
            )
        if any(len(stage.params) > MAX_PARAMS for stage in self.stages):
            raise ProtocolError(f"{what}: codec parameters of more than {MAX_PARAMS} bytes")
        if not self.stages and self.coded_bytes != self.raw_bytes:
            raise ProtocolError(
                f"{what}: {self.coded_bytes} bytes announced of a raw tensor of {self.raw_bytes}; the header is wrong"
            )
        if not 0 <= self.coded_bytes <= 2 * self.raw_bytes + EXPANSION:
            raise ProtocolError(
                f"{what}: {self.coded_bytes} coded bytes of a tensor of {self.raw_bytes}; no codec needs as many"
            )


@dataclass(frozen=True)
class Chunk:
    """A part of a frame's payload."""

    seq: int
    offset: int  # bytes
    data: bytes | memoryview
    crc32: int | None = None  # of the whole payload, with its last bytes


@dataclass(frozen=True)
class Start:
    """A header with the first part of its payload. `body` says what it is for; only the ends look at it."""

    seq: int
    body: object
    tensors: tuple[TensorHeader, ...] = ()
    data: bytes | memoryview = b""
    crc32: int | None = None


@dataclass(frozen=True)
class Frame:
    """A whole frame: a header, and the coded bytes of each tensor."""

    seq: int
    body: object
    tensors: tuple[TensorHeader, ...] = ()
    parts: tuple[Buffer, ...] = ()

    @property
    def size(self) -> int:
        """Bytes of the payload."""
        return sum(header.coded_bytes for header in self.tensors)


class Outgoing:
    """Sends a frame from its start, or from where the receiver holds it. The caller keeps the buffers unchanged."""

    def __init__(self, frame: Frame, chunk_bytes: int = CHUNK_BYTES) -> None:
        self.frame, self.chunk_bytes = frame, chunk_bytes
        self._parts = [view for part in frame.parts if (view := memoryview(part).cast("B")).nbytes]
        self.size = sum(view.nbytes for view in self._parts)
        self._marks = [(0, 0)]  # offsets, and the checksum up to there
        self._begin()

    def _begin(self, mark: int = 0) -> None:
        self.offset, self._crc = self._marks[mark]
        self.started, self._part, self._within = False, 0, self.offset
        while self._part < len(self._parts) and self._within >= self._parts[self._part].nbytes:
            self._within -= self._parts[self._part].nbytes
            self._part += 1

    def rewind(self, offset: int | None) -> None:
        """Go on from `offset` of the payload, which the receiver holds with the header; None: from the header.

        Raises ProtocolError beyond the payload.
        """
        if offset is None:
            self._begin()
            return
        if not 0 <= offset <= self.size or (offset == self.size and self.size):
            raise ProtocolError(f"operation {self.frame.seq}: asked to go on from byte {offset} of {self.size}")
        # The checksum covers what was sent before, too; a peer that comes again and again is not to cost it each time.
        self._begin(bisect_right(self._marks, (offset, 1 << 32)) - 1)
        self.started = True
        while self.offset < offset:
            self._read(min(self.chunk_bytes, offset - self.offset))

    @property
    def done(self) -> bool:
        """Whether everything was taken from here."""
        return self.started and self.offset == self.size

    def start(self) -> Start:
        """The header with the first part."""
        self.started = True
        data = self._read(self.chunk_bytes)
        frame = self.frame
        return Start(frame.seq, frame.body, frame.tensors, data, self._last())

    def chunk(self) -> Chunk:
        """The next part."""
        offset = self.offset
        data = self._read(self.chunk_bytes)
        return Chunk(self.frame.seq, offset, data, self._last())

    def _last(self) -> int | None:
        return self._crc if self.offset == self.size and self.size else None

    def _read(self, count: int) -> bytes | memoryview:
        """The next bytes: a view of one tensor's buffer, or joined over several."""
        pieces: list[memoryview] = []
        while count and self._part < len(self._parts):
            view = self._parts[self._part]
            piece = view[self._within : self._within + count]
            self._within += len(piece)
            count -= len(piece)
            if self._within == view.nbytes:
                self._part, self._within = self._part + 1, 0
            pieces.append(piece)
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self.offset += len(data)
        self._crc = zlib.crc32(data, self._crc)
        if self.offset >= self._marks[-1][0] + MARK_BYTES:
            self._marks.append((self.offset, self._crc))
        return data


@dataclass
class Incoming:
    """Collects a frame into a buffer that is allocated once, after the header was checked. Raises ProtocolError."""

    start: Start
    limits: Limits
    memory: PayloadMemory = field(default_factory=PayloadMemory)
    offset: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        tensors = self.start.tensors
        if len(tensors) > self.limits.max_tensors:
            raise ProtocolError(f"frame {self.start.seq}: {len(tensors)} tensors; at most {self.limits.max_tensors}")
        for header in tensors:
            header.check(self.limits)
        self.size = sum(header.coded_bytes for header in tensors)
        if self.size > self.limits.max_frame_bytes:
            raise ProtocolError(
                f"frame {self.start.seq}: a payload of {self.size} bytes; at most {self.limits.max_frame_bytes}. Send "
                "smaller batches, or raise tensors.max_frame_bytes"
            )
        self._buffer = self.memory.take(self.size)
        self._crc = 0
        if self.size:
            self.take(Chunk(self.start.seq, 0, self.start.data, self.start.crc32))
        elif self.start.data:
            raise ProtocolError(f"frame {self.start.seq}: {len(self.start.data)} bytes of an empty payload")

    @property
    def complete(self) -> bool:
        """Whether the payload is whole, and is what was sent."""
        return self.offset == self.size

    def take(self, chunk: Chunk) -> None:
        """Take the next part. After an error nothing of the frame counts."""
        seq, length = self.start.seq, len(chunk.data)
        if chunk.seq != seq or chunk.offset != self.offset:
            raise ProtocolError(
                f"frame {seq}: chunk at byte {chunk.offset} of frame {chunk.seq}; byte {self.offset} is next"
            )
        if not 1 <= length <= min(self.limits.max_chunk_bytes, self.size - self.offset):
            raise ProtocolError(
                f"frame {seq}: a chunk of {length} bytes at {chunk.offset} of {self.size}; 1 to "
                f"{self.limits.max_chunk_bytes} that stay within are allowed"
            )
        self._buffer[self.offset : self.offset + length] = chunk.data
        self._crc = zlib.crc32(chunk.data, self._crc)
        self.offset += length
        if (chunk.crc32 is None) == self.complete:
            raise ProtocolError(f"frame {seq}: its checksum comes with its last bytes, and with no others")
        if chunk.crc32 is not None and chunk.crc32 != self._crc:
            raise ProtocolError(f"frame {seq}: its {self.size} bytes do not match their checksum; send it again")

    def frame(self) -> Frame:
        """The whole frame; its parts are views of one buffer that nobody else holds."""
        view, parts, offset = self._buffer, [], 0
        for header in self.start.tensors:
            parts.append(view[offset : offset + header.coded_bytes])
            offset += header.coded_bytes
        return Frame(self.start.seq, self.start.body, self.start.tensors, tuple(parts))
