"""Training input from records against torch's DataLoader over JPEGs: images per second, memory, and training time.

    python -m fogline.benchmarks.loader --data DIR [--width 320] [--frames 16] [--batch 16] [--repeats 5] [--steps 200]
        [--workers 0,4,16] [--codecs siren,jpeg2,avif2] [--archive NAME=FILE]… [--device cuda] [--quick] [--json FILE]

The same frames of every sequence, coded at `--width`, as records of each codec and as JPEGs of that size (quality 75)
in memory, as often as it takes for an epoch of 512. `whole` is every frame at (width, 9/16 width); `views` are random
crops, scales, mirrorings and light at half the width, the training recipe of `common/models`, drawn in the same way for
both. Every input ends as a float32 tensor on the device. Inputs take turns, so that a busy machine hurts all alike;
medians over the repeats are reported, with their spread. `fit` trains the built-in detector for `--steps` on each
input, wall seconds from opening the loader (parsing, measuring and filling a cache included) to the last step, and its
IoU on held-out source frames. `--archive` adds records that `fogline encode` wrote, of any codec. On a GPU the same
command fills the open rows of docs/results.md (`--device cuda --width 640`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor, nn

from fogline.benchmarks.frames import SEQUENCES, spread
from fogline.benchmarks.hardware import describe
from fogline.benchmarks.loader_jpeg import JpegLoader, jpegs
from fogline.common.boxes import Box
from fogline.common.images.archive import ArchiveWriter, read_archive
from fogline.common.images.codec import SourceImage
from fogline.common.images.record import ImageRecord, SharedState
from fogline.common.loader.choice import Cache
from fogline.common.loader.loader import DecodedLoader
from fogline.common.models.augment import Augment
from fogline.common.models.detection import Target, detection_loss, to_target
from fogline.common.models.detector import Detector
from fogline.common.models.training import evaluate
from fogline.fog_node.encoders import build_encoder

SCHEMA = 1
EPOCH = 512  # images; workers start each epoch with empty hands
QUICK: dict[str, dict[str, Any]] = {"siren": {"steps": 20, "object_steps": 20}}
Make = Callable[[int], Any]  # a seed to an input: something to iterate over, again and again


def archive(images: Sequence[SourceImage], codec: str, quick: bool, path: Path) -> Path:
    """The images as records in a file."""
    encoder = build_encoder(codec, QUICK.get(codec, {}) if quick else {})
    with ArchiveWriter(path) as out:
        for start in range(0, len(images), 32):
            some = images[start : start + 32]
            for number, coded in enumerate(encoder.encode(some), start):
                for state in coded.shared:
                    out.add_shared(state)
                height, width = images[number].pixels.shape[:2]
                boxes = tuple(Box(*box) for box in images[number].boxes)
                shared = tuple(state.digest for state in coded.shared)
                identity = number.to_bytes(32, "big")
                out.add(ImageRecord(identity, 0, "", (width, height), (width, height), boxes, coded.layers, shared))
    return path


def held_bytes(value: object, seen: set[int] | None = None) -> int:
    """Bytes of payloads and arrays in prepared images: what stays in memory, Python's own objects left out."""
    seen = set() if seen is None else seen
    if id(value) in seen:
        return 0
    seen.add(id(value))
    if isinstance(value, bytes):
        return len(value)
    if isinstance(value, (np.ndarray, Tensor)):
        return int(value.nbytes)
    if isinstance(value, (tuple, list)):
        return sum(held_bytes(item, seen) for item in value)
    if is_dataclass(value):
        return sum(held_bytes(getattr(value, field.name), seen) for field in fields(value))
    return 0


def rate_of(made: Any, device: torch.device, batch: int) -> float:
    """Images per second over whole epochs, as many as half a second takes."""
    start, images = time.perf_counter(), 0
    while time.perf_counter() - start < 0.5:
        images += batch * sum(1 for _ in made)
        if device.type == "cuda":
            torch.cuda.synchronize()
    return images / (time.perf_counter() - start)


def throughput(inputs: dict[str, Make], batch: int, repeats: int, device: torch.device) -> dict[str, Any]:
    """Images per second of each input at steady state: one epoch before the first is not counted. With memory."""
    made = {name: make(0) for name, make in inputs.items()}
    found: dict[str, list[float]] = {name: [] for name in made}
    memory: dict[str, dict[str, float]] = {}
    for name, loader in made.items():
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
        rate_of(loader, device, batch)
        memory[name] = held(loader)
        if device.type == "cuda":
            memory[name]["device_peak_mb"] = (torch.cuda.max_memory_allocated() - before) / 1e6
    for _ in range(repeats):
        for name, loader in made.items():
            found[name].append(rate_of(loader, device, batch))
    out: dict[str, dict[str, Any]] = {}
    for name, loader in made.items():
        rates = sorted(found[name])
        out[name] = {
            "images_per_s": statistics.median(rates),
            "lowest": rates[0],
            "highest": rates[-1],
            **memory[name],
        }
        if isinstance(loader, DecodedLoader):
            out[name]["cache"] = loader.cache
            out[name]["measured"] = {c.cache: c.images_per_s for c in loader.candidates}
        else:
            loader.close()
    return out


