"""Writes this folder's files. `python generate.py` here, after a change of the format; the files are committed.

The assembler below checks nothing, unlike the product's own writer, and computes the checksums that make each file
reach the check that it attacks.
"""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path

HERE = Path(__file__).resolve().parent
ID = bytes(range(32))
BOX = (0, (10.0, 20.0, 30.0, 40.0))  # label, x, y, w, h
BACKGROUND = (0, 1, 1, (), None, b"background")  # flags, codec, version, region, scale, payload
OBJECT = (1, 1, 1, (4, 8, 12, 16), None, b"object")


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def text(value: bytes) -> bytes:
    return bytes([len(value)]) + value


def record(
    magic=b"FGL",
    version=1,
    time=1_700_000_000_000_000,
    camera=b"north",
    source=(640, 480),
    size=(160, 120),
    shared=(),
    labels=(b"boat",),
    boxes=(BOX,),
    box_count=None,
    layers=(BACKGROUND, OBJECT),
    layer_count=None,
    lengths=None,
    crcs=None,
    header_crc=None,
    payloads=None,
) -> bytes:
    head = magic + bytes([version]) + ID + struct.pack("<Q", time) + text(camera)
    head += b"".join(v if isinstance(v, bytes) else varint(v) for v in (*source, *size, len(shared)))
    head += b"".join(shared) + varint(len(labels)) + b"".join(text(label) for label in labels)
    head += varint(len(boxes) if box_count is None else box_count)
    head += b"".join(varint(label) + struct.pack("<4f", *values) for label, values in boxes)
    head += varint(len(layers) if layer_count is None else layer_count)
    for index, (flags, codec, number, region, scale, payload) in enumerate(layers):
        head += bytes([flags, codec, number]) + b"".join(map(varint, region))
        head += b"" if scale is None else struct.pack("<f", scale)
        head += varint(lengths[index] if lengths else len(payload))
        head += struct.pack("<I", crcs[index] if crcs else zlib.crc32(payload))
    head += struct.pack("<I", zlib.crc32(head) if header_crc is None else header_crc)
    return head + (b"".join(layer[5] for layer in layers) if payloads is None else payloads)


def boxed(*values: float) -> bytes:
    return record(boxes=((0, values),))


def layered(*layers: tuple, **fields) -> bytes:
    return record(labels=(), boxes=(), layers=layers, **fields)


def coded(codec: int, payload: bytes, region=(0, 0, 16, 16), version=1) -> bytes:
    """A well-formed record with one object layer of 16x16 under attack."""
    return layered((0, 1, 1, (), None, b"\x32\x00\x00"), (1, codec, version, region, None, payload))


