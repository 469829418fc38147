"""How fast `latent` encodes on a CPU once a camera has its reference picture.

    python -m fogline.benchmarks.latent_encode --data DIR [--threads 2] [--frames N] [--repeats N] [--json FILE]

The first frames of each tracking sequence, at native size up to a width of 640, in batches as the fog node makes them.
The first batch is not timed; all that follow are, with the references that come due in them. Every repeat starts anew,
with the same frames. Asked: 5 images/s at 640x360 on two cores, better 20.

Output, schema 1: `sequences[]` has `sequence`, `size`, `images` (timed), `references` (made in it), `record_bytes`
(mean of payloads), `images_per_s` (median over the repeats), `repeats` (each one's), `cpu_s_per_image`, `cores_busy`
(with this work) and `cores_taken` (by all else on the machine): a rate is that of a free machine only where the last is
near zero. `targets.latent_encode_640x360` is the slowest sequence of that size.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from fogline.benchmarks.frames import at
from fogline.benchmarks.hardware import describe
from fogline.common.data.load import load_sequence
from fogline.common.images.codec import EncodedImage, SourceImage
from fogline.fog_node.encoders import build_encoder

SCHEMA = 1
SEQUENCES = ("OTB_Car1", "OTB_Crossing", "OTB_Human7", "UAV123_boat1", "VOT15_bag")
WIDTH, BATCH = 640, 32
ASKED, MUST, AIM = (640, 360), 5.0, 20.0


def main() -> None:
    """Parse the command line, measure, print a table, write JSON after every sequence."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--sequences", default=",".join(SEQUENCES))
    parser.add_argument("--frames", type=int, default=3 * BATCH, help="of each sequence; the first 32 are not timed")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.frames <= BATCH or options.repeats < 1:
        parser.error(f"--frames {options.frames} --repeats {options.repeats}: more than {BATCH}, and 1 or more")
    torch.set_num_threads(options.threads)
    result: dict[str, Any] = {"schema": SCHEMA, "benchmark": "latent_encode", "hardware": describe()}
    result |= {"threads": options.threads, "batch": BATCH, "sequences": []}
    print("| sequence | size | images/s | by repeat | CPU s an image | cores busy | taken by others | references |")
    print("|---|---|---|---|---|---|---|---|")
    for name in options.sequences.split(","):
        last = len(load_sequence(options.data / name).frames)
        images = at(options.data, name, list(range(min(last, options.frames))), WIDTH)
        row = {"sequence": name} | measure(images, options.repeats)
        result["sequences"].append(row)
        result["targets"] = {"latent_encode_640x360": target(result["sequences"])}
        _print(row)
        if options.json:
            options.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")
    found = result["targets"]["latent_encode_640x360"]
    value = "not measured" if found["value"] is None else f"{found['value']:.1f} images/s"
    print(f"at 640x360: {value}, must {MUST:g}, aim {AIM:g}")


def measure(images: Sequence[SourceImage], repeats: int) -> dict[str, Any]:
    """Encode a camera's frames as often as said; the first batch of each time is not timed."""
    runs = [_run(images) for _ in range(repeats)]
    height, width = images[0].pixels.shape[:2]
    first = runs[0]
    rates = [run.images / run.wall_s for run in runs]
    return {
        "size": (width, height),
        "images": first.images,
        "references": first.references,
        "record_bytes": first.record_bytes,
        "images_per_s": statistics.median(rates),
        "repeats": rates,
        "cpu_s_per_image": statistics.median(run.cpu_s / run.images for run in runs),
        "cores_busy": statistics.median(run.cpu_s / run.wall_s for run in runs),
        "cores_taken": statistics.median(run.taken_s / run.wall_s for run in runs),
    }


def target(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The slowest rate at the size that is asked about."""
    value = min((row["images_per_s"] for row in rows if tuple(row["size"]) == ASKED), default=None)
    return {
        "value": value,
        "must": MUST,
        "met": value is not None and value >= MUST,
        "aim": AIM,
        "aim_met": value is not None and value >= AIM,
    }


@dataclass(frozen=True)
class _Run:
    images: int
    references: int
    record_bytes: float
    wall_s: float
    cpu_s: float  # of this process
    taken_s: float  # core seconds of all others


def _run(images: Sequence[SourceImage]) -> _Run:
    encoder = build_encoder("latent", {}, "cpu")
    known = {state.digest for image in encoder.encode(images[:BATCH]) for state in image.shared}
    encoded: list[EncodedImage] = []
    wall, own, whole = time.perf_counter(), time.process_time(), _busy()
    for first in range(BATCH, len(images), BATCH):
        encoded += encoder.encode(images[first : first + BATCH])
    wall, own, whole = time.perf_counter() - wall, time.process_time() - own, _busy() - whole
    used = {state.digest for image in encoded for state in image.shared}
    size = statistics.fmean(sum(len(layer.payload) for layer in image.layers) for image in encoded)
    return _Run(len(encoded), len(used - known), size, wall, own, max(0.0, whole - own))


def _busy() -> float:
    """Seconds that all cores together have worked since the machine started."""
    times = psutil.cpu_times()
    return float(sum(times) - times.idle - getattr(times, "iowait", 0.0))


def _print(row: dict[str, Any]) -> None:
    size, repeats = "x".join(map(str, row["size"])), ", ".join(f"{rate:.1f}" for rate in row["repeats"])
    print(
        f"| {row['sequence']} | {size} | {row['images_per_s']:.1f} | {repeats} | {row['cpu_s_per_image']:.3f} | "
        f"{row['cores_busy']:.2f} | {row['cores_taken']:.2f} | {row['references']} |",
        flush=True,
    )


if __name__ == "__main__":
    main()