def held(loader: Any) -> dict[str, float]:
    """What an input holds: kB an image compressed and decoded, and the pages of its worker processes alone in MB."""
    if isinstance(loader, DecodedLoader):
        seen: set[int] = set()  # what images share is counted once
        compressed = sum(held_bytes(image, seen) for image in loader.dataset) / len(loader.dataset)
        decoded = (loader.cache_bytes_held + loader.shared_bytes_held) / len(loader.dataset)
        return {"compressed_kb": compressed / 1e3, "decoded_kb": decoded / 1e3, "workers_mb": 0.0}
    workers = [psutil.Process(pid).memory_full_info().uss for pid in loader.worker_pids()]
    return {"compressed_kb": loader.image_bytes / 1e3, "decoded_kb": 0.0, "workers_mb": sum(workers) / 1e6}


def endless(made: Any) -> Iterator[Any]:
    """Batches of one epoch after the other."""
    while True:
        yield from made


def fit(
    make: Make, steps: int, seed: int, held_out: tuple[Tensor, list[Target]], device: torch.device
) -> tuple[float, float]:
    """Seconds and IoU of the built-in detector after so many steps on an input."""
    torch.manual_seed(seed)
    model = Detector().to(device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.02)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps)
    start = time.perf_counter()
    made = make(seed)
    batches = endless(made)
    for _ in range(steps):
        images, targets = next(batches)
        score, box = model(images.contiguous(memory_format=torch.channels_last))
        loss = detection_loss(score, box, targets)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 5.0)
        optimizer.step()
        schedule.step()
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    if not isinstance(made, DecodedLoader):
        made.close()
    return seconds, evaluate(model, *held_out, "iou")


def held_out_of(data: Path, names: Sequence[str], width: int, frames: int) -> tuple[Tensor, list[Target]]:
    """Source frames that lie between those that are trained on."""
    size = (width, round(width * 9 / 16 / 16) * 16)
    images, targets = [], []
    for name in names:
        for image in spread(data, name, 2 * frames + 1, width)[::2][:frames]:
            height = image.pixels.shape[0]
            pixels = torch.tensor(image.pixels).permute(2, 0, 1)[None].float()
            scaled = nn.functional.interpolate(pixels, (size[1], size[0]), mode="bilinear", antialias=True)
            images.append(scaled[0].round().clamp(0, 255).byte())
            targets.append(to_target([Box(*box) for box in image.boxes], width, height))
    return torch.stack(images), targets


def inputs_of(
    archives: dict[str, Path],
    images: Sequence[SourceImage],
    caches: Sequence[Cache | None],
    workers: Sequence[int],
    copies: int,
    *,
    size: tuple[int, int],
    batch: int,
    augment: Augment | None,
    device: torch.device,
) -> dict[str, Make]:
    """Every input by name, to be opened with a seed."""
    made: dict[str, Make] = {}
    files = jpegs(images)
    for count in workers:
        made[f"JPEG, {count} workers"] = partial(
            JpegLoader, images, files, copies, size, batch, augment, device, workers=count
        )
    for name, path in archives.items():
        for cache in caches:
            made[f"{name}, cache {cache or 'measured'}"] = partial(
                _decoded, path, copies, size, batch, augment, device, cache
            )
    return made


def _decoded(
    path: Path,
    copies: int,
    size: tuple[int, int],
    batch: int,
    augment: Augment | None,
    device: torch.device,
    cache: Cache | None,
    seed: int,
) -> DecodedLoader:
    return DecodedLoader(
        repeated(path, copies),
        size=size,
        batch_size=batch,
        shuffle=True,
        drop_last=True,
        augment=augment,
        device=device,
        cache=cache,
        seed=seed,
    )


def repeated(path: Path, copies: int) -> Iterator[SharedState | ImageRecord]:
    """The records of an archive, several times over."""
    for _ in range(copies):
        yield from read_archive(path)