def containers() -> dict[str, bytes]:
    good = record()
    nan, infinity = float("nan"), float("inf")
    return {
        "empty": b"",
        "wrong-magic": record(magic=b"PNG"),
        "future-version": record(version=2),
        "truncated-header": good[:50],
        "truncated-payload": good[:-1],
        "trailing-byte": good + b"\0",
        "header-checksum": record(header_crc=0),
        "layer-checksum": record(crcs=(0, 0)),
        "varint-overlong": record(source=(b"\x80\x85\x00", 480)),
        "varint-endless": record(source=(b"\xff\xff\xff\xff\xff\xff\xff\xff", 480)),
        "camera-not-utf8": record(camera=b"\xff\xfe"),
        "camera-surrogate": record(camera=b"\xed\xa0\x80"),
        "camera-too-long": record(camera=b"n" * 65),
        "time-beyond-63-bits": record(time=1 << 63),
        "source-zero": record(source=(0, 480)),
        "source-too-wide": record(source=(65_536, 1)),
        "source-100-megapixels": record(source=(10_000, 10_000)),
        "shared-twice": record(shared=(ID, ID)),
        "shared-too-many": record(shared=tuple(bytes([i]) * 32 for i in range(17))),
        "label-unknown": record(boxes=((1, BOX[1]),)),
        "label-unused": record(labels=(b"boat", b"car")),
        "label-twice": record(labels=(b"boat", b"boat"), boxes=(BOX, (1, BOX[1]))),
        "label-out-of-order": record(labels=(b"boat", b"car"), boxes=((1, BOX[1]), BOX)),
        "label-too-long": record(labels=(b"b" * 65,)),
        "box-nan": boxed(nan, 0.0, 1.0, 1.0),
        "box-nan-size": boxed(0.0, 0.0, 1.0, nan),
        "box-infinite": boxed(0.0, 0.0, infinity, 1.0),
        "box-negative": boxed(-1.0, 0.0, 5.0, 5.0),
        "box-no-area": boxed(1.0, 1.0, 0.0, 5.0),
        "box-beyond-right": boxed(630.0, 0.0, 11.0, 5.0),
        "box-beyond-bottom": boxed(0.0, 470.0, 5.0, 11.0),
        "boxes-a-quarter-billion": record(box_count=(1 << 28) - 1),
        "boxes-1025": record(boxes=(BOX,) * 1025),
        "layers-a-quarter-billion": record(layer_count=(1 << 28) - 1),
        "layers-none": layered(),
        "layer-object-first": layered(OBJECT, BACKGROUND),
        "layer-two-backgrounds": layered(BACKGROUND, BACKGROUND),
        "layer-flags": layered((4, 1, 1, (), None, b"b")),
        "layer-codec-zero": layered((0, 0, 1, (), None, b"b")),
        "layer-version-zero": layered((0, 1, 0, (), None, b"b")),
        "layer-empty-payload": layered((0, 1, 1, (), None, b"")),
        "layer-huge-payload": layered(BACKGROUND, lengths=((1 << 28) - 1,)),
        "layer-lengths-shifted": record(lengths=(1 << 20, 6)),
        "region-empty": layered(BACKGROUND, (1, 1, 1, (4, 8, 0, 16), None, b"o")),
        "region-beyond-frame": layered(BACKGROUND, (1, 1, 1, (150, 8, 11, 16), None, b"o")),
        "region-far-away": layered(BACKGROUND, (1, 1, 1, ((1 << 28) - 1, 0, 1, 1), None, b"o")),
        "frame-zero": layered(BACKGROUND, size=(0, 120)),
        "frame-too-wide": layered(BACKGROUND, size=(16_385, 1)),
        "frame-bomb": layered(BACKGROUND, size=(16_384, 16_384)),
        "regions-bomb": layered(
            BACKGROUND, *[(1, 1, 1, (0, 0, 1024, 1024), None, b"o") for _ in range(16)], size=(1024, 1024)
        ),
        "regions-over-and-over": layered(
            BACKGROUND, *[(1, 1, 1, (0, 0, 1, 1), None, b"o") for _ in range(65)], size=(1, 1)
        ),
        "scale-nan": layered((2, 1, 1, (), nan, b"b")),
        "scale-zero": layered((2, 1, 1, (), 0.0, b"b")),
        "scale-negative": layered((2, 1, 1, (), -1.0, b"b")),
        "scale-infinite": layered((2, 1, 1, (), infinity, b"b")),
        "scale-one-written": layered((2, 1, 1, (), 1.0, b"b")),
    }


def bits(*fields: tuple[int, int]) -> bytes:
    """Values and their widths in bits, packed from the top."""
    joined = "".join(f"{value:0{width}b}" for value, width in fields)
    joined += "0" * (-len(joined) % 8)
    return bytes(int(joined[i : i + 8], 2) for i in range(0, len(joined), 8))


def sequence(profile=0, still=1, reduced=1, width=16, height=16, depth=0, mono=0) -> bytes:
    """An AV1 sequence header unit."""
    body = bits(
        (profile, 3), (still, 1), (reduced, 1), (0, 5), (15, 4), (15, 4), (width - 1, 16), (height - 1, 16),
        (0, 6), (depth, 1), (mono, 1), (0, 16),
    )  # fmt: skip
    return b"\x0a" + varint(len(body)) + body


