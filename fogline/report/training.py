"""Trains the detector on source and on decoded images, for the report. Needs torch."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence

import torch

from fogline.common.data.sequence import AnnotatedSequence, Frame
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.models import compare
from fogline.common.models.detection import to_target
from fogline.common.models.training import Recipe
from fogline.deploy.local.plan import Plan
from fogline.report.charts import Curve
from fogline.report.findings import Comparison
from fogline.report.measure import BATCH, Received

DECODED = "decoded"


def compare_on(
    plan: Plan,
    received: Sequence[Received],
    size: tuple[int, int],
    *,
    steps: int,
    seeds: Sequence[int],
    tell: Callable[[str], None],
) -> Comparison:
    """Train with each seed on the captured frames and on what became of them; `size` is (width, height)."""
    metric = plan.metric
    found = paired(plan, {DECODED: received}, size, steps=steps, seeds=seeds, tell=tell)
    names = (compare.SOURCE, DECODED)
    return Comparison(
        metric=metric,
        seeds=tuple(seeds),
        steps=steps,
        images=len(received),
        epochs=found.epochs,
        parameters=found.parameters,
        untrained=found.untrained,
        constant_box=found.constant_box,
        constant_box_per_camera=found.constant_box_per_camera,
        on_source=found.scores(compare.SOURCE),
        on_decoded=found.scores(DECODED),
        seconds_source=found.seconds(compare.SOURCE),
        seconds_decoded=found.seconds(DECODED),
        metric_curves={name: _curve(found, name, lambda point: point.score) for name in names},
        loss_curves={name: _curve(found, name, lambda point: point.loss) for name in names},
    )


def paired(
    plan: Plan,
    received: Mapping[str, Sequence[Received]],
    size: tuple[int, int],
    *,
    steps: int,
    seeds: Sequence[int],
    tell: Callable[[str], None],
) -> compare.Comparison:
    """Train with each seed on the captured frames and on what each of several runs of the same plan made of them.

    Every entry of `received` has the same images in the same order.
    """
    metric, labels = plan.metric, plan.labels
    sequence_of = {frame.path: sequence.name for sequence in plan.shared for frame in sequence.frames}
    first = next(iter(received.values()))
    frames = [(image.captured.frame, sequence_of[image.captured.frame.path]) for image in first]
    source = _from_disk(frames, size, labels)
    decoded = {
        name: compare.Annotated(_decoded(images, size), source.targets, source.cameras)
        for name, images in received.items()
    }
    held_out = _from_disk([(f, s.name) for s in plan.held_out for f in s.frames if _useful(f, metric)], size, labels)

    def progress(images: str, seed: int, step: int, loss: float) -> None:
        tell(f"training on {images} images, seed {seed}: step {step} of {steps}, loss {loss:.2f}")

    return compare.compare_training(
        source,
        decoded,
        held_out,
        recipe=Recipe(labels=max(1, len(labels)), steps=steps),
        seeds=seeds,
        metric=metric,
        workers=min(len(os.sched_getaffinity(0)), (1 + len(decoded)) * len(seeds)),
        progress=progress,
    )


def training_size(sequences: Sequence[AnnotatedSequence], width: int) -> tuple[int, int]:
    """The size that all frames are trained at: `width` and the frames' median aspect, in multiples of 16."""
    aspects = sorted(frame.height / frame.width for sequence in sequences for frame in sequence.frames)
    width = max(32, round(width / 16) * 16)
    return width, max(32, round(width * aspects[len(aspects) // 2] / 16) * 16)


def _useful(frame: Frame, metric: str) -> bool:
    return metric == "ap50" or bool(frame.boxes)


def _from_disk(frames: Sequence[tuple[Frame, str]], size: tuple[int, int], labels: Sequence[str]) -> compare.Annotated:
    width, height = size
    images = torch.empty((len(frames), 3, height, width), dtype=torch.uint8)
    for index, (frame, _) in enumerate(frames):
        pixels = resize(decode_jpeg(frame.path.read_bytes()), width, height)
        images[index] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    targets = tuple(to_target(frame.boxes, frame.width, frame.height, labels) for frame, _ in frames)
    return compare.Annotated(images, targets, tuple(camera for _, camera in frames))


def _decoded(received: Sequence[Received], size: tuple[int, int]) -> torch.Tensor:
    decoder = BatchDecoder()
    parts = []
    for start in range(0, len(received), BATCH):
        batch = decoder.decode([image.prepared for image in received[start : start + BATCH]], size)
        parts.append((batch * 255).round().to(torch.uint8))
    return torch.cat(parts)


def _curve(found: compare.Comparison, images: str, value: Callable[[compare.Point], float]) -> Curve:
    runs = [run.curve for run in found.runs if run.images == images]
    return Curve(tuple(point.step for point in runs[0]), tuple(tuple(value(point) for point in run) for run in runs))
