"""A trainer's whole state in one safetensors file: a resumed run goes on as if it had never stopped."""

from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fogline.common.errors import CapacityError, FormatError, InputError
from fogline.common.models.detector import Detector
from fogline.common.models.training import Trainer

_FORMAT = "fogline-trainer-1"
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
MAX_BYTES = 256 << 20
MAX_LABELS = 1024  # of received weights: the detector is made before they are looked at closely


def save_checkpoint(trainer: Trainer, path: Path) -> None:
    """Write weights, averages, optimizer, sampler and random state to `path`, at once or not at all.

    Raises CapacityError when it can't be written.
    """
    state = _state(trainer)
    meta = {"format": _FORMAT, "seed": str(trainer.seed), "recipe": json.dumps(dataclasses.asdict(trainer.recipe))}
    partial = path.with_name(path.name + ".partial")
    try:
        with partial.open("wb") as file:
            file.write(save(state, meta))
            file.flush()
            os.fsync(file.fileno())
        partial.replace(path)
    except OSError as error:
        raise CapacityError(f"{path}: the checkpoint can't be written ({error.strerror}); make room") from error


def load_checkpoint(trainer: Trainer, path: Path) -> None:
    """Put a trainer of the same recipe and seed into the saved state.

    Raises FormatError for a file that is no checkpoint, and InputError for one of another recipe or seed; the
    trainer is then unchanged.
    """
    data = _read(path)
    try:
        header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
        state = load(data)
        meta = header["__metadata__"]
        kind, seed, recipe = meta["format"], int(meta["seed"]), json.loads(meta["recipe"])
    except (SafetensorError, ValueError, KeyError, TypeError) as error:
        raise FormatError(f"{path}: not a trainer's checkpoint ({error}); remove it to start anew") from error
    if kind != _FORMAT:
        raise FormatError(f"{path}: format {kind!r}, this build reads {_FORMAT!r}; remove it to start anew")
    wanted = json.loads(json.dumps(dataclasses.asdict(trainer.recipe)))
    if (seed, recipe) != (trainer.seed, wanted):
        raise InputError(
            f"{path}: was trained with seed {seed} and {recipe}, not {trainer.seed} and {wanted}; "
            "use the same settings or remove it to start anew"
        )
    expected = {name: (t.shape, t.dtype) for name, t in _state(trainer).items() if name != "order"}
    found = {name: (t.shape, t.dtype) for name, t in state.items() if name != "order"}
    order = state.get("order")
    if found != expected or order is None or order.dtype != torch.int64 or order.ndim != 1:
        odd = sorted(name for name in {*expected, *found} if expected.get(name) != found.get(name)) or ["order"]
        raise FormatError(f"{path}: tensor {odd[0]!r} is missing or of another shape; remove it to start anew")
    _restore(trainer, state)


def save_weights(model: Detector) -> bytes:
    """A detector's weights as a safetensors file, for the registry and other devices."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    return bytes(save(tensors, {"format": "fogline-detector-1", "labels": str(model.labels)}))


def load_weights(data: bytes) -> Detector:
    """A detector from `save_weights`. Raises FormatError for anything else."""
    try:
        if len(data) > MAX_BYTES:
            raise ValueError(f"{len(data)} bytes")
        tensors = load(data)
        labels = tensors["score.bias"].numel()
        if not 1 <= labels <= MAX_LABELS:
            raise ValueError(f"{labels} labels, 1 to {MAX_LABELS} are possible")
        model = Detector(labels)
        model.load_state_dict(tensors)
    except (SafetensorError, ValueError, KeyError, RuntimeError) as error:
        raise FormatError(f"weights of a detector: {str(error)[:300]}; send them again") from error
    return model.eval()


def _read(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: can't be read ({error.strerror}); check the path") from error
    if len(data) > MAX_BYTES:
        raise FormatError(f"{path}: larger than {MAX_BYTES} bytes, which no checkpoint is; remove it to start anew")
    return data


def _state(trainer: Trainer) -> dict[str, Tensor]:
    state = {f"model.{name}": t for name, t in trainer.model.state_dict().items()}
    state |= {f"averaged.{name}": t for name, t in trainer.averaged.state_dict().items()}
    for name, p in trainer.model.named_parameters():
        moments = trainer.optimizer.state.get(p) or {
            "exp_avg": torch.zeros_like(p),
            "exp_avg_sq": torch.zeros_like(p),
            "step": torch.zeros(()),
        }
        state |= {f"optimizer.{name}.{moment}": moments[moment] for moment in _MOMENTS}
    state["generator"] = trainer.generator.get_state()
    state["order"] = torch.tensor(trainer.order, dtype=torch.int64)
    state["step"] = torch.tensor(trainer.step_count, dtype=torch.int64)
    return {name: t.detach().cpu().contiguous() for name, t in state.items()}


def _restore(trainer: Trainer, state: dict[str, Tensor]) -> None:
    for prefix, model in (("model", trainer.model), ("averaged", trainer.averaged)):
        model.load_state_dict({n.removeprefix(f"{prefix}."): t for n, t in state.items() if n.startswith(f"{prefix}.")})
    trainer.step_count = int(state["step"])
    if trainer.step_count:
        for name, p in trainer.model.named_parameters():
            moments = trainer.optimizer.state[p]
            for moment in _MOMENTS:
                saved = state[f"optimizer.{name}.{moment}"]
                # In the memory layout of the parameter, as a run without a stop would have it.
                moments[moment] = saved.clone() if moment == "step" else torch.zeros_like(p).copy_(saved)
    trainer.generator.set_state(state["generator"])
    size = len(trainer.pool)
    trainer.order = [i for i in state["order"].tolist() if 0 <= i < size]
