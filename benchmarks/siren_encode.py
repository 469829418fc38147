"""The batched fit of sine networks against the published one, at its quality: images per second, and bytes.

    python -m fogline.benchmarks.siren_encode --data DIR [--reference DIR] [--images N] [--quick] [--json FILE]

The middle frame of each sequence, at its native size up to 640 wide: a background and its objects. The reference
(`profile: reference`) is the paper's: one network at a time, all pixels in every step, 10,000 steps, float32 weights.

Rate: the reference's by 100 timed steps times 10,000, for background and object; the batched fit is run whole.
On a CPU, seconds are those of one core (CPU time, one thread), so that they hold on a busy machine. On a GPU they
are the clock's, and N images of the sequence are fitted together (33 unless told; an odd number has the middle frame).
Bytes: payloads of the batched fit against 4 for each of the reference's parameters.
Quality: the batched fit by its coded weights. The reference by its float32 weights, the best that it can give:
backgrounds from what `siren_reference` wrote to `--reference`, where there is a file of the sequence; objects fitted
here, all 10,000 steps, to the residual that this background leaves. Without a file both methods' objects stand on the
batched fit's background, and the background's comparison stays open.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.benchmarks.frames import spread
from fogline.benchmarks.hardware import describe
from fogline.benchmarks.siren_reference import SEQUENCES, STEPS, WIDTH, BlockedReference, loaded, render
from fogline.common.images.codec import SourceImage
from fogline.common.images.record import LayerKind
from fogline.common.images.siren_payload import Networks, pack
from fogline.fog_node.encoders.siren import LayerSource, SirenEncoder
from fogline.fog_node.encoders.siren_params import SirenParams
from fogline.fog_node.encoders.siren_reference import ReferenceFit

SCHEMA = 2
TIMED = 100  # steps of the reference
RESULTS = Path(__file__).resolve().parent / "results" / "siren_reference"


def at_reference_quality(quick: bool) -> SirenParams:
    """The fast profile, set to reach the reference's quality; measured, see docs/results.md."""
    return SirenParams(
        depth=10, width=36, columns=1, rows=1, slice=1536, bits=5.0,
        steps=60 if quick else 8000, object_steps=60 if quick else 4000, objects="fine",
    )  # fmt: skip


