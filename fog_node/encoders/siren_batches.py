"""Sorts signals into batches of one network shape, and fits the batches on every core."""

from __future__ import annotations

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fogline.common.images.codec import Placement
from fogline.common.images.siren import Network, Shape, positions_of
from fogline.fog_node.encoders.siren_fit import BatchFit, Schedule, pixel_order

_CPU_ELEMENTS = 1 << 18  # activations of one layer in one batch: what a core's cache holds
_GPU_ELEMENTS = 1 << 27


@dataclass(frozen=True)
class Signal:
    """What one network has to learn: targets (height * width, 3) in [-1, 1], row by row."""

    shape: Shape
    width: int
    height: int
    targets: NDArray[np.float32]


def fit_batches(signals: Sequence[Signal], schedule: Schedule, seed: int, device: torch.device) -> list[Network]:
    """Fit every signal; one network for each, in order."""
    out: dict[int, Network] = {}
    batches = _batches(signals, schedule, device)
    with ThreadPoolExecutor(_workers(device), initializer=torch.set_num_threads, initargs=(1,)) as pool:
        fits = pool.map(lambda members: _fit([signals[i] for i in members], schedule, seed, device), batches)
        for members, networks in zip(batches, fits, strict=True):
            out.update(zip(members, networks, strict=True))
    return [out[i] for i in range(len(signals))]


def _batches(signals: Sequence[Signal], schedule: Schedule, device: torch.device) -> list[list[int]]:
    """Indices of the signals of each batch, the longest work first so that the cores finish together."""
    groups: dict[tuple[Shape, int], list[int]] = {}
    for i, signal in enumerate(signals):
        slots = len(pixel_order(signal.width * signal.height, schedule.slice, 0))
        groups.setdefault((signal.shape, slots), []).append(i)
    out = []
    workers = _workers(device)
    for (shape, slots), members in groups.items():
        budget = _CPU_ELEMENTS if device.type == "cpu" else _GPU_ELEMENTS
        most = max(1, budget // (shape.width * min(schedule.slice, slots)))
        count = -(-len(members) // most)
        count = min(len(members), -(-count // workers) * workers)  # a whole round for every core
        out += [part.tolist() for part in np.array_split(members, count)]
    return sorted(out, key=lambda members: -len(members) * signals[members[0]].shape.parameters)


def _fit(signals: Sequence[Signal], schedule: Schedule, seed: int, device: torch.device) -> list[Network]:
    orders = [pixel_order(s.width * s.height, schedule.slice, seed) for s in signals]
    targets = np.stack([s.targets[order] for s, order in zip(signals, orders, strict=True)])
    shared = len({(s.width, s.height) for s in signals}) == 1
    positions = np.stack([_positions(s)[o] for s, o in zip(signals, orders, strict=True)][: 1 if shared else None])
    at, values = torch.from_numpy(positions).to(device), torch.from_numpy(targets).to(device)
    return BatchFit(signals[0].shape, at, values, schedule, seed).run()


def _positions(signal: Signal) -> NDArray[np.float32]:
    return positions_of(Placement(0, 0, signal.width, signal.height, (0.0, 0.0, 1.0, 1.0)))


def _workers(device: torch.device) -> int:
    return len(os.sched_getaffinity(0)) if device.type == "cpu" else 1
