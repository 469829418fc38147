"""Write the corpus: `python tests/attacks/wire/generate.py`. Every file is the same each time."""

from __future__ import annotations

import hashlib
import json
import random
import struct
from pathlib import Path
from typing import Any

from fogline.common.rpc.gen import images_pb2 as pb
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


def main() -> None:
    for folder, files in (("tcp", TCP), ("hello", HELLO)):
        (HERE / folder).mkdir(exist_ok=True)
        for name, data in files.items():
            (HERE / folder / f"{name}.bin").write_bytes(data)
    (HERE / "upload").mkdir(exist_ok=True)
    for name, (messages, _) in UPLOAD.items():
        parts = [m if isinstance(m, bytes) else m.SerializeToString() for m in messages]
        (HERE / "upload" / f"{name}.bin").write_bytes(b"".join(struct.pack("<I", len(p)) + p for p in parts))
    expected = {name: words for name, (_, words) in UPLOAD.items()}
    (HERE / "upload" / "expected.json").write_text(json.dumps(expected, indent=2) + "\n")


if __name__ == "__main__":
    main()
