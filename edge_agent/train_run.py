"""One training run over the library: pool, trainer, held-out frames, checkpoint. Imported by the child only."""

from __future__ import annotations

import logging

import torch

from fogline.common.data import load_sequence
from fogline.common.errors import FormatError, InputError
from fogline.common.files import replace_file
from fogline.common.images.decode import BatchDecoder
from fogline.common.images.jpeg import decode_jpeg, resize
from fogline.common.models.checkpoint import load_checkpoint, load_weights, save_checkpoint, save_weights
from fogline.common.models.detection import Target, to_target
from fogline.common.models.training import Recipe, Trainer, evaluate
from fogline.edge_agent.config import EdgeConfig, TrainConfig
from fogline.edge_agent.model_store import ModelStore
from fogline.edge_agent.sources import frames_of, labelled
from fogline.edge_agent.train_pool import LibraryPool, known
from fogline.edge_agent.trainer import outgoing

_log = logging.getLogger(__name__)
HOLD = 0.6  # of all steps are made while images still arrive; the learning rate falls over the rest


class TrainRun:
    """Use it in `with`. Goes on from its own checkpoint; without one, from the registry's newest weights."""

    def __init__(self, settings: EdgeConfig) -> None:
        train = settings.train
        torch.set_num_threads(train.threads)
        self._settings, self._train = settings, train
        self._folder = settings.data_dir / "train"
        decoder = BatchDecoder(train.device, train.shared_bytes)
        size = (train.width, train.height)
        self.pool = LibraryPool(settings.data_dir / "library", decoder, size, train.labels, train.cache_bytes)
        self.pool.refresh()
        recipe = Recipe(
            labels=max(1, len(train.labels)),
            steps=train.steps or None,
            batch=train.batch,
            view=train.view,
            rate=train.lr,
        )
        self.trainer = Trainer(recipe, self.pool, train.seed, train.device)
        self._resume()
        self._images, self._targets = held_out(settings, train)

    def __enter__(self) -> TrainRun:
        return self

    def __exit__(self, *exc: object) -> None:
        self.pool.close()

    @property
    def complete(self) -> bool:
        """Every configured step was made."""
        return 0 < self._train.steps <= self.trainer.step_count

    @property
    def holding(self) -> bool:
        """The steps that are left are for when everything has arrived."""
        return 0 < HOLD * self._train.steps <= self.trainer.step_count

    def evaluate(self) -> float | None:
        """The configured metric on the held-out frames; None without any."""
        if not len(self._targets):
            return None
        return evaluate(self.trainer.averaged, self._images, self._targets, self._train.metric)

    def checkpoint(self) -> None:
        """Save the whole state. Raises CapacityError."""
        save_checkpoint(self.trainer, self._folder / "checkpoint.safetensors")

    def publish(self) -> None:
        """Leave the weights for the agent to send to the registry."""
        name = f"{self.trainer.step_count:012d}.safetensors"
        replace_file(outgoing(self._settings.data_dir) / name, save_weights(self.trainer.averaged))

    def _resume(self) -> None:
        path = self._folder / "checkpoint.safetensors"
        if path.exists():
            try:
                load_checkpoint(self.trainer, path)
                _log.info("training goes on", extra={"step": self.trainer.step_count, "pool": len(self.pool)})
                return
            except (FormatError, InputError) as error:
                aside = path.with_suffix(".unusable")
                path.replace(aside)
                _log.warning("training starts anew; the old checkpoint is now %s: %s", aside, error)
        weights = ModelStore(self._settings.data_dir / "models").path(self._train.model)
        if weights is None:
            return
        try:
            model = load_weights(weights.read_bytes())
            self.trainer.model.load_state_dict(model.state_dict())
            self.trainer.averaged.load_state_dict(model.state_dict())
            _log.info("training starts from the registry's newest weights")
        except (FormatError, RuntimeError, OSError) as error:
            _log.warning("the registry's weights do not fit this detector: %s", error)


def held_out(settings: EdgeConfig, train: TrainConfig) -> tuple[torch.Tensor, list[Target]]:
    """Evaluation frames: uint8 (N, 3, H, W) and their objects. Raises InputError for a folder that is no sequence."""
    images: list[torch.Tensor] = []
    targets: list[Target] = []
    for run in train.evaluate:
        sequence = load_sequence(run.path)
        for frame in frames_of(sequence, run):
            try:
                pixels = resize(decode_jpeg(frame.path.read_bytes()), train.width, train.height)
            except (InputError, OSError) as error:
                _log.warning("not evaluated on: %s", error)
                continue
            boxes = known(labelled(frame.boxes, settings.capture.label), train.labels)
            images.append(torch.tensor(pixels).permute(2, 0, 1).contiguous())
            targets.append(to_target(boxes, frame.width, frame.height, train.labels))
    if not images:
        return torch.empty((0, 3, train.height, train.width), dtype=torch.uint8), []
    return torch.stack(images), targets
