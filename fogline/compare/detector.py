"""How well a detector learns from what each codec decodes to: paired seeds, judged on the same held-out source frames.

The first 70 % of each folder is coded and trained on, the rest is for judging and never coded.
"""

from __future__ import annotations

import os
import time
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from fogline.common.data import AnnotatedSequence, Frame
from fogline.common.errors import InputError
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.models.compare import Annotated, Comparison, compare_training
from fogline.common.models.detection import to_target
from fogline.common.models.pool import TensorPool
from fogline.common.models.training import Recipe, Trainer, evaluate
from fogline.compare.frames import Folder
from fogline.compare.run import Tell

_SIDE = 16  # pixels that a training size is a multiple of
_EVALUATIONS = 8  # of a run, about: the points of its curve


@dataclass(frozen=True)
class Task:
    """What is learned, the same for all codecs."""

    metric: str  # `iou` where no frame has several objects, else `ap50`
    labels: tuple[str, ...]
    size: tuple[int, int]  # width and height that frames are trained at
    recipe: Recipe
    seeds: tuple[int, ...]
    held_out: Annotated

    @property
    def workers(self) -> int:
        """Trainings that run at once."""
        return os.cpu_count() or 1


def make_task(
    train: Sequence[AnnotatedSequence], held_out: Sequence[AnnotatedSequence], width: int, steps: int, seeds: int
) -> Task:
    """Choose metric, labels and size by the folders. Raises InputError where there is nothing to learn or judge by."""
    for what, part in (("70 % that is trained on", train), ("30 % that is judged by", held_out)):
        if not any(frame.boxes for sequence in part for frame in sequence.frames):
            raise InputError(f"--detector: no frame in the {what} has a box; annotate frames, or leave --detector out")
    frames = [frame for sequence in (*train, *held_out) for frame in sequence.frames]
    single = all(len(frame.boxes) <= 1 for frame in frames)
    labels = () if single else tuple(sorted({box.label for frame in frames for box in frame.boxes}))
    metric = "iou" if single else "ap50"
    aspects = sorted(frame.height / frame.width for frame in frames)
    across = max(2 * _SIDE, round(min(width, 320) / _SIDE) * _SIDE)
    size = across, max(2 * _SIDE, round(across * aspects[len(aspects) // 2] / _SIDE) * _SIDE)
    judged = [(s.name, frame) for s in held_out for frame in s.frames if metric == "ap50" or frame.boxes]
    recipe = Recipe(labels=max(1, len(labels)), steps=steps)
    return Task(metric, labels, size, recipe, tuple(range(seeds)), _annotated(judged, size, labels))


def source(task: Task, folders: Sequence[Folder]) -> Annotated:
    """The captured frames of the folders, at the training size."""
    frames = [(folder.name, captured.frame) for folder in folders for captured in folder.frames]
    return _annotated(frames, task.size, task.labels)


def estimate_s(task: Task, runs: int, tell: Tell) -> float:
    """Seconds that so many trainings will take, from a few timed steps on the held-out frames."""
    pool = TensorPool.of(list(torch.unbind(task.held_out.images)), task.held_out.targets)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the runs: they go on side by side
    try:
        trainer = Trainer(task.recipe, pool, 0)
        trainer.step()
        began = time.perf_counter()
        for _ in range(3):
            trainer.step()
        step_s = (time.perf_counter() - began) / 3
        few = slice(0, 32)
        began = time.perf_counter()
        evaluate(trainer.averaged, task.held_out.images[few], task.held_out.targets[few], task.metric)
        image_s = (time.perf_counter() - began) / len(task.held_out.targets[few])
    finally:
        torch.set_num_threads(threads)
    run_s = step_s * (task.recipe.steps or 0) + image_s * _EVALUATIONS * len(task.held_out.targets)
    total = runs * len(task.seeds) * run_s / min(task.workers, runs * len(task.seeds))
    tell.line(
        f"detector: {runs} kinds of images x {len(task.seeds)} seeds, {task.recipe.steps} steps each, "
        f"{task.workers} at once: about {total / 60:.1f} minutes besides coding"
    )
    return total


def train(task: Task, originals: Annotated, decoded: dict[str, torch.Tensor], tell: Tell) -> Comparison:
    """Train on source and on every kind of decoded images (name: uint8 (N, 3, H, W))."""
    runs = (1 + len(decoded)) * len(task.seeds)
    ended: list[str] = []

    def progress(name: str, seed: int, step: int, loss: float) -> None:
        if step == task.recipe.steps:
            ended.append(name)
            tell.line(f"detector: {name}, seed {seed}: done, {len(ended)} of {runs}")
        else:
            tell.passing(f"detector: {name}, seed {seed}: step {step} of {task.recipe.steps}, loss {loss:.2f}")

    return compare_training(
        originals,
        {name: Annotated(images, originals.targets, originals.cameras) for name, images in decoded.items()},
        task.held_out,
        recipe=task.recipe,
        seeds=task.seeds,
        metric=task.metric,
        workers=task.workers,
        progress=progress,
    )


def _annotated(frames: Sequence[tuple[str, Frame]], size: tuple[int, int], labels: Sequence[str]) -> Annotated:
    images = torch.empty((len(frames), 3, size[1], size[0]), dtype=torch.uint8)
    for index, (_, frame) in enumerate(frames):
        pixels = resize(decode_jpeg(frame.path.read_bytes()), *size)
        images[index] = torch.from_numpy(pixels.copy()).permute(2, 0, 1)
    targets = tuple(to_target(frame.boxes, frame.width, frame.height, labels) for _, frame in frames)
    return Annotated(images, targets, tuple(camera for camera, _ in frames))
