"""Decoding a batch of sine-network records against Pillow's JPEG decode of the same frames.

    python -m fogline.benchmarks.decode --data DIR [--batch 32] [--width 320] [--repeats 15] [--quick] [--json FILE]

Both start from what a device holds in memory (entropy-decoded weights; JPEG bytes of quality 75) and end with a float32
tensor (batch, 3, height, width) in [0, 1] on the device. Repeats alternate between the two, so that a busy machine
hurts both alike; medians are reported. `arrival` is the entropy decoding, once for each record. A GPU is measured too
where there is one; JPEGs are decoded on the CPU and copied there.
"""

from __future__ import annotations

import argparse
import io
import json
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from fogline.benchmarks.frames import SEQUENCES, spread
from fogline.benchmarks.hardware import describe
from fogline.common.images.codec import SourceImage
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import encode_jpeg
from fogline.common.images.record import ImageRecord
from fogline.fog_node.encoders import build_encoder

SCHEMA = 1


def records_of(images: Sequence[SourceImage], quick: bool) -> list[ImageRecord]:
    """The images as `siren` records."""
    params = {"steps": 20, "object_steps": 20} if quick else {}
    out = []
    for number, coded in enumerate(build_encoder("siren", params).encode(images)):
        height, width = images[number].pixels.shape[:2]
        identity = number.to_bytes(32, "big")
        out.append(ImageRecord(identity, 0, "", (width, height), (width, height), (), coded.layers, ()))
    return out


def from_jpeg(files: Sequence[bytes], size: tuple[int, int], device: torch.device) -> torch.Tensor:
    """The batch by Pillow, one image after the other."""
    pixels = np.empty((len(files), size[1], size[0], 3), np.uint8)
    for row, data in enumerate(files):
        with Image.open(io.BytesIO(data)) as image:
            pixels[row] = np.asarray(image)
    return torch.from_numpy(pixels).to(device).permute(0, 3, 1, 2).to(torch.float32).div_(255)


def medians(calls: dict[str, Callable[[], object]], repeats: int, device: torch.device) -> dict[str, float]:
    """Median seconds of each call, the calls taking turns; the first round is not counted."""
    taken: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            if device.type == "cuda":
                torch.cuda.synchronize()
            taken[name].append(time.perf_counter() - start)
    return {name: statistics.median(times[1:]) for name, times in taken.items()}


def measure(images: Sequence[SourceImage], batch: int, repeats: int, quick: bool) -> dict[str, Any]:
    """Images per second of both, on every device there is. All images have one size."""
    height, width = images[0].pixels.shape[:2]
    records = records_of(images, quick)
    files = [encode_jpeg(image.pixels, 75) for image in images]
    out: dict[str, Any] = {
        "size": [width, height],
        "record_bytes": statistics.mean(sum(len(layer.payload) for layer in r.layers) for r in records),
        "jpeg_bytes": statistics.mean(len(data) for data in files),
    }
    pick = [i % len(images) for i in range(batch)]
    for name in ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]:
        device, decoder = torch.device(name), BatchDecoder(name)
        prepared = [decoder.prepare(records[i], {}) for i in pick]
        chosen = [files[i] for i in pick]
        seconds = medians(
            {
                "siren": lambda: decoder.decode(prepared),  # noqa: B023
                "jpeg": lambda: from_jpeg(chosen, (width, height), device),  # noqa: B023
                "arrival": lambda: [decoder.prepare(records[i], {}) for i in pick],  # noqa: B023
            },
            repeats,
            device,
        )
        rates = {f"{key}_images_per_s": batch / value for key, value in seconds.items()}
        out[name] = {**rates, "ratio": seconds["jpeg"] / seconds["siren"]}
    return out


def main() -> None:
    """Parse the command line, measure every sequence, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--width", type=int, default=320)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--quick", action="store_true", help="few steps and repeats; the record's bytes mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    repeats = 3 if options.quick else options.repeats
    result: dict[str, Any] = {"schema": SCHEMA, "hardware": describe(), "batch": options.batch, "sequences": {}}
    for name in SEQUENCES:
        images = spread(options.data, name, 4, options.width)
        result["sequences"][name] = found = measure(images, options.batch, repeats, options.quick)
        for device in ("cpu", "cuda"):
            if row := found.get(device):
                print(
                    f"{name:<13}  {device:<4}  siren {row['siren_images_per_s']:8.0f} images/s  "
                    f"JPEG {row['jpeg_images_per_s']:6.0f}  ratio {row['ratio']:.2f}  "
                    f"arrival {row['arrival_images_per_s']:6.0f}  "
                    f"{found['record_bytes']:.0f} B against {found['jpeg_bytes']:.0f} B"
                )
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
