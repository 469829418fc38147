"""Would a small network that refines decoded `latent` frames pay for its bytes? A probe; nothing of it is in the codec.

    python -m fogline.benchmarks.latent_filter --data DIR [--sequences a,b] [--frames 120] [--steps 25000] [--json FILE]

The first frames of each sequence at its native size up to a width of 640, coded by `latent` at background qualities 30
and 40. A convolutional filter (space to depth, three layers of 3x3 with 16 channels, depth to space, added to its
input; 5,800 weights, 1,440 multiplications a pixel) is trained on the first half's decoded and original frames at
quality 30, outside the objects' boxes, its weights rounded to 8 bits, and applied to the second half. References are
not filtered, so nothing drifts. The gain in background PSNR is turned into bytes by the codec's own slope of rate
between the two qualities; from that go the filter's bytes (entropy of its weights), shared by 120 or 1,000 frames.
`own` is a filter for each camera. `others` is trained on the other sequences' first halves: it could come with the
program and costs no bytes.

Output, schema 1: `sequences.<name>` has `bytes` (an image at quality 30, shared state included), `background_db`,
`percent_per_db`, and for `own` and `others` `gain_db`, `filter_bytes` and `saved.<frames>`, shares of the bytes;
`median` has the latter over the sequences.
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from fogline.benchmarks.hardware import describe
from fogline.common.data import load_sequence
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.regions import pixel_region
from fogline.compare.frames import Folder, load
from fogline.fog_node.encoders import build_encoder

SCHEMA = 1
SEQUENCES = ("OTB_Car1", "OTB_Human7", "UAV123_boat1", "VOT15_bag")
WIDTH, QUALITY, FINER = 640, 30, 40
CHANNELS, PATCH, BATCH, RATE = 16, 64, 12, 2e-3
SHARED_BY = (120, 1000)


class Filter(nn.Module):
    """What is added to a decoded frame (B, 3, H, W), H and W even; values 0 to 1."""

    def __init__(self) -> None:
        super().__init__()
        sizes = (12, CHANNELS, CHANNELS, 12)
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(sizes))
        for parameter in self.layers[-1].parameters():
            nn.init.zeros_(parameter)

    def forward(self, frames: Tensor) -> Tensor:
        """The refined frames."""
        values = functional.pixel_unshuffle(frames, 2)
        for number, layer in enumerate(self.layers):
            values = layer(functional.pad(values, (1, 1, 1, 1), mode="replicate"))
            if number < len(self.layers) - 1:
                values = functional.relu(values)
        return frames + functional.pixel_shuffle(values, 2) / 10

    def quantise(self) -> float:
        """Round the weights to 8 bits, and return the bytes that an entropy coder would need."""
        bits = 0.0
        for parameter in self.parameters():
            step = (parameter.data.abs().max() / 127).clamp(min=1e-9)
            symbols = (parameter.data / step).round()
            parameter.data = symbols * step
            counts = np.unique(symbols.numpy(), return_counts=True)[1]
            bits += 32 - float((counts * np.log2(counts / counts.sum())).sum())
        return bits / 8


@dataclass(frozen=True)
class Pairs:
    """Decoded and original frames uint8 (N, 3, H, W), and where the background is (N, H, W)."""

    decoded: Tensor
    original: Tensor
    background: Tensor

    def part(self, some: slice) -> Pairs:
        """Some of the frames."""
        return Pairs(self.decoded[some], self.original[some], self.background[some])


def code(folder: Folder, quality: int) -> tuple[float, Tensor]:
    """Bytes of an image, shared state included, and the decoded frames."""
    encoder, decoder = build_encoder("latent", {"background_quality": quality}), BatchDecoder()
    shared: dict[bytes, bytes] = {}
    frames, total = [], 0
    for captured in folder.batches(8):
        for one, coded in zip(captured, encoder.encode([c.source for c in captured]), strict=True):
            shared |= {state.digest: state.data for state in coded.shared}
            total += sum(len(layer.payload) for layer in coded.layers)
            shown = decoder.decode([decoder.prepare(one.record(coded), shared)])[0]
            frames.append((shown * 255).round().to(torch.uint8))
    total += sum(len(data) for data in shared.values())
    return total / len(frames), torch.stack(frames)


def pairs_of(folder: Folder, decoded: Tensor) -> Pairs:
    """The decoded frames beside what they were made from."""
    original = torch.stack([torch.tensor(c.source.pixels).permute(2, 0, 1) for c in folder.frames])
    background = torch.ones((len(original), *original.shape[2:]), dtype=torch.bool)
    for number, captured in enumerate(folder.frames):
        for box in captured.source.boxes:
            x, y, w, h = pixel_region(box, original.shape[3], original.shape[2])
            background[number, y : y + h, x : x + w] = False
    return Pairs(decoded, original, background)


def train(sets: Sequence[Pairs], steps: int, seed: int = 0) -> Filter:
    """A filter for some cameras, by mean squared error over random patches."""
    torch.manual_seed(seed)
    random, made = np.random.default_rng(seed), Filter()
    optimizer = torch.optim.Adam(made.parameters(), RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps, RATE / 100)
    for _ in range(steps):
        patches = []
        for _ in range(BATCH):
            pairs = sets[int(random.integers(len(sets)))]
            count, _, height, width = pairs.decoded.shape
            n, y, x = (int(random.integers(end)) for end in (count, height - PATCH + 1, width - PATCH + 1))
            rows, columns = slice(y, y + PATCH), slice(x, x + PATCH)
            mask = pairs.background[n, rows, columns].expand(3, PATCH, PATCH)
            shown, wanted = (frames[n, :, rows, columns] for frames in (pairs.decoded, pairs.original))
            patches.append(torch.stack([shown, wanted, mask]))
        decoded, original, background = torch.stack(patches, dim=1).float()
        error = (made(decoded / 255) - original / 255) * background
        optimizer.zero_grad()
        torch.autograd.backward(1e3 * error.square().mean())
        optimizer.step()
        schedule.step()
    return made


def gain(made: Filter, pairs: Pairs) -> float:
    """What the filter adds to the background's PSNR in dB, mean over the frames."""
    found = []
    with torch.no_grad():
        for decoded, original, background in zip(pairs.decoded, pairs.original, pairs.background, strict=True):
            height, width = decoded.shape[1:]
            grown = functional.pad(decoded[None].float() / 255, (0, width % 2, 0, height % 2), mode="replicate")
            refined = (made(grown)[0, :, :height, :width].clamp(0, 1) * 255).round()
            found.append(psnr(refined, original, background) - psnr(decoded, original, background))
    return statistics.fmean(found)


