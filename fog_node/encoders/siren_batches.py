"""Sorts signals into batches of one network shape, and fits the batches on every core."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.siren_payload import Shape
from fogline.fog_node.encoders.siren_fit import BatchFit, FittedNetwork, Schedule, pixel_order

_CPU_ELEMENTS = 1 << 18  # activations of one layer in one batch: what a core's cache holds
_GPU_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Signal:
    """What one network has to learn: a value for every pixel of a rectangle."""

    shape: Shape
    xs: NDArray[np.float32]  # (w,) positions of the columns
    ys: NDArray[np.float32]  # (h,) positions of the rows
    targets: NDArray[np.float32]  # (h * w, 3) in [-1, 1], row by row

    @property
    def positions(self) -> NDArray[np.float32]:
        """Positions (h * w, 2), row by row."""
        return np.stack([np.tile(self.xs, len(self.ys)), np.repeat(self.ys, len(self.xs))], axis=1)


def fit_batches(
    signals: Sequence[Signal], plan: Callable[[Shape, int], Schedule], seed: int, device: torch.device
) -> list[FittedNetwork]:
    """Fit every signal, on the schedule that `plan` gives for its shape and number of pixels; one network each."""
    batches = _batches(signals, plan, device)
    out: dict[int, FittedNetwork] = {}
    threads = torch.get_num_threads()
    with ThreadPoolExecutor(_workers(device), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        fits = pool.map(lambda batch: _fit([signals[i] for i in batch[1]], batch[0], seed, device), batches)
        for (_, members), networks in zip(batches, fits, strict=True):
            out.update(zip(members, networks, strict=True))
    torch.set_num_threads(threads)  # a part of the setting is the process's, not the thread's
    return [out[i] for i in range(len(signals))]


def _batches(
    signals: Sequence[Signal], plan: Callable[[Shape, int], Schedule], device: torch.device
) -> list[tuple[Schedule, list[int]]]:
    """Schedule and signals of each batch, the most work first so that the cores finish together."""
    groups: dict[tuple[Shape, Schedule, int], list[int]] = {}
    for i, signal in enumerate(signals):
        schedule = plan(signal.shape, len(signal.targets))
        slots = len(pixel_order(len(signal.targets), schedule.slice, 0))
        groups.setdefault((signal.shape, schedule, slots), []).append(i)
    budget, workers = (_CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS), _workers(device)
    out = []
    for (shape, schedule, _), members in groups.items():
        most = max(1, budget // (shape.width * schedule.slice))
        count = -(-len(members) // most)
        count = min(len(members), -(-count // workers) * workers)  # as many for every core
        work = shape.parameters * schedule.slice * schedule.steps
        out += [(work * len(part), schedule, part.tolist()) for part in np.array_split(members, count)]
    return [(schedule, members) for _, schedule, members in sorted(out, key=lambda batch: -batch[0])]


def _fit(signals: Sequence[Signal], schedule: Schedule, seed: int, device: torch.device) -> list[FittedNetwork]:
    orders = [pixel_order(len(s.targets), schedule.slice, seed) for s in signals]
    targets = np.stack([s.targets[order].T for s, order in zip(signals, orders, strict=True)])
    positions = np.stack([s.positions[order].T for s, order in zip(signals, orders, strict=True)])
    at, values = torch.from_numpy(positions).to(device), torch.from_numpy(targets).to(device)
    return BatchFit(signals[0].shape, at, values, schedule).run()


def _workers(device: torch.device) -> int:
    return torch.get_num_threads() if device.type == "cpu" else 1
