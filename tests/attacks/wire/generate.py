"""Write the corpus: `python tests/attacks/wire/generate.py`. Every file is the same each time."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

from fogline.common.rpc.gen import images_pb2 as pb
from fogline.common.rpc.gen import tensors_pb2 as tensors
from fogline.common.rpc.gen import transfer_pb2
from fogline.common.wire.transfer import Piece, cut

HERE = Path(__file__).parent
RANDOM = random.Random(20260101)
IMAGE = RANDOM.randbytes(1000)
OTHER = RANDOM.randbytes(700)
PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
SETTINGS = bytes.fromhex("000000040000000000")


def frame(kind: int, flags: int, stream: int, body: bytes, length: int | None = None) -> bytes:
    size = len(body) if length is None else length
    return size.to_bytes(3, "big") + bytes([kind, flags]) + stream.to_bytes(4, "big") + body


def content_id(image: bytes) -> bytes:
    return hashlib.sha256(image).digest()


def offer(image: bytes = IMAGE, size: int | None = None, name: bytes | None = None) -> Any:
    size = len(image) if size is None else size
    return pb.UploadRequest(offer=pb.ImageOffer(content_id=name or content_id(image), size=size))


def chunk(piece: Piece, image: bytes = IMAGE) -> Any:
    sent = transfer_pb2.Chunk(offset=piece.offset, data=piece.data, crc32=piece.crc32)
    return pb.UploadRequest(chunk=pb.UploadChunk(content_id=content_id(image), chunk=sent))


TCP = {
    "empty": b"",
    "zeros": bytes(4096),
    "noise": RANDOM.randbytes(65536),
    "http1-get": b"GET / HTTP/1.1\r\nHost: fog\r\n\r\n",
    "preface-cut": PREFACE[:11],
    "preface-only": PREFACE,
    "preface-then-noise": PREFACE + RANDOM.randbytes(4096),
    "frame-longer-than-allowed": PREFACE + SETTINGS + frame(0, 0, 1, b"", length=0xFFFFFF),
    "data-on-no-stream": PREFACE + SETTINGS + frame(0, 0, 1, b"x" * 100),
    "headers-of-noise": PREFACE + SETTINGS + frame(1, 5, 1, RANDOM.randbytes(200)),
    "endless-continuation": PREFACE + SETTINGS + frame(1, 0, 1, b"\x82") + frame(9, 0, 1, b"\x00" * 100) * 500,
    "settings-storm": PREFACE + SETTINGS * 5000,
    "ping-storm": PREFACE + SETTINGS + frame(6, 0, 0, bytes(8)) * 5000,
    "reset-storm": PREFACE + SETTINGS + b"".join(frame(3, 0, 2 * i + 1, bytes(4)) for i in range(2000)),
    "window-overflow": PREFACE + SETTINGS + frame(8, 0, 0, b"\x7f\xff\xff\xff") * 3,
    "tls-hello-cut": bytes.fromhex("16030100c8010000c40303") + RANDOM.randbytes(40),
    "tls-record-too-long": bytes.fromhex("160301ffff") + RANDOM.randbytes(2000),
}

HELLO = {
    "noise": RANDOM.randbytes(300),
    "truncated": pb.HelloRequest(protocol=1, client_time_us=1 << 60).SerializeToString()[:-3],
    "length-beyond-the-end": b"\x1a\xff\xff\xff\xff\x0f",
    "wrong-wire-type": b"\x0d\x01",
    "endless-varint": b"\x08" + b"\xff" * 20,
    "group-never-closed": b"\x1b" * 200,
    "field-number-zero": b"\x02\x00",
}

FIRST, SECOND, *REST = list(cut(IMAGE, 0, 300))

UPLOAD: dict[str, tuple[list[Any], str | None]] = {
    "good": ([offer(), *map(chunk, cut(IMAGE, 0, 300))], None),
    "good-two-interleaved": (
        [offer(), offer(OTHER), chunk(FIRST), chunk(next(cut(OTHER)), OTHER), chunk(SECOND), *map(chunk, REST)],
        None,
    ),
    "replayed-chunk": ([offer(), chunk(FIRST), chunk(FIRST)], "replayed"),
    "reordered-chunks": ([offer(), chunk(SECOND), chunk(FIRST)], "out of order"),
    "chunk-missing": ([offer(), chunk(FIRST), *map(chunk, REST)], "out of order"),
    "chunk-runs-past-the-end": ([offer(), chunk(FIRST), chunk(Piece.of(300, bytes(701)))], "runs past"),
    "chunk-overflows-the-offset": ([offer(), chunk(Piece(2**64 - 1, b"x", 0))], "out of order"),
    "chunk-too-large": ([offer(size=3 << 20), chunk(Piece.of(0, bytes((1 << 20) + 1)))], "are allowed"),
    "chunk-empty": ([offer(), chunk(Piece.of(0, b""))], "are allowed"),
    "chunk-damaged": ([offer(), chunk(Piece(0, FIRST.data, FIRST.crc32 ^ 1))], "checksum"),
    "chunk-without-offer": ([chunk(FIRST)], "not accepted"),
    "chunk-after-stored": ([offer(), *map(chunk, cut(IMAGE)), chunk(FIRST)], "not accepted"),
    "offered-twice": ([offer(), offer()], "offered twice"),
    "offer-without-content-id": ([offer(name=b"x")], "content id"),
    "offers-without-end": ([offer(name=bytes([i]) * 32) for i in range(200)], "at once"),
    "empty-message": ([pb.UploadRequest()], "not accepted"),
    "noise": ([b"\xff" * 50], "not a request"),
    "noise-after-chunks": ([offer(), chunk(FIRST), b"\x0b" * 33], "not a request"),
}


SESSION_NAMES = iter(range(1 << 16))
ACTIVATION, UINT8, FLOAT32 = 1, 5, 1
TENSOR = bytes(range(200))


def opening(**fields: Any) -> Any:
    """A session of its own for each file."""
    name = next(SESSION_NAMES).to_bytes(16, "little")
    return tensors.SessionRequest(
        open=tensors.OpenSession(**{"session": name, "protocol": 1, "mode": 2, "setup": b"{}", **fields})
    )


def header(size: int = len(TENSOR), **fields: Any) -> Any:
    return tensors.TensorHeader(
        **{"role": ACTIVATION, "dtype": UINT8, "shape": [size], "coded_bytes": size, **fields}  # type: ignore[arg-type]
    )


def coded(size: int, *stages: Any, **fields: Any) -> Any:
    return header(coded_bytes=size, stages=stages or [tensors.CodecStage(number=7, version=1)], **fields)


def operation(*headers: Any, seq: int = 1, data: bytes = b"", **fields: Any) -> Any:
    fields.setdefault("forward", tensors.Forward(training=True))
    return tensors.SessionRequest(operation=tensors.Operation(seq=seq, tensors=headers, data=data, **fields))


def whole(seq: int = 1, **fields: Any) -> Any:
    return operation(header(), seq=seq, data=TENSOR, crc32=zlib.crc32(TENSOR), **fields)


def part(start: int, end: int, seq: int = 1, last: int | None = None, **fields: Any) -> Any:
    made = tensors.PayloadChunk(seq=seq, offset=start, data=TENSOR[start:end], **fields)
    if last is not None:
        made.crc32 = last
    return tensors.SessionRequest(chunk=made)


def acknowledge(through: int) -> Any:
    return tensors.SessionRequest(acknowledge=tensors.Acknowledge(answered_through=through))


def answered(message: Any) -> Any:
    """The same words in the other direction."""
    if message.HasField("chunk"):
        return tensors.SessionResponse(chunk=message.chunk)
    said = message.operation
    made = tensors.Answer(seq=said.seq, tensors=said.tensors, data=said.data)
    if said.HasField("crc32"):
        made.crc32 = said.crc32
    return tensors.SessionResponse(answer=made)


FIRST_IS_GOOD = whole()
HALF, CRC = operation(header(), data=TENSOR[:100]), zlib.crc32(TENSOR)

# What comes instead of (or after) a good header, on both ends; the words of the refusal.
FRAMES: dict[str, tuple[list[Any], str]] = {
    "dtype-unknown": ([operation(header(dtype=99))], "update the older end"),
    "dtype-unspecified": ([operation(header(dtype=0))], "update the older end"),
    "role-unknown": ([operation(header(role=99))], "update the older end"),
    "role-unspecified": ([operation(header(role=0))], "update the older end"),
    "shape-overflows": ([operation(header(shape=[1 << 32, 1 << 32, 1 << 32]))], "once decoded"),
    "shape-wraps-to-the-size": ([operation(header(shape=[(1 << 62) + 50], dtype=FLOAT32))], "once decoded"),
    "dimension-negative": ([operation(header(shape=[(1 << 64) - 1]))], "a dimension"),
    "dimension-negative-beside-zero": ([operation(header(shape=[0, (1 << 64) - 1]))], "a dimension"),
    "dimensions-nine": ([operation(header(shape=[1] * 9))], "9 dimensions"),
    "dimensions-a-thousand": ([operation(header(shape=[1] * 1000))], "1000 dimensions"),
    "size-not-the-shape": ([operation(header(199, shape=[200]))], "raw tensor of 200"),
    "size-of-a-scalar": ([operation(header(200, shape=[]))], "raw tensor of 1"),
    "coded-size-forged": ([operation(coded((1 << 64) - 1))], "no codec needs as many"),
    "coded-size-of-nothing": ([operation(coded(1 << 20, shape=[0]))], "no codec needs as many"),
    "decoded-size-of-a-bomb": ([operation(coded(100, shape=[1 << 40]))], "once decoded"),
    "stages-five": ([operation(coded(200, *[tensors.CodecStage(number=1)] * 5))], "5 codec stages"),
    "parameters-too-long": (
        [operation(coded(200, tensors.CodecStage(number=1, params=bytes((1 << 16) + 1))))],
        "codec parameters",
    ),
    "name-too-long": ([operation(header(name="n" * 257))], "a name of 257"),
    "tensors-without-end": ([operation(*[header(0)] * 65)], "65 tensors"),
    "sizes-that-add-up": ([operation(*[header(3 << 20)] * 3)], "a payload of"),
    "data-of-nothing": ([operation(data=b"x")], "empty payload"),
    "data-longer-than-announced": ([operation(header(10), data=TENSOR)], "stay within"),
    "data-missing": ([operation(header())], "a chunk of 0 bytes"),
    "data-damaged": ([operation(header(), data=TENSOR, crc32=CRC ^ 1)], "match their checksum"),
    "data-without-checksum": ([operation(header(), data=TENSOR)], "comes with its last bytes"),
    "data-with-early-checksum": ([operation(header(), data=TENSOR[:10], crc32=CRC)], "comes with its last bytes"),
    "chunk-without-header": ([part(0, 100)], "without its header"),
    "chunk-replayed": ([HALF, part(100, 150), part(100, 150)], "is next"),
    "chunk-reordered": ([HALF, part(150, 200, last=CRC), part(100, 150)], "is next"),
    "chunk-missing": ([HALF, part(120, 200, last=CRC)], "is next"),
    "chunk-from-the-start": ([HALF, part(0, 100)], "is next"),
    "chunk-overflows-the-offset": ([HALF, part((1 << 64) - 1, 1 << 65)], "is next"),
    "chunk-of-another-frame": ([HALF, part(100, 200, seq=2, last=CRC)], "is next"),
    "chunk-empty": ([HALF, part(100, 100)], "a chunk of 0 bytes"),
    "chunk-past-the-end": ([HALF, part(100, 200), part(200, 200)], "comes with its last bytes"),
    "chunk-runs-past-the-end": (
        [HALF, tensors.SessionRequest(chunk=tensors.PayloadChunk(seq=1, offset=100, data=bytes(101)))],
        "stay within",
    ),
    "chunk-damaged": ([HALF, part(100, 200, last=CRC ^ 1 << 31)], "match their checksum"),
    "chunk-after-the-end": ([FIRST_IS_GOOD, part(100, 200, last=CRC)], "without its header"),
    "number-zero": ([whole(seq=0)], "0"),
    "number-skipped": ([whole(seq=2)], "2"),
    "number-huge": ([whole(seq=(1 << 64) - 1)], "18446744073709551615"),
    "number-repeated": ([FIRST_IS_GOOD, whole()], "1"),
}

# To a host: files of one stream each. A number is how many answers a good one gets.
SESSION: dict[str, tuple[list[Any], str | int]] = {
    **{name: ([opening(), *messages], words) for name, (messages, words) in FRAMES.items()},
    "good": ([opening(), whole(), whole(seq=2, answered_through=0)], 2),
    "good-chunks": ([opening(), HALF, part(100, 150), part(150, 200, last=CRC), whole(seq=2)], 2),
    "good-empty-and-scalar": (
        [opening(), operation(header(0, shape=[3, 0]), header(1, shape=[]), data=b"x", crc32=zlib.crc32(b"x"))],
        1,
    ),
    "good-without-tensors": ([opening(), operation(zero_grad=tensors.ZeroGrad(), forward=None)], 1),
    "good-fields-in-another-order": (
        # The chunk's data before its offset, and a field that nobody knows: both are valid protobuf.
        [
            opening(),
            HALF,
            b"\x1a\x71" + b"\x25" + struct.pack("<I", CRC) + b"\x1a\x64" + TENSOR[100:] + b"\x10\x64\x08\x01\x78\x00",
        ],
        1,
    ),
    "empty-message": ([tensors.SessionRequest()], "begins with its opening"),
    "operation-before-opening": ([whole()], "begins with its opening"),
    "opened-twice": ([opening(), opening()], "unknown here"),
    "session-name-short": ([opening(session=b"short")], "session id of 5"),
    "session-name-long": ([opening(session=bytes(4096))], "session id of 4096"),
    "protocol-of-the-future": ([opening(protocol=2)], "protocol 2"),
    "partial-answer-of-long-ago": ([opening(answered_through=9, partial_answer=3)], "a part of answer 3"),
    "unknown-message-after-opening": ([opening(), tensors.SessionRequest()], "unknown here"),
    "operation-of-no-kind": ([opening(), operation(forward=None)], "no kind that this host knows"),
    "operation-within-a-payload": ([opening(), HALF, whole(seq=2)], "within the payload"),
    "acknowledged-before-given": ([opening(), acknowledge(1)], "is acknowledged"),
    "acknowledged-for-ever": ([opening(), acknowledge((1 << 64) - 1)], "is acknowledged"),
    "acknowledged-with-an-operation": ([opening(), whole(answered_through=1)], "is acknowledged"),
    "noise": ([opening(), b"\xff" * 50], "not a request"),
    "noise-that-begins-as-a-chunk": ([opening(), b"\x1a\x30\x08" + b"\xff" * 47], "not a request"),
    "name-not-utf8": (
        [opening(), whole().SerializeToString().replace(b"\x08\x01\x18\x05", b"\x12\x02\xff\xfe")],
        "not a request",
    ),
    "length-beyond-the-end": ([opening(), HALF, part(100, 200, last=CRC).SerializeToString()[:-9]], "not a request"),
}

OPENED = tensors.SessionResponse(opened=tensors.SessionOpened(fresh=True))

# To a client that sent one operation: what a host may say, and the words of the error that the operation ends with.
ANSWERS: dict[str, tuple[list[Any], str]] = {
    **{
        name: ([OPENED, *map(answered, messages)], words)
        for name, (messages, words) in FRAMES.items()
        if messages[0] is not FIRST_IS_GOOD
    },
    "answer-before-opening": ([answered(whole())], "before it opened"),
    "answer-durable-too-far": (
        [OPENED, tensors.SessionResponse(answer=tensors.Answer(seq=1, durable_through=2))],
        "durable",
    ),
    "answer-within-an-answer": ([OPENED, answered(HALF), answered(whole())], "within"),
    "opened-twice": ([OPENED, OPENED], "twice"),
    "opened-beyond-what-was-sent": (
        [tensors.SessionResponse(opened=tensors.SessionOpened(held_through=99))],
        "the session is lost",
    ),
    "opened-with-a-part-of-nothing": (
        [tensors.SessionResponse(opened=tensors.SessionOpened(partial_operation=7, partial_bytes=1))],
        "holds a part of 7",
    ),
    "opened-with-a-part-beyond-the-end": (
        [tensors.SessionResponse(opened=tensors.SessionOpened(partial_operation=1, partial_bytes=1 << 40))],
        "asked to go on from byte",
    ),
    "noise": ([OPENED, b"\xff" * 50], "not an answer"),
}


def main() -> None:
    for folder, files in (("tcp", TCP), ("hello", HELLO)):
        (HERE / folder).mkdir(exist_ok=True)
        for name, data in files.items():
            (HERE / folder / f"{name}.bin").write_bytes(data)
    streams: dict[str, dict[str, tuple[list[Any], Any]]] = {"upload": UPLOAD, "session": SESSION, "answers": ANSWERS}
    for folder, cases in streams.items():
        (HERE / folder).mkdir(exist_ok=True)
        for name, (messages, _) in cases.items():
            parts = [m if isinstance(m, bytes) else m.SerializeToString(deterministic=True) for m in messages]
            (HERE / folder / f"{name}.bin").write_bytes(b"".join(struct.pack("<I", len(p)) + p for p in parts))
        expected = {name: words for name, (_, words) in cases.items()}
        (HERE / folder / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
