"""Batched fitting of sine networks against the published method: images per second, and the quality that goes with it.

    python -m fogline.benchmarks.siren_encode --data DIR [--part rate|quality] [--quick] [--json FILE]

`--data` holds the sequences' folders. Background and object networks are measured apart.

Quality: two frames at a width of 160, the reference run to its end (10,000 steps) and judged by its float32 weights,
which is the best that it can give; the batched fit is judged by its coded, 8-bit weights. Backgrounds have at most as
many parameters as the reference's. Objects have the same network and learn the same residual to the same background.
Rate: 24 frames at a width of 320. The reference's is that of timed steps, times 10,000; the batched fit is run whole,
with the settings whose quality was compared (a step sees the same share of the pixels as at 160), and as shipped.
On a CPU, seconds are those of one core (CPU time; the reference runs on one thread), so that they hold on a busy
machine and neither side pays for what threads wait on each other.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.benchmarks.frames import SEQUENCES, spread
from fogline.benchmarks.hardware import describe
from fogline.common.images.codec import Placement, SourceImage
from fogline.common.images.record import LayerKind
from fogline.common.images.siren import SirenCodec, evaluate
from fogline.common.images.siren_payload import Networks
from fogline.fog_node.encoders.siren import LayerSource, SirenEncoder
from fogline.fog_node.encoders.siren_params import SirenParams
from fogline.fog_node.encoders.siren_reference import ReferenceFit

SCHEMA = 1
QUALITY_SEQUENCES = ("OTB_Human7", "VOT15_bag")
REFERENCE_STEPS = 10_000
KINDS = ((LayerKind.BACKGROUND, "background"), (LayerKind.OBJECT, "object"))


def compared(width: int, quick: bool) -> SirenParams:
    """The batched settings whose quality is compared: 7,470 parameters for a background, the reference's 7,479."""
    share = (width / 160) ** 2
    steps = (60, 40) if quick else (6000, 4000)
    return SirenParams(
        steps=steps[0], object_steps=steps[1], depth=3, width=23, columns=3, rows=2, slice=int(512 * share), bits=8
    )


