"""Frames of the tracking sequences, spread evenly and at the coded size."""

from __future__ import annotations

from pathlib import Path

from fogline.common.data.load import load_sequence
from fogline.common.images.codec import SourceImage
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.sizes import coded_size

SEQUENCES = ("OTB_Crossing", "OTB_Human7", "VOT15_bag", "UAV123_boat1")


def spread(data: Path, sequence: str, count: int, width: int) -> list[SourceImage]:
    """`count` frames of a sequence in folder `data`, none of them first or last, with their boxes."""
    last = len(load_sequence(data / sequence).frames) - 1
    return at(data, sequence, [round(i * last / (count + 1)) for i in range(1, count + 1)], width)


def at(data: Path, sequence: str, numbers: list[int], width: int) -> list[SourceImage]:
    """The frames of these numbers, coded as a fog node codes them: at most `width` wide, never enlarged."""
    frames = load_sequence(data / sequence).frames
    out = []
    for number in numbers:
        pixels = decode_jpeg(frames[number].path.read_bytes())
        wide, high = coded_size(pixels.shape[1], pixels.shape[0], width)
        boxes = [box.scaled(wide / pixels.shape[1], high / pixels.shape[0]) for box in frames[number].boxes]
        out.append(SourceImage(resize(pixels, wide, high), tuple((b.x, b.y, b.w, b.h) for b in boxes), sequence))
    return out
