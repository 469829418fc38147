"""Which integers a plane's coefficients become: those that are worth their bits."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from fogline.common.images.latent_blocks import LIMIT, Plane, block_contexts, diagonal, reach_of
from fogline.common.images.latent_tables import COEFFICIENTS, REACH
from fogline.common.images.static_rans import ESCAPE, costs

_CERTAIN = 0.55  # a block whose largest coefficient is below this part of a step becomes zero
_ROUNDS = 2
_REACH_CONTEXT = 2  # a block with a neighbour that is coded; stands for all while values are chosen


def quantise(coefficients: NDArray[np.float32], step: float, kind: int, price: float) -> Plane:
    """Coefficients (rows, columns, size, size) in grey levels to a plane; `price` is squared steps for a bit.

    For each coefficient the cheapest of zero and its two nearest integers, by squared error and by the bits of its
    context; for each block then the reach at which everything beyond is cheaper left out.
    """
    rows, columns, size, _ = coefficients.shape
    scaled = coefficients.reshape(-1, size, size) / np.float32(step)
    index = np.flatnonzero(np.abs(scaled).max(axis=(1, 2)) > _CERTAIN)
    signed = scaled[index]
    exact = np.minimum(np.abs(signed), LIMIT - 1)
    lower = np.floor(exact).astype(np.int64)
    chosen = np.floor(exact + np.float32(0.35)).astype(np.int64)
    for _ in range(_ROUNDS):
        chosen = _cheapest(exact, lower, chosen, kind, price)
        chosen = _cut(exact, chosen, kind, price)
    kept = chosen.any(axis=(1, 2))
    values = np.where(signed < 0, -chosen, chosen)[kept].astype(np.int16)
    return Plane(rows, columns, size, index[kept].astype(np.int32), values)


def _cheapest(
    exact: NDArray[np.float32], lower: NDArray[np.int64], chosen: NDArray[np.int64], kind: int, price: float
) -> NDArray[np.int64]:
    table = costs()[COEFFICIENTS[kind, block_contexts(chosen, reach_of(chosen))]]
    best, cost = np.zeros_like(chosen), exact**2 + price * table[..., 0]
    for candidate in (lower, lower + 1):
        own = (exact - candidate) ** 2 + price * _bits(table, candidate)
        better = (own < cost) & (candidate > 0)
        best, cost = np.where(better, candidate, best), np.where(better, own, cost)
    return best


def _cut(exact: NDArray[np.float32], chosen: NDArray[np.int64], kind: int, price: float) -> NDArray[np.int64]:
    size = chosen.shape[-1]
    table = costs()[COEFFICIENTS[kind, block_contexts(chosen, np.full(len(chosen), 2 * size))]]
    gain = (exact - chosen) ** 2 + price * _bits(table, chosen) - exact**2
    total = np.zeros((len(chosen), 2 * size), np.float32)
    for d in range(2 * size - 1):
        rows, columns = diagonal(size, d)
        total[:, d + 1] = total[:, d] + gain[:, rows, columns].sum(axis=1)
    total += price * _bits(costs()[REACH[kind, _REACH_CONTEXT]], np.arange(2 * size), sign=False)
    ends = np.add.outer(np.arange(size), np.arange(size))
    return np.where(ends < total.argmin(axis=1)[:, None, None], chosen, 0)


def _bits(table: NDArray[np.float32], values: NDArray[np.int64], *, sign: bool = True) -> NDArray[np.float32]:
    """Bits of values under tables (..., 16)."""
    symbols = np.minimum(values, ESCAPE)
    table = np.broadcast_to(table, (*values.shape, table.shape[-1]))
    out = np.take_along_axis(table, symbols[..., None], axis=-1)[..., 0]
    beyond = 2 * np.log2(np.maximum(values - ESCAPE, 0) + 1) + 1
    return np.asarray(out + (values >= ESCAPE) * beyond + (values > 0) * sign, np.float32)