class Bench:
    """One run of the benchmark on one device."""

    def __init__(self, data: Path, device: str, quick: bool) -> None:
        self._data, self._name, self._device, self._quick = data, device, torch.device(device), quick
        self._steps = 60 if quick else REFERENCE_STEPS
        if self._device.type == "cpu":
            torch.set_num_threads(1)

    def quality(self) -> list[dict[str, Any]]:
        """PSNR of both methods on two frames, to the end."""
        return [self._quality_of(name, spread(self._data, name, 1, 160)[0]) for name in QUALITY_SEQUENCES]

    def _quality_of(self, name: str, image: SourceImage) -> dict[str, Any]:
        reference = SirenEncoder(SirenParams(profile="reference"), self._name)
        fast = SirenEncoder(compared(160, self._quick), self._name)
        original = image.pixels.astype(np.float32) / np.float32(255)
        frame, ours = reference.frame_source(0, image), fast.frame_source(0, image)
        start = self._now()
        background = np.clip((self._reference_values(frame) + 1) / 2, 0, 1).astype(np.float32)
        middle = self._now()
        (coded,) = fast.fit([ours], LayerKind.BACKGROUND)
        end = self._now()
        out: dict[str, Any] = {
            "sequence": name,
            "background": {
                "reference_db": _psnr(background, original),
                "batched_db": _psnr(self._values(coded, ours, LayerKind.BACKGROUND), original),
                "reference_parameters": frame.shape.parameters,
                "batched_parameters": ours.shape.parameters * ours.grid.networks,
                "reference_s": middle - start,
                "batched_s": end - middle,
            },
        }
        (target,) = reference.object_sources(0, image, background)
        x, y, w, h = target.region
        under, crop = background[y : y + h, x : x + w], original[y : y + h, x : x + w]
        start = self._now()
        by_reference = self._reference_values(target)
        middle = self._now()
        (coded,) = fast.fit([target], LayerKind.OBJECT)
        end = self._now()
        by_batch = self._values(coded, target, LayerKind.OBJECT)
        out["object"] = {
            "under_db": _psnr(under, crop),
            "reference_db": _psnr(np.clip(under + target.scale * np.clip(by_reference, -1, 1), 0, 1), crop),
            "batched_db": _psnr(np.clip(under + target.scale * by_batch, 0, 1), crop),
            "reference_parameters": target.shape.parameters,
            "batched_parameters": target.shape.parameters,
            "reference_s": middle - start,
            "batched_s": end - middle,
        }
        return out

    def _reference_values(self, source: LayerSource) -> NDArray[np.float32]:
        """What the reference's float32 weights give for a layer: (h, w, 3)."""
        (signal,) = source.signals
        fit = ReferenceFit(signal, self._steps, 0, self._device)
        for _ in range(self._steps):
            fit.step()
        layers = [(weights[None], biases[None]) for weights, biases in fit.folded()]
        xs, ys = (torch.from_numpy(axis[None]).to(self._device) for axis in (signal.xs, signal.ys))
        return evaluate(layers, xs, ys)[0].permute(1, 2, 0).cpu().numpy()

    def _values(self, networks: Networks, source: LayerSource, kind: LayerKind) -> NDArray[np.float32]:
        place = Placement(0, 0, *source.region[2:], (0.0, 0.0, 1.0, 1.0))
        (image,) = SirenCodec().render([networks], [kind], [place], self._device)
        return image.permute(1, 2, 0).cpu().numpy()

    def rate(self) -> dict[str, Any]:
        """Seconds per image of both methods over 24 frames."""
        images = [i for name in SEQUENCES for i in spread(self._data, name, 1 if self._quick else 6, 320)]
        reference = SirenEncoder(SirenParams(profile="reference"), self._name)
        frames = [reference.frame_source(i, image) for i, image in enumerate(images)]
        # Against a flat grey: a residual is a residual, and only the time is measured here.
        grey = [np.full(image.pixels.shape, 0.5, np.float32) for image in images]
        objects = [o for i, image in enumerate(images) for o in reference.object_sources(i, image, grey[i])]
        timed = 2 if self._quick else 100
        out: dict[str, Any] = {"frames": len(images), "objects": len(objects), "timed_steps": timed}
        for (_, name), sources in zip(KINDS, (frames, objects), strict=True):
            out[name] = {"reference": 1 / (self._seconds_per_step(sources, timed) * REFERENCE_STEPS)}
        settings = {"batched": compared(320, self._quick), "shipped": SirenParams(steps=20 if self._quick else None)}
        for label, params in settings.items():
            encoder = SirenEncoder(params, self._name)
            ours = [encoder.frame_source(i, image) for i, image in enumerate(images)]
            same = objects
            if label == "shipped":
                same = [o for i, image in enumerate(images) for o in encoder.object_sources(i, image, grey[i])]
            for (kind, name), sources in zip(KINDS, (ours, same), strict=True):
                start = self._now()
                encoder.fit(sources, kind)
                out[name][label] = len(images) / (self._now() - start)
        for _, name in KINDS:
            out[name]["ratio"] = out[name]["batched"] / out[name]["reference"]
            out[name]["shipped_ratio"] = out[name]["shipped"] / out[name]["reference"]
        return out

    def _seconds_per_step(self, sources: list[LayerSource], timed: int) -> float:
        """Mean over the sources, the first steps of each left out."""
        total = 0.0
        for source in sources:
            fit = ReferenceFit(source.signals[0], REFERENCE_STEPS, 0, self._device)
            fit.step()
            start = self._now()
            for _ in range(timed):
                fit.step()
            total += self._now() - start
        return total / timed / len(sources)

    def _now(self) -> float:
        """Seconds of one core on a CPU, of the clock on an accelerator when it has done its work."""
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def _psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


def _print(result: dict[str, Any]) -> None:
    per = " of one core" if result["device"] == "cpu" else ""
    for _, name in KINDS:
        for frame in result.get("quality", ()):
            row = frame[name]
            print(
                f"{name:<10}  {frame['sequence']:<13}  reference {row['reference_db']:.2f} dB"
                f"  batched {row['batched_db']:.2f} dB  ({row['reference_s']:.0f} s, {row['batched_s']:.1f} s)"
            )
        if "rate" in result:
            row = result["rate"][name]
            print(
                f"{name:<10}  images/s{per}: reference {row['reference']:.5f}  batched {row['batched']:.3f} "
                f"({row['ratio']:.0f}x)  as shipped {row['shipped']:.2f} ({row['shipped_ratio']:.0f}x)"
            )


def main() -> None:
    """Parse the command line, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--part", choices=("all", "quality", "rate"), default="all")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs, its figures mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    bench = Bench(options.data, options.device, options.quick)
    result: dict[str, Any] = {"schema": SCHEMA, "hardware": describe()}
    result |= {"device": options.device, "quick": options.quick}
    if options.part != "rate":
        result["quality"] = bench.quality()
    if options.part != "quality":
        result["rate"] = bench.rate()
    _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
