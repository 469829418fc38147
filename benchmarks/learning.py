"""Does a detector learn as well from decoded images as from source images?

The first 70 % of each sequence is encoded, decoded and trained on; the rest, always source frames, is for evaluation.
Same model, seeds and steps on every kind of images; the figure is the difference seed by seed.

    python -m fogline.benchmarks.learning --json results.json          # everything
    python -m fogline.benchmarks.learning --quick                      # one seed, few steps, jpeg2
    python -m fogline.benchmarks.learning --width 640 --uplink roi     # coded wider, from what an edge sends as `roi`

`ruined` is a control that must fail: backgrounds of 40 pixels across at a low quality, and no object layers.
With `--uplink`, everything is coded anew, also where a fog node would publish an edge's layers as they are.
Output, schema 1: `data.<set>` has the metric, frames, training size and recipe, `untrained`, `constant_box` and
`constant_box_per_camera`; `source` and each of `codecs.<name>` have the score for each seed with mean and standard
deviation, and `curves`; a codec also `difference` (score minus score on source, by seed), `within_0_02` of its mean,
`uplink`, `bytes_per_image`, `background_psnr_db` and `object_psnr_db` over the training frames at their coded size.
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from fogline.common.data import AnnotatedSequence, Frame, load_sequence, split_train_eval
from fogline.common.images import quality
from fogline.common.images.codec import EncodedImage, ImageEncoder, SourceImage
from fogline.common.images.container import from_bytes, to_bytes
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.forms import Form, Qualities
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.images.record import ImageRecord
from fogline.common.images.sizes import coded_size
from fogline.common.images.uplink import decode as decode_upload
from fogline.common.images.uplink import encode as encode_upload
from fogline.common.models.compare import SOURCE, Annotated, Comparison, compare_training
from fogline.common.models.detection import to_target
from fogline.common.models.training import Recipe
from fogline.fog_node.encoders import build_encoder

SCHEMA = 1
TOLERANCE = 0.02
TRACKING = ("OTB_Crossing", "OTB_Human7", "VOT15_bag", "UAV123_boat1")
CELLS = ("RBC", "WBC", "Platelets")
BATCH = 32  # frames that are encoded at once
# name in the results -> codec, parameters, coded width (None: as asked for), whether object layers are kept
CODECS: dict[str, tuple[str, dict[str, Any], int | None, bool]] = {
    "jpeg2": ("jpeg2", {}, None, True),
    "avif2": ("avif2", {}, None, True),
    "siren": ("siren", {}, None, True),
    "ruined": ("jpeg2", {"background_quality": 5}, 40, False),
}


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set, what is measured on it, and how it is trained."""

    name: str
    folders: tuple[str, ...]
    metric: str
    labels: tuple[str, ...]
    size: tuple[int, int]  # training size, w and h
    recipe: Recipe


CASES = (
    Case("tracking", tuple(f"tracking/{n}" for n in TRACKING), "iou", (), (320, 208), Recipe(steps=800)),
    Case("bccd_detection", ("bccd_detection",), "ap50", CELLS, (320, 240), Recipe(steps=800, labels=len(CELLS))),
)


