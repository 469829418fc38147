"""Frames of the tracking sequences, spread evenly and at the coded size."""

from __future__ import annotations

from pathlib import Path

from fogline.common.data.load import load_sequence
from fogline.common.images.codec import SourceImage
from fogline.common.images.jpeg import decode_jpeg, resize

SEQUENCES = ("OTB_Crossing", "OTB_Human7", "VOT15_bag", "UAV123_boat1")


def spread(data: Path, sequence: str, count: int, width: int) -> list[SourceImage]:
    """`count` frames of a sequence in folder `data`, none of them first or last, with their boxes."""
    frames = load_sequence(data / sequence).frames
    out = []
    for i in range(1, count + 1):
        frame = frames[round(i * (len(frames) - 1) / (count + 1))]
        pixels = decode_jpeg(frame.path.read_bytes())
        height = round(pixels.shape[0] * width / pixels.shape[1] / 2) * 2
        boxes = [box.scaled(width / pixels.shape[1], height / pixels.shape[0]) for box in frame.boxes]
        out.append(SourceImage(resize(pixels, width, height), tuple((b.x, b.y, b.w, b.h) for b in boxes)))
    return out
