"""What the fog node and its encoder child say to each other over two pipes: length-prefixed MessagePack.

The child is ours, but it decodes pictures from strangers; so its answers are parsed strictly and nothing is unpickled.
"""

from __future__ import annotations

import struct
from typing import Any

import msgspec

from fogline.common.errors import ProtocolError
from fogline.common.images.planning import Choice, Situation

HEADER = struct.Struct("<I")
MAX_FRAME = 1 << 30


class Start(msgspec.Struct, frozen=True, tag=True):
    """First message to the child: which encoder to build."""

    codec: str
    params: dict[str, Any]
    device: str
    log_level: str
    log_format: str
    max_image_bytes: int
    max_image_pixels: int


class WorkItem(msgspec.Struct, frozen=True):
    """One image to encode."""

    content_id: bytes
    path: str  # of what was uploaded
    camera: str
    capture_time_us: int
    boxes: list[tuple[float, float, float, float, str]]  # in pixels of the captured frame
    size: tuple[int, int]  # coded width and height
    trace: str = ""  # of its upload, for the logs
    form: int = 1  # of the upload, the contract's UplinkForm
    tenant: str = ""


class Encode(msgspec.Struct, frozen=True, tag=True):
    """Encode these together; `situation` is for an encoder that plans."""

    items: list[WorkItem]
    situation: Situation | None = None


class Ready(msgspec.Struct, frozen=True, tag=True):
    """The child's first answer: the encoder is built."""

    device: str


class Refused(msgspec.Struct, frozen=True, tag=True):
    """The child's first answer when the configuration is wrong; it then ends."""

    reason: str


class Result(msgspec.Struct, frozen=True):
    """One image's record, or the reason why it has none."""

    content_id: bytes
    record: bytes = b""
    layers: list[tuple[int, int, int]] = []
    shared: list[bytes] = []
    error: str = ""
    as_is: bool = False  # the upload's own layers: nothing was encoded
    resized_bytes: int = 0  # of the image as a JPEG at the coded size


class Encoded(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Encode`; `shared` holds each shared-state blob of the batch once.

    `choices` are a planning encoder's news; its trials took `trial_seconds` of `seconds`. `quality` is that of one
    image, in dB: the frame, its background, its objects.
    """

    results: list[Result]
    shared: list[bytes]
    seconds: float
    choices: list[Choice] = []
    trial_seconds: float = 0.0
    quality: tuple[float, float | None, float | None] | None = None


class Failed(msgspec.Struct, frozen=True, tag=True):
    """The answer to `Encode` when the encoder raised."""

    reason: str


ToChild = Start | Encode
FromChild = Ready | Refused | Encoded | Failed

_to_child: msgspec.msgpack.Decoder[ToChild] = msgspec.msgpack.Decoder(ToChild)
_from_child: msgspec.msgpack.Decoder[FromChild] = msgspec.msgpack.Decoder(FromChild)


def pack(message: ToChild | FromChild) -> bytes:
    """A frame: the length, then the message."""
    body = msgspec.msgpack.encode(message)
    if len(body) > MAX_FRAME:
        raise ProtocolError(f"a message of {len(body)} bytes to or from the encoder; lower encoder.batch")
    return HEADER.pack(len(body)) + body


def frame_size(header: bytes) -> int:
    """Length of the frame that follows a header. Raises ProtocolError when it is absurd."""
    (size,) = HEADER.unpack(header)
    if size > MAX_FRAME:
        raise ProtocolError(f"the encoder announced {size} bytes; at most {MAX_FRAME} are taken")
    return int(size)


def unpack_to_child(body: bytes) -> ToChild:
    """Raises ProtocolError."""
    try:
        return _to_child.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"bad message to the encoder: {error}") from error


def unpack_from_child(body: bytes) -> FromChild:
    """Raises ProtocolError."""
    try:
        return _from_child.decode(body)
    except msgspec.DecodeError as error:
        raise ProtocolError(f"bad message from the encoder: {error}") from error