def main() -> None:
    """Parse the command line, run, and write JSON."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    default = os.environ.get("FOGLINE_DATA", str(Path(__file__).resolve().parents[2] / "shared" / "data"))
    parser.add_argument("--data", type=Path, default=Path(default), help="folder with tracking/ and bccd_detection/")
    parser.add_argument("--codecs", default="jpeg2,avif2,siren,ruined", help="of: " + ", ".join(CODECS))
    parser.add_argument(
        "--cases", default=",".join(c.name for c in CASES), help="of: " + ", ".join(c.name for c in CASES)
    )
    parser.add_argument("--width", type=int, default=320, help="coded width (default: 320; `ruined` keeps its 40)")
    parser.add_argument(
        "--uplink", choices=[form.text for form in Form], default="original", help="what the codecs are given"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, help="instead of the recipe's")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1, help="trainings that run at once")
    parser.add_argument("--cache", type=Path, default=Path(".cache/learning"), help="encoded frames; safe to remove")
    parser.add_argument("--quick", action="store_true", help="one seed, 150 steps, jpeg2")
    parser.add_argument("--json", type=Path, help="write the results here too")
    args = parser.parse_args()
    if args.quick:
        args.seeds, args.steps, args.codecs = 1, args.steps or 150, "jpeg2"
    host = {"machine": platform.machine(), "cores": os.cpu_count(), "torch": torch.__version__}
    results: dict[str, Any] = {"schema": SCHEMA, "host": host, "tolerance": TOLERANCE, "data": {}}
    for case in CASES:
        if case.name in args.cases.split(","):
            if args.steps:
                case = dataclasses.replace(case, recipe=dataclasses.replace(case.recipe, steps=args.steps))
            results["data"][case.name] = run_case(case, args)
            if args.json:
                args.json.write_text(json.dumps(results, indent=1) + "\n")
    print(json.dumps(results, indent=1))


def run_case(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """Encode, decode, train and evaluate one data set on each codec."""
    parts = [split_train_eval(load_sequence(args.data / folder)) for folder in case.folders]
    train, held_out = [p[0] for p in parts], [p[1] for p in parts]
    source = annotated(case, train)
    decoded, measured = {}, {}
    for name in args.codecs.split(","):
        say(f"{case.name}: encoding {len(source.images)} frames as {name}")
        decoded[name], measured[name] = through_codec(case, train, name, args, source)
    started = time.perf_counter()
    comparison = compare_training(
        source,
        decoded,
        annotated(case, held_out),
        recipe=case.recipe,
        seeds=range(args.seeds),
        metric=case.metric,
        workers=args.workers,
        progress=lambda name, seed, step, loss: say(f"{case.name}: {name} seed {seed} step {step} loss {loss:.3f}"),
    )
    return {
        "metric": case.metric,
        "frames": {"train": len(source.images), "held_out": sum(len(s.frames) for s in held_out)},
        "size": case.size,
        "recipe": dataclasses.asdict(case.recipe),
        "seeds": list(range(args.seeds)),
        "epochs": comparison.epochs,
        "parameters": comparison.parameters,
        "seconds_all_runs": time.perf_counter() - started,
        "untrained": comparison.untrained,
        "constant_box": comparison.constant_box,
        "constant_box_per_camera": comparison.constant_box_per_camera,
        "source": scored(comparison, SOURCE),
        "codecs": {name: {**scored(comparison, name), **measured[name]} for name in decoded},
    }


def scored(comparison: Comparison, name: str) -> dict[str, Any]:
    """Scores on one kind of images, and for a codec the differences from source."""
    result: dict[str, Any] = {
        "score": spread(comparison.scores(name)),
        "seconds_per_run": comparison.seconds(name),
        "curves": [
            {"seed": run.seed, "points": [dataclasses.asdict(point) for point in run.curve]}
            for run in comparison.runs
            if run.images == name
        ],
    }
    if name != SOURCE:
        result["difference"] = spread(comparison.differences(name))
        result["within_0_02"] = abs(result["difference"]["mean"]) <= TOLERANCE
    return result


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, sample standard deviation (0 for a single value) and the values."""
    deviation = statistics.stdev(values) if len(values) > 1 else 0.0
    return {"mean": statistics.fmean(values), "std": deviation, "values": list(values)}


def annotated(case: Case, sequences: Sequence[AnnotatedSequence]) -> Annotated:
    """Source frames at the training size."""
    frames = [(s.name, f) for s in sequences for f in s.frames]
    images = [resize(decode_jpeg(f.path.read_bytes()), *case.size) for _, f in frames]
    return Annotated(
        torch.stack([torch.from_numpy(image.copy()).permute(2, 0, 1) for image in images]),
        tuple(to_target(f.boxes, f.width, f.height, case.labels) for _, f in frames),
        tuple(name for name, _ in frames),
    )


def through_codec(
    case: Case, sequences: Sequence[AnnotatedSequence], name: str, args: argparse.Namespace, source: Annotated
) -> tuple[Annotated, dict[str, Any]]:
    """The same frames, encoded, stored as records and decoded at the training size; and what that cost."""
    codec, params, own_width, with_objects = CODECS[name]
    coded_width, uplink = own_width or args.width, Form.of(args.uplink)
    decoder = BatchDecoder()
    images: list[torch.Tensor] = []
    qualities: list[quality.Quality] = []
    size, shared = 0, dict[bytes, bytes]()
    for sequence in sequences:
        for original, record, blobs in encoded(sequence, codec, params, coded_width, uplink, args.cache):
            if not with_objects:
                record = dataclasses.replace(record, layers=record.layers[:1])
            shared |= blobs
            data = to_bytes(record)
            size += len(data)
            prepared = decoder.prepare(from_bytes(data), blobs)
            (image,) = decoder.decode([prepared], case.size)
            images.append((image * 255).round().to(torch.uint8))
            (coded,) = decoder.decode([prepared])
            pixels = (coded * 255).round().permute(1, 2, 0).numpy()
            qualities.append(quality.measure(original.pixels, pixels, original.boxes))
    size += sum(len(blob) for blob in shared.values())
    mean = quality.mean(qualities)
    cost = {
        "codec": codec,
        "params": params,
        "coded_width": coded_width,
        "object_layers": with_objects,
        "uplink": uplink.text,
        "bytes_per_image": size / len(images),
        "full_psnr_db": mean.full,
        "background_psnr_db": mean.background,
        "object_psnr_db": mean.object,
    }
    return dataclasses.replace(source, images=torch.stack(images)), cost