def psnr(shown: Tensor, original: Tensor, where: Tensor) -> float:
    """In dB, over the pixels in `where`."""
    return 10 * math.log10(255**2 / float((shown.float() - original.float()).square().mean(0)[where].mean()))


def mean_psnr(pairs: Pairs) -> float:
    """Of the background, in dB, mean over the frames."""
    return statistics.fmean(map(psnr, pairs.decoded, pairs.original, pairs.background))


def row(made: Filter, held_out: Pairs, size: float, slope: float, *, sent: bool) -> dict[str, Any]:
    """What a filter is worth on frames that it was not trained on. `slope`: of the logarithm of bytes by dB."""
    filter_bytes = made.quantise()
    gained = gain(made, held_out)
    unfiltered = size * math.exp(slope * gained)  # what as good a background costs without
    saved = {str(n): 1 - (size + (filter_bytes / n if sent else 0)) / unfiltered for n in SHARED_BY}
    return {"gain_db": gained, "filter_bytes": filter_bytes if sent else 0, "saved": saved}


def measure(data: Path, names: Sequence[str], frames: int, steps: int) -> dict[str, Any]:
    """All sequences."""
    coded: dict[str, dict[str, Any]] = {}
    pairs: dict[str, Pairs] = {}
    slopes: dict[str, float] = {}
    for name in names:
        folder = load(load_sequence(data / name), data / name, WIDTH, frames, print)
        sizes, quality = {}, {}
        for setting in (QUALITY, FINER):
            sizes[setting], decoded = code(folder, setting)
            found = pairs_of(folder, decoded)
            quality[setting] = mean_psnr(found)
            if setting == QUALITY:
                pairs[name] = found
        slopes[name] = math.log(sizes[FINER] / sizes[QUALITY]) / (quality[FINER] - quality[QUALITY])
        coded[name] = {
            "frames": len(folder.frames),
            "bytes": sizes[QUALITY],
            "background_db": quality[QUALITY],
            "percent_per_db": 100 * math.expm1(slopes[name]),
            "curve": [{"quality": q, "bytes": sizes[q], "background_db": quality[q]} for q in sizes],
        }
        print(f"{name}: {sizes[QUALITY]:.0f} bytes, {quality[QUALITY]:.2f} dB", flush=True)
    halves = {
        name: (p.part(slice(len(p.decoded) // 2)), p.part(slice(len(p.decoded) // 2, None)))
        for name, p in pairs.items()
    }
    for name in names:
        size, (seen, held_out) = coded[name]["bytes"], halves[name]
        coded[name]["own"] = row(train([seen], steps), held_out, size, slopes[name], sent=True)
        others = [halves[other][0] for other in names if other != name]
        if others:
            coded[name]["others"] = row(train(others, steps), held_out, size, slopes[name], sent=False)
        for kind in ("own", "others"):
            if kind in coded[name]:
                found = coded[name][kind]
                saved = ", ".join(f"{100 * share:+.1f} % at {n} frames" for n, share in found["saved"].items())
                print(
                    f"{name}, {kind}: {found['gain_db']:+.2f} dB, {found['filter_bytes']:.0f} bytes, {saved}",
                    flush=True,
                )
    median = {
        kind: {n: statistics.median(coded[name][kind]["saved"][n] for name in names) for n in map(str, SHARED_BY)}
        for kind in ("own", "others")
        if all(kind in coded[name] for name in names)
    }
    return {"sequences": coded, "median": median}


def main() -> None:
    """Parse the command line, measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--sequences", default=",".join(SEQUENCES))
    parser.add_argument("--frames", type=int, default=120, help="of each sequence")
    parser.add_argument("--steps", type=int, default=25000, help="of a training")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    found = measure(options.data, options.sequences.split(","), options.frames, options.steps)
    print(json.dumps(found["median"], indent=1))
    if options.json:
        kept = {"frames": options.frames, "steps": options.steps}
        result = {"schema": SCHEMA, "benchmark": "latent_filter", "hardware": describe(), **kept, **found}
        options.json.write_text(json.dumps(result, indent=1, allow_nan=False) + "\n")


if __name__ == "__main__":
    main()
