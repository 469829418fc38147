"""Does training on decoded images give as good a detector as training on source images? The same model, seeds and
steps on both, judged on the same held-out source frames; the figure is the difference seed by seed."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass

import torch
from torch import Tensor

from fogline.common.errors import InputError
from fogline.common.models.detection import Target
from fogline.common.models.pool import TensorPool
from fogline.common.models.scores import constant_score
from fogline.common.models.training import Recipe, Trainer, evaluate

SOURCE = "source"
_POINTS = 8  # of a curve


@dataclass(frozen=True)
class Annotated:
    """Images of one size with their objects, and the camera that each came from."""

    images: Tensor  # uint8 (N, 3, H, W)
    targets: tuple[Target, ...]
    cameras: tuple[str, ...]


@dataclass(frozen=True)
class Point:
    """A point of a training curve: mean loss since the one before, metric on the held-out frames."""

    step: int
    loss: float
    score: float


@dataclass(frozen=True)
class Run:
    """One training: what on, which seed, its final metric on the held-out source frames, wall seconds, its curve."""

    images: str  # "source", or the name of a codec
    seed: int
    score: float
    seconds: float
    curve: tuple[Point, ...]


@dataclass(frozen=True)
class Comparison:
    """All runs, and what predictors that learned nothing score on the same frames."""

    metric: str
    steps: int
    epochs: float  # views of each training image in a run
    parameters: int
    untrained: float
    constant_box: float  # one box for all cameras
    constant_box_per_camera: float  # the harder one: each camera has its own
    runs: tuple[Run, ...]

    def scores(self, images: str) -> tuple[float, ...]:
        """Final metric for each seed, in the order of the seeds."""
        return tuple(run.score for run in self.runs if run.images == images)

    def differences(self, images: str) -> tuple[float, ...]:
        """Score minus the score on source images of the same seed; 0 is no loss, below 0 is worse."""
        return tuple(d - s for d, s in zip(self.scores(images), self.scores(SOURCE), strict=True))

    def seconds(self, images: str) -> float:
        """Mean wall seconds of a run."""
        spent = [run.seconds for run in self.runs if run.images == images]
        return sum(spent) / len(spent)


Progress = Callable[[str, int, int, float], None]  # images, seed, steps done, loss


def compare_training(
    source: Annotated,
    decoded: Mapping[str, Annotated],
    held_out: Annotated,
    *,
    recipe: Recipe,
    seeds: Sequence[int] = (0, 1, 2),
    metric: str = "iou",
    device: str = "cpu",
    workers: int = 1,
    progress: Progress | None = None,
) -> Comparison:
    """Train on source and on each codec's decoded images, and evaluate on held-out source frames.

    Every `decoded` set holds the same frames as `source`, in the same order: with equal seeds all runs see the same
    views of the same frames. `workers` runs go on at once, each on one core; `progress` is called from theirs, and what
    it raises ends the comparison. Raises InputError when they don't match or when there is no frame to evaluate on.
    """
    if not recipe.steps:
        raise InputError("a comparison needs a number of steps; set Recipe.steps")
    for name, part in decoded.items():
        if part.images.shape != source.images.shape or len(part.targets) != len(source.targets) or name == SOURCE:
            raise InputError(
                f"decoded images {name!r} are {tuple(part.images.shape)} but the source is "
                f"{tuple(source.images.shape)}; decode every training frame once, at the training size"
            )
    starting, stop = threading.Lock(), threading.Event()

    def run(name: str, part: Annotated, seed: int) -> Run:
        torch.set_num_threads(1)  # of this worker's own thread: two runs side by side beat one run on two cores
        with starting:  # initial weights are drawn from torch's one global generator
            pool = TensorPool.of(list(torch.unbind(part.images)), part.targets)
            trainer = Trainer(recipe, pool, seed, device)
        return _run(name, trainer, held_out, metric, progress, stop)

    sets = {SOURCE: source, **decoded}
    with ThreadPoolExecutor(workers, "training") as executor:
        # Seed by seed, so that an interrupted comparison has whole pairs.
        waiting = [executor.submit(run, name, part, seed) for seed in seeds for name, part in sets.items()]
        try:
            runs = [done.result() for done in waiting]
        except BaseException:  # also an interrupt: don't sit out the runs that go on
            stop.set()
            executor.shutdown(wait=False, cancel_futures=True)
            raise
    blank = Trainer(recipe, TensorPool(), seeds[0], device)
    return Comparison(
        metric=metric,
        steps=recipe.steps,
        epochs=recipe.steps * recipe.batch / len(source.images),
        parameters=sum(p.numel() for p in blank.model.parameters()),
        untrained=evaluate(blank.averaged, held_out.images, held_out.targets, metric),
        constant_box=constant_score(source.targets, held_out.targets, metric),
        constant_box_per_camera=constant_score(
            source.targets, held_out.targets, metric, (source.cameras, held_out.cameras)
        ),
        runs=tuple(runs),
    )


def _run(
    name: str, trainer: Trainer, held_out: Annotated, metric: str, progress: Progress | None, stop: threading.Event
) -> Run:
    steps, seed = trainer.recipe.steps or 0, trainer.seed
    every = max(1, steps // _POINTS)
    losses: list[float] = []
    curve: list[Point] = []
    seconds = 0.0
    for step in range(1, steps + 1):
        if stop.is_set():
            raise CancelledError
        started = time.perf_counter()
        losses.append(trainer.step())
        seconds += time.perf_counter() - started
        if step % every and step != steps:
            continue
        score = evaluate(trainer.averaged, held_out.images, held_out.targets, metric)
        curve.append(Point(step, sum(losses) / len(losses), score))
        losses = []
        if progress is not None:
            progress(name, seed, step, curve[-1].loss)
    return Run(name, seed, curve[-1].score, seconds, tuple(curve))