def encoded(
    sequence: AnnotatedSequence, codec: str, params: dict[str, Any], width: int, uplink: Form, cache: Path
) -> Iterator[tuple[SourceImage, ImageRecord, dict[bytes, bytes]]]:
    """Each frame's original at the coded size, its record, and the shared state that it needs; encoded only once."""
    key = hashlib.sha256(json.dumps([codec, params, width, uplink.text], sort_keys=True).encode()).hexdigest()[:16]
    folder = cache / f"{codec}-{key}"
    folder.mkdir(parents=True, exist_ok=True)
    encoder = build_encoder(codec, params, "cpu")
    for start in range(0, len(sequence.frames), BATCH):
        frames = sequence.frames[start : start + BATCH]
        files = [frame.path.read_bytes() for frame in frames]
        digests = [hashlib.sha256(file).digest() for file in files]
        sources = [
            _at_coded_size(frame, file, sequence.name, width, uplink) for frame, file in zip(frames, files, strict=True)
        ]
        paths = [folder / digest.hex() for digest in digests]
        missing = [i for i, path in enumerate(paths) if not path.is_file()]
        results = _from_uplink(encoder, [(frames[i], files[i], sources[i]) for i in missing], uplink, width)
        for i, result in zip(missing, results, strict=True):
            record = _record(digests[i], sequence.name, frames[i], sources[i], result)
            for blob in result.shared:
                (folder / blob.digest.hex()).write_bytes(blob.data)
            partial = paths[i].with_suffix(".partial")
            partial.write_bytes(to_bytes(record))
            partial.rename(paths[i])
        for source, path in zip(sources, paths, strict=True):
            record = from_bytes(path.read_bytes())
            yield source, record, {digest: (folder / digest.hex()).read_bytes() for digest in record.shared}


def _from_uplink(
    encoder: ImageEncoder, items: Sequence[tuple[Frame, bytes, SourceImage]], uplink: Form, width: int
) -> list[EncodedImage]:
    """Encode what the fog node would have of captured frames."""
    if uplink is Form.ORIGINAL:
        return encoder.encode([source for _, _, source in items])
    sent = []
    for frame, file, source in items:
        digest = hashlib.sha256(file).digest()
        data = encode_upload(uplink, file, digest, frame.boxes, width, Qualities())
        sent.append(dataclasses.replace(source, pixels=decode_upload(uplink, data, digest).pixels))
    return encoder.encode(sent)


def _at_coded_size(frame: Frame, file: bytes, camera: str, width: int, uplink: Form) -> SourceImage:
    width = min(width, frame.width)
    height = round(frame.height * width / frame.width / 2) * 2
    if uplink is not Form.ORIGINAL:
        height = coded_size(frame.width, frame.height, width)[1]  # as edges do, which leave an odd row out
    scale = (width / frame.width, height / frame.height)
    boxes = tuple((b.x, b.y, b.w, b.h) for b in (box.scaled(*scale) for box in frame.boxes))
    return SourceImage(resize(decode_jpeg(file), width, height), boxes, camera)


def _record(digest: bytes, camera: str, frame: Frame, source: SourceImage, result: EncodedImage) -> ImageRecord:
    height, width = source.pixels.shape[:2]
    return ImageRecord(
        content_id=digest,
        capture_time_us=0,
        camera=camera,
        source_size=(frame.width, frame.height),
        size=(width, height),
        boxes=frame.boxes,
        layers=result.layers,
        shared=tuple(blob.digest for blob in result.shared),
    )


def say(text: str) -> None:
    """Progress, on the standard error."""
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
