"""Small real inputs for the edge agent's tests."""

from __future__ import annotations

import hashlib
import io
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from PIL import Image

from fogline.common.boxes import Box
from fogline.common.images.record import ImageRecord, Layer, LayerKind


def jpeg(seed: int, size: tuple[int, int] = (64, 48)) -> bytes:
    """A small valid JPEG, different for every seed."""
    pixels = np.random.default_rng(seed).integers(90, 160, (size[1], size[0], 3), np.uint8)
    image = Image.fromarray(pixels)
    image.paste((seed % 256, seed // 256 % 256, 77), (8, 8, 24, 24))
    out = io.BytesIO()
    image.save(out, "JPEG", quality=80, comment=f"frame {seed}".encode())
    return out.getvalue()


def otb_folder(path: Path, count: int, first: int = 0) -> Path:
    """An OTB folder of `count` frames with one box each."""
    (path / "img").mkdir(parents=True)
    lines = []
    for index in range(count):
        (path / "img" / f"{index + 1:04d}.jpg").write_bytes(jpeg(first + index))
        lines.append("9,9,16,16")
    (path / "groundtruth_rect.txt").write_text("\n".join(lines) + "\n")
    return path


def record(seed: int, payload: int = 100, shared: tuple[bytes, ...] = ()) -> ImageRecord:
    """A record whose content id depends on `seed` only."""
    background = Layer(LayerKind.BACKGROUND, 1, 1, (0, 0, 64, 48), 1.0, bytes(payload))
    return ImageRecord(
        content_id=hashlib.sha256(b"image %d" % seed).digest(),
        capture_time_us=1_700_000_000_000_000 + seed,
        camera="cam",
        source_size=(64, 48),
        size=(64, 48),
        boxes=(Box(8, 8, 16, 16),),
        layers=(background,),
        shared=shared,
    )


def until(condition: Callable[[], object], seconds: float = 20.0, what: str = "condition") -> None:
    """Wait for a condition with a deadline."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            raise AssertionError(f"{what} did not come true within {seconds} s")
        time.sleep(0.01)