def payloads() -> dict[str, bytes]:
    frame = b"\x32\x04abcd"
    no_codes = bytes(16)
    dc = bytes([0, 1]) + bytes(14) + b"\x00"
    return {
        "unknown-codec": coded(200, b"payload"),
        "future-codec-version": coded(1, b"payload", version=99),
        "missing-shared-state": record(layers=((0, 1, 1, (), None, b"\x32\x00\x00"),), shared=(ID,)),
        "jpeg2-too-short": coded(1, b"\x32\x00"),
        "jpeg2-quality-zero": coded(1, b"\x00\x00data"),
        "jpeg2-quality-255": coded(1, b"\xff\x00data"),
        "jpeg2-flags": coded(1, b"\x32\x04data"),
        "jpeg2-second-frame-header": coded(1, b"\x32\x00" + bytes.fromhex("ffc0001108ffffffff03012200021101031101")),
        "jpeg2-end-marker": coded(1, b"\x32\x00ab\xff\xd9cd"),
        "jpeg2-last-byte-ff": coded(1, b"\x32\x00ab\xff"),
        "jpeg2-tables-cut": coded(1, b"\x32\x02" + dc + bytes(15)),
        "jpeg2-table-empty": coded(1, b"\x32\x02" + no_codes * 4 + b"data"),
        "jpeg2-table-oversubscribed": coded(1, b"\x32\x02" + bytes([3]) + bytes(15) + b"\0\1\2" + dc * 3 + b"data"),
        "jpeg2-table-all-ones": coded(1, b"\x32\x02" + bytes([2]) + bytes(15) + b"\0\1" + dc * 3 + b"data"),
        "jpeg2-table-symbol": coded(1, b"\x32\x02" + bytes([0, 1]) + bytes(14) + b"\x0f" + dc * 3 + b"data"),
        "jpeg2-table-257-symbols": coded(1, b"\x32\x02" + dc + bytes(14) + b"\x02\xff" + bytes(257) + dc * 2 + b"data"),
        "avif2-size-lie": coded(2, sequence(width=65_536, height=65_536) + frame),
        "avif2-one-pixel-off": coded(2, sequence(width=17) + frame),
        "avif2-no-sequence": coded(2, frame),
        "avif2-two-sequences": coded(2, sequence() + sequence(width=65_536, height=65_536) + frame),
        "avif2-two-frames": coded(2, sequence() + frame + frame),
        "avif2-no-frame": coded(2, sequence()),
        "avif2-full-header": coded(2, sequence(reduced=0) + frame),
        "avif2-not-still": coded(2, sequence(still=0) + frame),
        "avif2-professional-profile": coded(2, sequence(profile=2) + frame),
        "avif2-10-bit": coded(2, sequence(depth=1) + frame),
        "avif2-no-colour": coded(2, sequence(mono=1) + frame),
        "avif2-header-cut": coded(2, b"\x0a\x02\x18\xff" + frame),
        "avif2-unit-beyond-end": coded(2, sequence() + b"\x32\x7fabcd"),
        "avif2-unit-size-endless": coded(2, sequence() + b"\x32" + b"\xff" * 8),
        "avif2-unit-of-zero": coded(2, sequence() + b"\x32\x00"),
        "siren-empty-shape": coded(3, b"\x00\x00\x00"),
        "siren-huge-shape": coded(3, b"\xff\xff" + bytes(64)),
        "siren-cut": coded(3, b"\x03\x0a\x01"),
        "siren-2-no-base": coded(3, b"\x03\x0a\x01", version=2),
        "siren-2-cut": coded(3, b"\x03\x0a\x01\x8a" + bytes(7), version=2),
        "siren-2-huge-grid": coded(3, b"\x10\x80\xff\x8a" + bytes(64), version=2),
        "siren-2-table": coded(3, b"\x01\x01\x00\x8a" + bytes(2) + b"\xff\x00" + bytes(40), version=2),
        "latent-empty-head": coded(4, b"\x00\x00"),
        "latent-unknown-flag": coded(4, b"\x00\x04\x28"),
        "latent-step-too-large": coded(4, b"\x00\x00\x51"),
        "latent-still-with-cargo": coded(4, b"\x00\x00\x28cargo"),
        "latent-stream-cut": coded(4, b"\x00\x01\x28\x04\x00ab"),
        "latent-stream-half-a-state": coded(4, b"\x00\x01\x28\x01\x00ab"),
        "latent-state-too-low": coded(4, b"\x00\x01\x28\x02\x00\x00\x00\x01\x00"),
        "latent-no-motion-numbers": coded(4, b"\x00\x01\x28\x00\x00"),
        "latent-motion-beyond-frames": coded(4, b"\x00\x01\x28\x00\x00" + b"\x00\x00\xff\xff" * 12),
        "latent-no-reference": coded(4, b"\x00\x00\x28"),
        "nerv-too-short": record(layers=((0, 5, 1, (), None, b"\x00\x00"),)),
        "nerv-no-network": record(layers=((0, 5, 1, (), None, bytes(5)),)),
        "nerv-object": coded(5, bytes(5)),
        "siren-2-stream-left": coded(3, b"\x01\x01\x00\x8a" + bytes(4) + b"\x00\x80\x00\x00" + bytes(40), version=2),
    }