def report(title: str, found: dict[str, Any]) -> None:
    """One table of rates, as ratios to the best JPEG loader."""
    best = max(row["images_per_s"] for name, row in found.items() if name.startswith("JPEG"))
    print(f"\n{title}")
    for name, row in found.items():
        memory = "  ".join(f"{key.replace('_', ' ')} {row[key]:.1f}" for key in row if key[-3:] in ("_mb", "_kb"))
        chosen = f"  -> {row['cache']}" if name.endswith("measured") else ""
        print(f"  {name:<28} {row['images_per_s']:8.0f} images/s  {row['images_per_s'] / best:6.2f}x  {memory}{chosen}")


def measure(options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """All of it."""
    device, names = torch.device(options.device), SEQUENCES[:2] if options.quick else SEQUENCES
    images = [image for name in names for image in spread(options.data, name, options.frames, options.width)]
    archives = {}
    for codec in filter(None, options.codecs.split(",")):
        print(f"encoding {len(images)} frames as {codec} …", flush=True)
        archives[codec] = archive(images, codec, options.quick, folder / codec)
    archives |= {name: Path(path) for name, _, path in (text.partition("=") for text in options.archive)}
    workers = [int(text) for text in options.workers.split(",")]
    caches: list[Cache | None] = ["none", "ram", "disk", None]
    if device.type == "cuda":
        caches.insert(0, "device")
    copies = -(-EPOCH // len(images)) if not options.quick else 1
    whole = (options.width, round(options.width * 9 / 16))
    view = (options.width // 32 * 16, round(options.width * 0.35 / 16) * 16)
    result: dict[str, Any] = {"images": len(images), "whole": {"size": whole}, "views": {"size": view}}
    for title, size, augment in (("whole", whole, None), ("views", view, Augment())):
        if not options.repeats:
            continue
        inputs = inputs_of(
            archives, images, caches, workers, copies, size=size, batch=options.batch, augment=augment, device=device
        )
        found = throughput(inputs, options.batch, options.repeats, device)
        report(f"{title}, {size[0]}x{size[1]}, {device.type}", found)
        result[title]["inputs"] = found
    if options.steps:
        result["fit"] = fits(options, archives, images, view, workers, names)
    return result


def fits(
    options: argparse.Namespace,
    archives: dict[str, Path],
    images: Sequence[SourceImage],
    view: tuple[int, int],
    workers: Sequence[int],
    names: Sequence[str],
) -> dict[str, Any]:
    """Training time and accuracy of each input, the inputs taking turns seed by seed."""
    device = torch.device(options.device)
    held_out = held_out_of(options.data, names, options.width, max(4, options.frames // 2))
    inputs = inputs_of(
        archives,
        images,
        ["none", "device", None] if device.type == "cuda" else ["none", None],
        workers,
        1,
        size=view,
        batch=options.batch,
        augment=Augment(),
        device=device,
    )
    runs: dict[str, list[tuple[float, float]]] = {name: [] for name in inputs}
    for seed in range(options.seeds):
        for name, make in inputs.items():
            runs[name].append(fit(make, options.steps, seed, held_out, device))
    out: dict[str, Any] = {"steps": options.steps, "batch": options.batch, "seeds": options.seeds, "inputs": {}}
    best = min(statistics.median(s for s, _ in found) for name, found in runs.items() if name.startswith("JPEG"))
    print(f"\nfit, {options.steps} steps of {options.batch} views, {device.type}")
    for name, found in runs.items():
        seconds, scores = statistics.median(s for s, _ in found), [score for _, score in found]
        out["inputs"][name] = {"seconds": [s for s, _ in found], "iou": scores}
        print(f"  {name:<28} {best / seconds:6.2f}x the speed  IoU {statistics.mean(scores):.3f}")
    return out


def main() -> None:
    """Parse the command line, measure, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--width", type=int, default=320, help="coded width in pixels")
    parser.add_argument("--frames", type=int, default=16, help="of each sequence")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=5, help="of each rate; 0: no rates")
    parser.add_argument("--steps", type=int, default=200, help="of a training; 0: none")
    parser.add_argument("--seeds", type=int, default=2, help="trainings of each input")
    parser.add_argument("--workers", default="0,4,16", help="worker processes of torch's DataLoader")
    parser.add_argument("--codecs", default="siren,jpeg2,avif2")
    parser.add_argument("--archive", action="append", default=[], metavar="NAME=FILE", help="records of another codec")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few frames, steps and repeats; the figures mean little")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.quick:
        options.frames, options.repeats, options.steps, options.seeds = 8, 2, min(options.steps, 10), 1
    with tempfile.TemporaryDirectory() as folder:
        found = measure(options, Path(folder))
    kept = ("width", "frames", "batch", "repeats", "device", "quick")
    result = {"schema": SCHEMA, "hardware": describe(), **{key: getattr(options, key) for key in kept}, **found}
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
