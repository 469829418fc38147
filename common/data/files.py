"""Reading the files of a data folder: caps before reading, clear errors, nothing decoded."""

from __future__ import annotations

import re
from pathlib import Path

from fogline.common.errors import InputError

MAX_ANNOTATION_BYTES = 16 << 20
MAX_JPEG_HEADER_BYTES = 1 << 20  # EXIF and ICC may come before the size; 64 KiB each at most
IMAGE_SUFFIXES = (".jpg", ".jpeg")
# Start-of-frame markers, which carry the size: 0xC0 to 0xCF but for the Huffman, reserved and arithmetic tables.
_SIZE_MARKERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}


def natural_key(path: Path) -> tuple[list[tuple[int, int, str]], str]:
    """Sort key under which `2.jpg` comes before `10.jpg`."""
    parts = re.findall(r"(\d+)|(\D+)", path.name)
    return [(0, int(digits), "") if digits else (1, 0, text) for digits, text in parts], path.name


def list_images(folder: Path) -> list[Path]:
    """The JPEG files of a folder in natural order. Raises InputError where there is none."""
    found = [p for p in folder.iterdir() if p.suffix.lower() in IMAGE_SUFFIXES and not p.name.startswith(".")]
    if not found:
        raise InputError(f"{folder}: no {' or '.join(IMAGE_SUFFIXES)} file; put the frames there")
    return sorted(found, key=natural_key)


def read_bytes(path: Path, most: int) -> bytes:
    """A file of annotations. Raises InputError when it can't be read or has more than `most` bytes."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from error
    if len(data) > most:
        raise InputError(f"{path}: larger than {most} bytes, which no annotation file is; split it")
    return data


def read_text(path: Path) -> str:
    """A UTF-8 annotation file (a byte-order mark is dropped). Raises InputError when missing, too large or not text."""
    data = read_bytes(path, MAX_ANNOTATION_BYTES)
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: byte {error.start} is not UTF-8 text; save the annotations as text") from error


def jpeg_size(path: Path) -> tuple[int, int]:
    """Width and height from a JPEG's header. Whether the rest decodes is for who decodes it to say.

    Raises InputError for an empty, truncated or other file.
    """
    try:
        with path.open("rb") as file:
            data = file.read(MAX_JPEG_HEADER_BYTES)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path and its permissions") from error
    if not data:
        raise InputError(f"{path}: the file is empty; capture or copy it again", number=304)
    if data[:2] != b"\xff\xd8":
        raise InputError(
            f"{path}: not a JPEG (it starts with {data[:4].hex(' ')}); convert it or remove it", number=304
        )
    at = 2
    while at + 9 <= len(data) and data[at] == 0xFF:
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _SIZE_MARKERS:
            height, width = int.from_bytes(data[at + 5 : at + 7], "big"), int.from_bytes(data[at + 7 : at + 9], "big")
            if width > 0 and height > 0:
                return width, height
            break
        at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    raise InputError(
        f"{path}: a truncated or damaged JPEG (no size in its header); capture or copy it again", number=304
    )
