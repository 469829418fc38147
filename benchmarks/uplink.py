"""What the uplink costs: the main job once for each uplink form and codec, and what a detector learns from the result.

Runs `fogline up` (real processes, everything on the wire counted), then trains the same detector with the same seeds
and steps on the captured frames and on the records that the devices of each run held in the end.

    python -m fogline.benchmarks.uplink --data DIR [--codecs avif2] [--uplinks original,resized,avif,roi] [--json FILE]

`--data` holds the sequences' folders. Output, schema 1: `forms.<form>` has bytes, CPU milliseconds and PSNR of the form
alone, at the qualities that the first codec's fog node advises; `runs.<codec>/<form>` is the run's `report.json`;
`learning` has the metric, `source` and for each run the scores by seed, and `difference` from source with its mean, its
95 % confidence interval over the seeds (`low`, `high`) and whether that lies `within_0_01`: true, or null where it does
not, which resolves nothing.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from fogline.benchmarks.hardware import describe
from fogline.common.data.load import load_sequence
from fogline.common.images import quality
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.forms import Form, Qualities
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.sizes import coded_size
from fogline.common.images.uplink import decode, encode
from fogline.common.models.compare import SOURCE
from fogline.deploy.local.plan import Plan, PlannedImage, make_plan
from fogline.fog_node.advice import advised
from fogline.report.evaluate import records_of
from fogline.report.frames import boxes_at
from fogline.report.holdings import read_holdings
from fogline.report.measure import Received, prepare
from fogline.report.training import paired, training_size

SCHEMA = 1
TOLERANCE = 0.01
TRAIN_FRACTION = 0.7
# Student's t, two-sided 95 %, for 1 to 9 degrees of freedom; beyond, the last is on the safe side.
T_975 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262)
FORM_FRAMES = 12  # that each form is measured on alone


def main() -> None:
    """Parse the command line, run everything, print tables, write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="folder that holds the sequences' folders")
    parser.add_argument("--sequences", default="UAV123_boat1")
    parser.add_argument("--width", type=int, default=640, help="coded and training width")
    parser.add_argument("--edges", type=int, default=10)
    parser.add_argument("--codecs", default="avif2")
    parser.add_argument("--codec-param", action="append", default=[], metavar="K=V", help="of every codec; again")
    parser.add_argument("--uplinks", default="original,resized,avif,roi")
    parser.add_argument("--fps", type=float, default=10.0, help="of every camera; 0: at once")
    parser.add_argument("--seeds", type=int, default=3, help="trainings to compare; 0: none")
    parser.add_argument("--steps", type=int, default=400, help="of each training")
    parser.add_argument("--out", type=Path, default=Path("fogline-run/uplink"))
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    folders = [options.data / name for name in options.sequences.split(",")]
    plan = make_plan([load_sequence(folder) for folder in folders], options.edges, TRAIN_FRACTION)
    result: dict[str, Any] = {"schema": SCHEMA, "benchmark": "uplink", "hardware": describe(), "tolerance": TOLERANCE}
    result |= {"config": {key: str(value) for key, value in vars(options).items()}, "runs": {}}
    told = qualities_of(options.codecs.split(",")[0], options.codec_param)
    result["qualities"] = dataclasses.asdict(told)
    result["forms"] = {n: form_alone(plan, Form.of(n), options.width, told) for n in options.uplinks.split(",")}
    _print_forms(result["forms"])
    held: dict[str, list[Received]] = {}
    for codec in options.codecs.split(","):
        for uplink in options.uplinks.split(","):
            name, out = f"{codec}/{uplink}", options.out / codec / uplink
            result["runs"][name] = run(folders, codec, uplink, out, options)
            held[name] = received(plan, out)
            _write(options.json, result)
    _print_runs(result["runs"])
    if options.seeds:
        result["learning"] = learning(plan, held, options)
        _print_learning(result["learning"])
    _write(options.json, result)