def segment(marker: int, body: bytes) -> bytes:
    return bytes([0xFF, marker]) + struct.pack(">H", len(body) + 2) + body


def frame(width: int, height: int, *, marker=0xC0, precision=8, components=3) -> bytes:
    body = struct.pack(">BHHB", precision, height, width, components)
    return segment(marker, body + b"".join(bytes([i + 1, 0x11, 0]) for i in range(components)))


def jpegs() -> dict[str, bytes]:
    from PIL import Image

    def saved(kind: str, **options) -> bytes:
        buffer = io.BytesIO()
        gradient = Image.linear_gradient("L").resize((32, 24))
        Image.merge("RGB", (gradient, gradient.rotate(90), gradient)).save(buffer, kind, **options)
        return buffer.getvalue()

    good = saved("JPEG")
    start = good.index(b"\xff\xc0")
    scan = good.index(b"\xff\xda")
    after = start + 2 + struct.unpack(">H", good[start + 2 : start + 4])[0]

    def framed(header: bytes) -> bytes:
        return good[:start] + header + good[after:]

    progressive = saved("JPEG", progressive=True)
    last = progressive.rindex(b"\xff\xda")
    return {
        "zero-byte": b"",
        "html-error-page": b"<html><body>404</body></html>",
        "png-named-jpg": saved("PNG"),
        "gif-named-jpg": saved("GIF"),
        "webp-named-jpg": saved("WEBP"),
        "avif-named-jpg": saved("AVIF"),
        "magic-only": good[:3],
        "truncated-in-headers": good[: start + 6],
        "truncated-before-data": good[:scan],
        "truncated-in-data": good[: (scan + len(good)) // 2],
        "truncated-end-marker": good[:-2],
        "truncated-progressive": progressive[: last + 12],
        "cut-short-but-ended": good[: scan + 14] + b"\xff\xd9",
        "two-files-in-one-cut": good[: (scan + len(good)) // 2] + good,
        "zeros-after-start": b"\xff\xd8\xff" + bytes(64),
        "100-megapixels": framed(frame(10_000, 10_000)),
        "4-gigapixels": framed(frame(65_535, 65_535)),
        "size-zero": framed(frame(0, 24)),
        "12-bit": framed(frame(32, 24, precision=12)),
        "two-components": framed(frame(32, 24, components=2)),
        "no-components": framed(frame(32, 24, components=0)),
        "lossless": framed(frame(32, 24, marker=0xC3)),
        "arithmetic": framed(frame(32, 24, marker=0xC9)),
        "frame-header-cut": framed(segment(0xC0, b"\x08\x00\x18\x00\x20\x03")),
        "two-frame-headers": framed(frame(32, 24) + frame(10_000, 10_000)),
        "data-before-frame-header": good[:start] + good[after:],
        "no-image": b"\xff\xd8\xff\xd9",
        "segment-length-zero": good[:2] + b"\xff\xe1\x00\x00" + good[2:],
        "segment-beyond-end": good[:2] + b"\xff\xe1\xff\xff" + good[2:],
        "fifty-scans": progressive[:-2] + progressive[last:-2] * 40 + b"\xff\xd9",
        "two-thousand-segments": good[:2] + segment(0xFE, b"") * 2000 + good[2:],
        "no-quantisation-tables": good[: good.index(b"\xff\xdb")] + good[start:],
        "scan-of-unknown-component": good[: scan + 5] + b"\x09" + good[scan + 6 :],
    }


def main() -> None:
    for folder, suffix, files in (
        ("container", "fgl", containers()),
        ("payload", "fgl", payloads()),
        ("jpeg", "jpg", jpegs()),
    ):
        target = HERE / folder
        target.mkdir(exist_ok=True)
        for old in target.iterdir():
            old.unlink()
        for name, data in files.items():
            (target / f"{name}.{suffix}").write_bytes(data)


if __name__ == "__main__":
    main()
