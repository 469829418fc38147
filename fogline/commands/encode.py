"""`fogline encode DIR -o FILE --codec NAME`: the image codecs without a network."""

from __future__ import annotations

import argparse
import hashlib
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from fogline.commands.parameters import parse
from fogline.common.data import AnnotatedSequence, Frame, load_sequence
from fogline.common.errors import ConfigError, InputError
from fogline.common.images.archive import ArchiveWriter
from fogline.common.images.codec import ImageEncoder, SourceImage
from fogline.common.images.container import MAX_CAMERA_BYTES
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.record import ImageRecord
from fogline.fog_node.encode_queue import coded_size
from fogline.fog_node.encoders import CHOICES, build_encoder

BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("folder", type=Path, metavar="DIR", help="an annotated sequence: OTB, COCO, VOC or YOLO")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="FILE", help="the file to write")
    parser.add_argument("--codec", choices=CHOICES, default="siren", help="image codec (default: siren)")
    parser.add_argument("--param", action="append", default=[], metavar="KEY=VALUE", help="codec parameter; again")
    parser.add_argument("--width", type=int, default=320, help="coded width in pixels, never enlarged (default: 320)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for siren (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Encode every usable frame; name every refused one. Returns 3 when a frame was refused."""
    if not 16 <= arguments.width <= 8192:
        raise ConfigError(f"--width {arguments.width}: choose 16 to 8192 pixels")
    sequence = load_sequence(arguments.folder)
    for refused in sequence.refused:
        sys.stderr.write(f"left out: {refused}\n")
    encoder = build_encoder(arguments.codec, parse("--param", arguments.param), arguments.device)
    source_bytes = record_bytes = shared_bytes = done = 0
    refusals = len(sequence.refused)
    began = time.monotonic()
    with ArchiveWriter(arguments.output) as archive:
        for batch in _batches(sequence, max(BATCH, encoder.together)):
            loaded = []
            for frame in batch:
                try:
                    loaded.append(_load(frame, sequence.name, arguments.width))
                except InputError as error:
                    sys.stderr.write(f"left out: {frame.path}: {error}\n")
                    refusals += 1
            for record, size, shared in _encode(encoder, loaded):
                for state in shared:
                    archive.add_shared(state)
                    shared_bytes += len(state.data)
                record_bytes += archive.add(record)
                source_bytes += size
                done += 1
            sys.stderr.write(f"encoded {done} of {len(sequence.frames)} images\n")
    seconds = time.monotonic() - began
    sys.stdout.write(
        f"{arguments.output}: {done} images, {source_bytes} bytes of JPEG in {record_bytes} of records and "
        f"{shared_bytes} of shared state, {seconds:.1f} s\n"
    )
    return InputError.exit_code if refusals else 0


def _batches(sequence: AnnotatedSequence, size: int) -> Iterator[Sequence[Frame]]:
    for at in range(0, len(sequence.frames), size):
        yield sequence.frames[at : at + size]


def _load(frame: Frame, camera: str, width: int) -> tuple[ImageRecord, SourceImage, int]:
    """Return the record without its layers, what the encoder needs, and the size of the JPEG in bytes."""
    data = frame.path.read_bytes()
    pixels = decode_jpeg(data)
    size = coded_size(frame.width, frame.height, width)
    scaled = [box.scaled(size[0] / frame.width, size[1] / frame.height) for box in frame.boxes]
    record = ImageRecord(
        content_id=hashlib.sha256(data).digest(),
        capture_time_us=int(frame.path.stat().st_mtime * 1e6),
        camera=camera.encode()[:MAX_CAMERA_BYTES].decode(errors="ignore"),
        source_size=(frame.width, frame.height),
        size=size,
        boxes=frame.boxes,
        layers=(),
    )
    source = SourceImage(resize(pixels, *size), tuple((b.x, b.y, b.w, b.h) for b in scaled), camera)
    return record, source, len(data)


def _encode(
    encoder: ImageEncoder, loaded: Sequence[tuple[ImageRecord, SourceImage, int]]
) -> Iterator[tuple[ImageRecord, int, Any]]:
    encoded = encoder.encode([source for _, source, _ in loaded]) if loaded else []
    for (record, _, size), image in zip(loaded, encoded, strict=True):
        shared = tuple(state.digest for state in image.shared)
        yield replace(record, layers=image.layers, shared=shared), size, image.shared
