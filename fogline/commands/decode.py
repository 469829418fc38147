"""`fogline decode FILE -o DIR`: records back to images, as PNG files and one line of JSON for each."""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fogline.common.errors import ConfigError, FormatError
from fogline.common.images.archive import read_archive
from fogline.common.images.record import ImageRecord, SharedState

if TYPE_CHECKING:
    from fogline.common.images.decode import PreparedImage

BATCH = 32


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument("file", type=Path, metavar="FILE", help="what `fogline encode` wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the images")
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Write `00000.png`, … at the coded size, and `images.jsonl` with camera, time, sizes and boxes of each."""
    try:
        from fogline.common.images.decode import BatchDecoder
    except ImportError as error:
        raise ConfigError(f"decoding needs torch ({error}); pip install 'fogline[torch]'", number=211) from error
    out: Path = arguments.output
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ConfigError(f"{out} can't be made: {error.strerror}; choose another -o") from error
    decoder = BatchDecoder(arguments.device)
    shared: dict[bytes, bytes] = {}
    waiting: list[PreparedImage] = []
    count = 0
    began = time.monotonic()

    def write() -> None:
        by_size: dict[tuple[int, int], list[int]] = {}
        for index, image in enumerate(waiting):
            by_size.setdefault(image.size, []).append(index)
        first = count - len(waiting)
        for indices in by_size.values():
            batch = decoder.decode([waiting[index] for index in indices])
            pixels = batch.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            for index, picture in zip(indices, pixels, strict=True):
                Image.fromarray(np.ascontiguousarray(picture)).save(out / _name(first + index))
        waiting.clear()

    with (out / "images.jsonl").open("w", encoding="utf-8") as lines:
        for entry in read_archive(arguments.file):
            if isinstance(entry, SharedState):
                shared[entry.digest] = entry.data
                continue
            try:
                waiting.append(decoder.prepare(entry, shared))
            except FormatError as error:
                raise FormatError(f"{arguments.file}: image {count}: {error}") from error
            lines.write(json.dumps(_line(_name(count), entry), ensure_ascii=False) + "\n")
            count += 1
            if len(waiting) == BATCH:
                write()
        write()
    sys.stdout.write(f"{out}: {count} images, {time.monotonic() - began:.1f} s\n")
    return 0


def _name(index: int) -> str:
    return f"{index:05d}.png"


def _line(name: str, record: ImageRecord) -> dict[str, object]:
    return {
        "file": name,
        "content_id": record.content_id.hex(),
        "camera": record.camera,
        "capture_time_us": record.capture_time_us,
        "size": record.size,
        "source_size": record.source_size,
        "boxes": [[box.x, box.y, box.w, box.h, box.label] for box in record.boxes],  # in pixels of source_size
    }
