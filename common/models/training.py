"""Training a detector by replay over a pool that may grow meanwhile; every seed explicit, every state resumable."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from fogline.common.errors import ConfigError, InputError
from fogline.common.models.augment import Augment, expose, random_cuts, seen
from fogline.common.models.detection import Detections, Target, decode, detection_loss
from fogline.common.models.detector import Detector
from fogline.common.models.pool import ImagePool
from fogline.common.models.scores import score


@dataclass(frozen=True)
class Recipe:
    """How to train. The defaults are what the published figures were measured with."""

    labels: int = 1
    steps: int | None = None  # None: until stopped, at a constant rate; else the last 40 % decay to 0
    batch: int = 16
    view: tuple[int, int] = (160, 112)  # w, h that a step sees of an image; multiples of 16
    rate: float = 3e-3
    warmup: int = 50
    weight_decay: float = 0.02
    average: float = 0.995  # of the weights that evaluate: an exponential moving average

    def __post_init__(self) -> None:
        if self.view[0] % 16 or self.view[1] % 16 or min(self.view) < 16 or self.batch < 1 or self.labels < 1:
            raise ConfigError(
                f"view {self.view}, batch {self.batch}, labels {self.labels}: the view's width and height must be "
                "multiples of 16, the others at least 1"
            )


class Trainer:
    """A detector in training. `model` learns; `averaged` is what to evaluate and to send."""

    def __init__(self, recipe: Recipe, pool: ImagePool, seed: int, device: str = "cpu") -> None:
        self.recipe, self.pool, self.seed, self.device = recipe, pool, seed, torch.device(device)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = Detector(recipe.labels)
        self.model: Detector = model.to(self.device, memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.averaged: Detector = copy.deepcopy(self.model).eval().requires_grad_(False)
        plain = [p for p in self.model.parameters() if p.ndim == 1]
        decayed = [p for p in self.model.parameters() if p.ndim > 1]
        groups = [{"params": decayed, "weight_decay": recipe.weight_decay}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=recipe.rate)
        self.generator = torch.Generator().manual_seed(seed)
        self.order: list[int] = []  # images still to be seen in this round over the pool
        self.step_count = 0

    def step(self) -> float:
        """Learn from one batch and return its loss. Raises InputError while the pool is empty."""
        images, targets = self._batch()
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate()
        self.model.train()
        score, box = self.model(images.contiguous(memory_format=torch.channels_last))
        loss = detection_loss(score, box, targets)
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(self.model.parameters(), 5.0)
        self.optimizer.step()
        self.step_count += 1
        self._average()
        return float(loss.detach())

    def _batch(self) -> tuple[Tensor, list[Target]]:
        if not len(self.pool):
            raise InputError("no image to train on yet; wait for the first")
        chosen: list[int] = []
        while len(chosen) < self.recipe.batch:
            if not self.order:  # what arrived since the last round takes part from here on
                self.order = torch.randperm(len(self.pool), generator=self.generator).tolist()
            chosen.append(self.order.pop())
        augment, size = Augment(), self.recipe.view
        targets = [self.pool.target(i) for i in chosen]
        draws, cuts = random_cuts(targets, self.pool.size, size, self.generator, augment)
        views = self.pool.views(chosen, cuts, size, self.device)
        targets = [self.pool.target(i) for i in chosen]  # again: an image that turns out to be damaged is replaced
        return expose(views, draws, augment), seen(targets, cuts, augment)

    def _rate(self) -> float:
        rate = self.recipe.rate * min(1.0, (self.step_count + 1) / self.recipe.warmup)
        if self.recipe.steps:
            left = 1 - self.step_count / self.recipe.steps
            rate *= min(1.0, max(left, 0.0) / 0.4)
        return rate

    @torch.no_grad()
    def _average(self) -> None:
        keep = min(self.recipe.average, self.step_count / (self.step_count + 9))  # young averages forget faster
        new = self.model.state_dict()
        for name, mean in self.averaged.state_dict().items():
            if mean.is_floating_point():
                mean.lerp_(new[name], 1 - keep)
            else:
                mean.copy_(new[name])


@torch.inference_mode()
def detect(model: Detector, images: Tensor, batch: int = 32) -> list[Detections]:
    """Detections in images (N, 3, H, W), uint8 or float in [0, 1]. Raises InputError for H or W not divisible by 16."""
    if images.shape[-1] % 16 or images.shape[-2] % 16:
        raise InputError(f"images of {images.shape[-1]}x{images.shape[-2]}: decode them to multiples of 16")
    model.eval()
    device = next(model.parameters()).device
    found: list[Detections] = []
    for start in range(0, len(images), batch):
        part = images[start : start + batch].to(device)
        part = part.float() / 255 if part.dtype == torch.uint8 else part
        score, box = model(part.contiguous(memory_format=torch.channels_last))
        found += decode(score.cpu().contiguous(), box.cpu().contiguous())
    return found


def evaluate(model: Detector, images: Tensor, targets: Sequence[Target], metric: str) -> float:
    """What a detector scores on images (N, 3, H, W): `iou` (single object) or `ap50` (many), see `scores.score`."""
    return score(detect(model, images), targets, metric)


def fit(pool: ImagePool, recipe: Recipe, seed: int, device: str = "cpu") -> Detector:
    """Train for `recipe.steps` and return the averaged detector. The same arguments give the same weights on a CPU."""
    if not recipe.steps:
        raise InputError("a fit needs a number of steps; set Recipe.steps")
    trainer = Trainer(recipe, pool, seed, device)
    for _ in range(recipe.steps):
        trainer.step()
    return trainer.averaged