class Bench:
    """One run of the benchmark on one device."""

    def __init__(self, data: Path, reference: Path, device: str, images: int, quick: bool) -> None:
        self._data, self._stored, self._name, self._device = data, reference, device, torch.device(device)
        self._images, self._quick = images, quick
        self._reference = SirenEncoder(SirenParams(profile="reference"), device)
        if self._device.type == "cpu":
            torch.set_num_threads(1)

    def sequence(self, name: str) -> dict[str, Any]:
        """Everything about one sequence."""
        images = spread(self._data, name, self._images, WIDTH)
        image = images[len(images) // 2]
        frame = self._reference.frame_source(0, image)
        grey = np.full(image.pixels.shape, 0.5, np.float32)  # only the time of the reference's object is measured
        objects = list(self._reference.object_sources(0, image, grey))
        seconds = [sum(self._seconds_per_step(s) for s in sources) * STEPS for sources in ([frame], objects)]
        out: dict[str, Any] = {
            "sequence": name,
            "size": frame.region[2:],
            "images": len(images),
            "reference": {
                "background": {"s": seconds[0], "bytes": 4 * frame.shape.parameters},
                "object": {"s": seconds[1], "bytes": 4 * sum(o.shape.parameters for o in objects)},
            },
            "fast": self._encode(images, at_reference_quality(self._quick)),
            "shipped": self._encode(images, SirenParams(steps=60 if self._quick else None)),
        }
        self._compare(out, image, frame)
        for of in ("fast", "shipped"):
            del out[of]["decoded"]
        return out

    def _encode(self, images: list[SourceImage], params: SirenParams) -> dict[str, Any]:
        """Seconds and bytes per image, and the quality of the middle one."""
        encoder = SirenEncoder(params, self._name)
        middle = len(images) // 2
        start = self._now()
        frames = [encoder.frame_source(i, image) for i, image in enumerate(images)]
        backgrounds = encoder.fit(frames, LayerKind.BACKGROUND)
        decoded = encoder.decode(backgrounds, frames, LayerKind.BACKGROUND)
        half = self._now()
        objects = [o for i, under in enumerate(decoded) for o in encoder.object_sources(i, images[i], under)]
        residuals = encoder.fit(objects, LayerKind.OBJECT)
        end = self._now()
        values = encoder.decode(residuals, objects, LayerKind.OBJECT)
        full, original = decoded[middle].copy(), _original(images[middle])
        for source, value in zip(objects, values, strict=True):
            if source.image == middle:
                _window(full, source)[:] += source.scale * value
        regions = [o for o in objects if o.image == middle]
        return {
            "background": {
                "s": (half - start) / len(images),
                "bytes": _bytes(backgrounds) / len(images),
                "db": _psnr(decoded[middle], original),
            },
            "object": {
                "s": (end - half) / len(images),
                "bytes": _bytes(residuals) / len(images),
                "db": _in_regions(np.clip(full, 0, 1), original, regions),
                "under_db": _in_regions(decoded[middle], original, regions),
            },
            "decoded": decoded[middle],
        }

    def _compare(self, out: dict[str, Any], image: SourceImage, frame: LayerSource) -> None:
        """Fill in the reference's quality, and the ratios."""
        reference, file = out["reference"], self._stored / f"{out['sequence']}.json"
        original, under = _original(image), out["fast"]["decoded"]
        out["background_of_reference"] = file.exists()
        if file.exists():
            values = render(loaded(json.loads(file.read_text())["weights"], frame), frame)
            under = np.clip((values + 1) / 2, 0, 1).astype(np.float32)
            reference["background"]["db"] = _psnr(under, original)
        full, objects = under.copy(), list(self._reference.object_sources(0, image, under))
        for source in objects:
            fit = BlockedReference(source.signals[0], STEPS, 0)
            for _ in range(60 if self._quick else STEPS):
                fit.step()
            _window(full, source)[:] += source.scale * np.clip(render(fit.folded(), source), -1, 1)
        reference["object"]["db"] = _in_regions(np.clip(full, 0, 1), original, objects)
        for of in ("fast", "shipped"):
            whole = {key: sum(out[of][k][key] for k in ("background", "object")) for key in ("s", "bytes")}
            for kind in ("background", "object"):
                out[of][kind]["times_faster"] = reference[kind]["s"] / out[of][kind]["s"]
                out[of][kind]["times_smaller"] = reference[kind]["bytes"] / out[of][kind]["bytes"]
                if "db" in reference[kind]:
                    out[of][kind]["db_more"] = out[of][kind]["db"] - reference[kind]["db"]
            total = {key: sum(reference[k][key] for k in ("background", "object")) for key in ("s", "bytes")}
            ratios = {"times_faster": total["s"] / whole["s"], "times_smaller": total["bytes"] / whole["bytes"]}
            out[of]["image"] = {**whole, "images_per_s": 1 / whole["s"], **ratios}

    def _seconds_per_step(self, source: LayerSource) -> float:
        fit, timed = ReferenceFit(source.signals[0], STEPS, 0, self._device), 2 if self._quick else TIMED
        fit.step()
        start = self._now()
        for _ in range(timed):
            fit.step()
        return (self._now() - start) / timed

    def _now(self) -> float:
        """Seconds of one core on a CPU, of the clock on an accelerator when it has done its work."""
        if self._device.type == "cpu":
            return time.process_time()
        torch.cuda.synchronize()
        return time.perf_counter()


def _original(image: SourceImage) -> NDArray[np.float32]:
    out: NDArray[np.float32] = image.pixels.astype(np.float32) / np.float32(255)
    return out


def _bytes(networks: list[Networks]) -> int:
    return sum(len(pack(one)) for one in networks)


def _window(image: NDArray[np.float32], source: LayerSource) -> NDArray[np.float32]:
    x, y, w, h = source.region
    return image[y : y + h, x : x + w]


def _in_regions(a: NDArray[np.float32], b: NDArray[np.float32], sources: list[LayerSource]) -> float:
    """PSNR over the pixels of the sources' regions."""
    inside = np.zeros(a.shape, np.float32)
    for source in sources:
        _window(inside, source)[:] = 1
    return _psnr(a[inside > 0], b[inside > 0])


def _psnr(a: NDArray[Any], b: NDArray[Any]) -> float:
    return float(-10 * np.log10(np.mean((a.astype(np.float64) - b) ** 2)))


def _print(result: dict[str, Any]) -> None:
    for of in ("fast", "shipped"):
        print(f"{of}: times faster and times smaller than the reference; dB, and dB more than the reference")
        for row in result["sequences"]:
            print(f"{row['sequence']:<13} {row['size'][0]}x{row['size'][1]}", end="")
            for kind in ("background", "object"):
                part = row[of][kind]
                more = f"{part['db_more']:+.2f}" if "db_more" in part else "open"
                print(f"  {kind} {part['times_faster']:.0f}x /{part['times_smaller']:.1f}", end="")
                print(f" {part['db']:.2f} dB ({more}), {part['bytes']:.0f} B, {part['s']:.1f} s", end="")
            image = row[of]["image"]
            print(f"  image {image['times_faster']:.0f}x /{image['times_smaller']:.2f}  {image['images_per_s']:.3f}/s")
        median = result["median"][of]
        print(f"{'median':<13} image {median['times_faster']:.0f}x /{median['times_smaller']:.2f}")


def main() -> None:
    """Parse the command line, measure, print a table, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--reference", type=Path, default=RESULTS, help="folder of what siren_reference wrote")
    parser.add_argument("--sequence", action="append", help="only this; may be given several times")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--images", type=int, help="of each sequence, fitted together; odd")
    parser.add_argument("--quick", action="store_true", help="few steps: shows that it runs, its figures mean nothing")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    images = options.images or (1 if options.device == "cpu" else 33)
    bench = Bench(options.data, options.reference, options.device, images, options.quick)
    result: dict[str, Any] = {"schema": SCHEMA, "hardware": describe(), "device": options.device}
    result |= {"quick": options.quick, "sequences": []}
    for name in options.sequence or SEQUENCES:
        result["sequences"].append(bench.sequence(name))
        print(f"{name}: done", flush=True)
    result["median"] = {
        of: {
            key: statistics.median(row[of]["image"][key] for row in result["sequences"])
            for key in ("times_faster", "times_smaller", "images_per_s")
        }
        for of in ("fast", "shipped")
    }
    _print(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