def run(folders: Sequence[Path], codec: str, uplink: str, out: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Run the job once and return its report."""
    command = [sys.executable, "-m", "fogline", "up", "--edges", str(options.edges), "--image-codec", codec]
    command += ["--uplink", uplink, "--width", str(options.width), "--fps", str(options.fps), "--train-steps", "0"]
    command += ["--train-fraction", str(TRAIN_FRACTION), "--no-train-compare", "--no-codec-compare"]
    command += ["--keep", "--out", str(out)]
    for folder in folders:
        command += ["--data", str(folder)]
    for pair in options.codec_param:
        command += ["--codec-param", pair]
    subprocess.run(command, check=True)
    report: dict[str, Any] = json.loads((out / "report.json").read_text())
    return report


def received(plan: Plan, out: Path) -> list[Received]:
    """The records that the devices of a run held in the end, in the order of the plan."""
    libraries = [read_holdings(edge.name, out / "state" / edge.name / "library") for edge in plan.edges]
    return prepare(BatchDecoder(), *records_of(libraries, plan))[0]


def qualities_of(codec: str, pairs: Sequence[str]) -> Qualities:
    """What the edges of a fog node with this codec encode with, as it advises them."""
    given = dict(pair.split("=", 1) for pair in pairs)
    found = advised(codec, {key: int(given[key]) for key in given if key.endswith("_quality")})
    return Qualities() if found is None else Qualities(roi_object=found[0], roi_background=found[1])


def form_alone(plan: Plan, form: Form, width: int, told: Qualities) -> dict[str, float | None]:
    """Bytes, CPU time and quality of an uplink form on some frames, against the captured ones at the coded size."""
    images = list(plan.images.values())
    step = max(1, len(images) // FORM_FRAMES)
    rows = [_one(image, form, width, told) for image in images[step // 2 :: step]]
    qualities = quality.mean([one for _, _, one in rows])
    return {
        "bytes_per_image": statistics.fmean(size for size, _, _ in rows),
        "cpu_ms_per_image": 1000 * statistics.fmean(seconds for _, seconds, _ in rows),
        "full_psnr_db": qualities.full,
        "background_psnr_db": qualities.background,
        "object_psnr_db": qualities.object,
    }


def _one(image: PlannedImage, form: Form, width: int, told: Qualities) -> tuple[int, float, quality.Quality]:
    jpeg = image.frame.path.read_bytes()
    began = time.thread_time()
    data = jpeg
    if form is not Form.ORIGINAL:
        data = encode(form, jpeg, image.content_id, image.frame.boxes, width, told)
    seconds = time.thread_time() - began
    size = coded_size(image.frame.width, image.frame.height, width)
    pixels = resize(decode(form, data, image.content_id).pixels, *size)
    original = resize(decode_jpeg(jpeg), *size)
    return len(data), seconds, quality.measure(original, pixels.astype(np.uint8), boxes_at(image, size))


def learning(plan: Plan, held: Mapping[str, Sequence[Received]], options: argparse.Namespace) -> dict[str, Any]:
    """The paired comparison over all runs; training on source is done once for each seed."""
    size = training_size(plan.shared, options.width)

    def say(line: str) -> None:
        print(f"{time.strftime('%H:%M:%S')} {line}", file=sys.stderr, flush=True)

    found = paired(plan, held, size, steps=options.steps, seeds=range(options.seeds), tell=say)
    result: dict[str, Any] = {
        "metric": found.metric,
        "size": size,
        "steps": options.steps,
        "images": len(plan.images),
        "untrained": found.untrained,
        "constant_box_per_camera": found.constant_box_per_camera,
        SOURCE: _spread(found.scores(SOURCE)),
        "runs": {},
    }
    for name in held:
        difference = _spread(found.differences(name)) | interval(found.differences(name))
        result["runs"][name] = {
            "score": _spread(found.scores(name)),
            "difference": difference,
            "within_0_01": within(difference, TOLERANCE),
        }
    return result


def interval(values: Sequence[float]) -> dict[str, float | None]:
    """The 95 % confidence interval of the mean, by Student's t; unknown of a single value."""
    if len(values) < 2:
        return {"low": None, "high": None}
    mean, half = statistics.fmean(values), statistics.stdev(values) / math.sqrt(len(values))
    half *= T_975[min(len(values) - 1, len(T_975)) - 1]
    return {"low": mean - half, "high": mean + half}


def within(difference: Mapping[str, Any], tolerance: float) -> bool | None:
    """Whether an interval lies within the tolerance; None: not resolved."""
    low, high = difference["low"], difference["high"]
    return True if low is not None and -tolerance <= low and high <= tolerance else None


def _spread(values: Sequence[float]) -> dict[str, Any]:
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def _print_forms(forms: Mapping[str, Mapping[str, float | None]]) -> None:
    print("| form alone | bytes/image | CPU ms/image | background dB | object dB |")
    print("|---|---|---|---|---|")
    for name, f in forms.items():
        cells = (f["bytes_per_image"], f["cpu_ms_per_image"], f["background_psnr_db"], f["object_psnr_db"])
        print(f"| {name} | " + " | ".join("" if c is None else f"{c:,.1f}" for c in cells) + " |")


def _print_runs(runs: Mapping[str, Mapping[str, Any]]) -> None:
    print(
        "| codec/uplink | beta | alpha | n/(beta+alpha n) | gain vs source | background dB | object dB | lost/doubled |"
    )
    print("|---|---|---|---|---|---|---|---|")
    for name, r in runs.items():
        u, q = r["uplink"], r["quality"]
        print(
            f"| {name} | {u['beta']:.3f} | {u['alpha']:.4f} | {u['gain_n_over_beta_plus_alpha_n']:.2f} | "
            f"{r['gain_vs_source']:.2f} | {q['background_psnr_db']:.1f} | {q['object_psnr_db']:.1f} | "
            f"{r['images_lost']}/{r['images_duplicated']} |"
        )


def _print_learning(result: Mapping[str, Any]) -> None:
    print(f"| trained on | {result['metric']} | minus source, by seed | mean, 95 % interval | within {TOLERANCE} |")
    print("|---|---|---|---|---|")
    source = result[SOURCE]
    print(f"| source | {source['mean']:.3f} ± {source['std']:.3f} | | | |")
    for name, r in result["runs"].items():
        by_seed = ", ".join(f"{value:+.3f}" for value in r["difference"]["values"])
        score = f"{r['score']['mean']:.3f} ± {r['score']['std']:.3f}"
        mean, low, high = (r["difference"][key] for key in ("mean", "low", "high"))
        span = f"{mean:+.3f}" + ("" if low is None else f" ({low:+.3f} to {high:+.3f})")
        print(f"| {name} | {score} | {by_seed} | {span} | {'yes' if r['within_0_01'] else 'not resolved'} |")


def _write(path: Path | None, result: Mapping[str, Any]) -> None:
    if path is not None:
        path.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
