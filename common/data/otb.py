"""OTB folders: `img/*.jpg` and `groundtruth_rect.txt`, one 1-based `x,y,w,h` for each frame."""

from __future__ import annotations

import re
from pathlib import Path

from fogline.common.boxes import Box, check_boxes
from fogline.common.data.files import jpeg_size, list_images, read_text
from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.errors import InputError

IMAGES = "img"
BOXES = "groundtruth_rect.txt"


def is_otb(folder: Path) -> bool:
    """Whether a folder is laid out in this way."""
    return (folder / IMAGES).is_dir()


def load_otb(folder: Path) -> AnnotatedSequence:
    """Read an OTB folder; an empty line is a frame without a box.

    A frame whose line or JPEG is bad goes to `refused`. Raises InputError when lines and frames differ in number,
    since then every later box would be shifted.
    """
    images = list_images(folder / IMAGES)
    file = folder / BOXES
    lines = [line.strip() for line in read_text(file).removesuffix("\n").split("\n")]
    while len(lines) > len(images) and not lines[-1]:  # blank lines after the last frame say nothing
        lines.pop()
    if len(lines) != len(images):
        what = "is missing" if len(lines) < len(images) else "is extra"
        raise InputError(
            f"{file}: {len(lines)} lines for {len(images)} frames in {folder / IMAGES}: an annotation line {what}; "
            "write one line for each frame (an empty line for a frame without a box)",
            number=303,
        )
    frames, refused = [], []
    for index, (path, line) in enumerate(zip(images, lines, strict=True)):
        where = f"{file}:{index + 1}"
        try:
            width, height = jpeg_size(path)
            boxes = check_boxes(_parse(line, where), width, height, where=where)
        except InputError as error:
            refused.append(error)
            continue
        frames.append(Frame(path, boxes, index, width, height))
    return AnnotatedSequence(folder.resolve().name, tuple(frames), tuple(refused))


def _parse(line: str, where: str) -> tuple[Box, ...]:
    if not line:
        return ()
    try:
        x, y, w, h = (float(value) for value in re.split(r"\s*[,;\t ]\s*", line))
    except ValueError as error:
        raise InputError(f"{where}: {line[:80]!r} is not four numbers x,y,w,h; fix the line") from error
    return (Box(x - 1, y - 1, w, h),)
