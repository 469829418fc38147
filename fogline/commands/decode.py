"""`fogline decode SOURCE -o DIR`: records back to images, with their boxes for people or for other trainers."""

from __future__ import annotations

import argparse
import itertools
import json
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from fogline.common.data.writers import WRITERS, FolderWriter
from fogline.common.errors import ConfigError, FormatError
from fogline.common.images.record import ImageRecord, SharedState

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from fogline.common.images.decode import PreparedImage

BATCH = 32
_JPEG_QUALITY = 95


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Describe the command line."""
    parser.add_argument(
        "source", type=Path, metavar="SOURCE", help="what `fogline encode` wrote, or an edge agent's data_dir"
    )
    parser.add_argument("-o", "--output", type=Path, required=True, metavar="DIR", help="folder for the images")
    parser.add_argument(
        "--layout",
        choices=("png", *WRITERS),
        default="png",
        help="png: exact pixels and images.jsonl; others: JPEG files annotated for other programs' trainers",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda (default: cpu)")


def run(arguments: argparse.Namespace) -> int:
    """Decode everything; a record that can't be is told and left out, and is the exit code in the end."""
    try:
        from fogline.common.images.decode import BatchDecoder
        from fogline.common.loader.source import read_source
    except ImportError as error:
        raise ConfigError(f"decoding needs torch ({error}); pip install 'fogline[torch]'", number=211) from error
    began = time.monotonic()
    decoder = BatchDecoder(arguments.device)
    shared: dict[bytes, bytes] = {}
    waiting: list[tuple[ImageRecord, PreparedImage]] = []
    refused = 0
    entries = read_source(arguments.source)
    first = next(entries, None)  # a source that is none leaves no folder behind
    out = _Output(arguments.output, arguments.layout)

    def write() -> None:
        # One size is one batch; what is written keeps the order of the source.
        pictures: dict[int, NDArray[np.uint8]] = {}
        for size in {image.size for _, image in waiting}:
            of_size = [index for index, (_, image) in enumerate(waiting) if image.size == size]
            batch = decoder.decode([waiting[index][1] for index in of_size])
            pixels = batch.mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
            pictures |= dict(zip(of_size, pixels, strict=True))
        for index, (record, _) in enumerate(waiting):
            out.add(record, np.ascontiguousarray(pictures[index]))
        waiting.clear()

    for entry in itertools.chain([] if first is None else [first], entries):
        if isinstance(entry, SharedState):
            shared[entry.digest] = entry.data
            continue
        try:
            if isinstance(entry, FormatError):
                raise entry
            waiting.append((entry, decoder.prepare(entry, shared)))
        except FormatError as error:
            refused += 1
            sys.stderr.write(f"{arguments.source}: image {out.count + len(waiting)} is left out: {error}\n")
            continue
        if len(waiting) == BATCH:
            write()
    write()
    out.close()
    text = f"{arguments.output}: {out.count} images, {time.monotonic() - began:.1f} s"
    sys.stdout.write(text + (f", {refused} left out\n" if refused else "\n"))
    return FormatError.exit_code if refused else 0


class _Output:
    """The folder that is written. Raises ConfigError when it can't be."""

    def __init__(self, folder: Path, layout: str) -> None:
        self.count = 0
        self._folder = folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._writer: FolderWriter | None = WRITERS[layout](folder) if layout in WRITERS else None
            self._lines = None if self._writer else (folder / "images.jsonl").open("w", encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"{folder} can't be made: {error.strerror}; choose another -o") from error

    def add(self, record: ImageRecord, pixels: NDArray[np.uint8]) -> None:
        """Write the next image, uint8 [height, width, 3]."""
        picture = Image.fromarray(pixels)
        if self._writer is None:
            name = f"{self.count:05d}.png"
            picture.save(self._folder / name)
            if self._lines is not None:
                self._lines.write(json.dumps(_line(name, record), ensure_ascii=False) + "\n")
        else:
            # Names that stay unique when folders of several devices or days are put together.
            name = f"{record.content_id.hex()[:16]}.jpg"
            picture.save(self._writer.images / name, "JPEG", quality=_JPEG_QUALITY, subsampling=0)
            (width, height), (of_width, of_height) = record.size, record.source_size
            boxes = [box.scaled(width / of_width, height / of_height) for box in record.boxes]
            self._writer.add(name, width, height, boxes)
        self.count += 1

    def close(self) -> None:
        """Write what is written once."""
        if self._writer is not None:
            self._writer.close()
        if self._lines is not None:
            self._lines.close()


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
