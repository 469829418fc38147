"""Where a model should be trained, and what a fog node saves: Residual-INR's communication model with measured sizes.

Symbols as in the paper: m bytes of one image as captured, n receivers, alpha = bytes of its record / m, beta = bytes
that go up for it / m, W bytes of one model update.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True)
class Communication:
    """What images cost with a fog node and without; of a run, m and the rest are means or sums over its images."""

    receivers: float  # n
    source_bytes: float  # m
    alpha: float
    beta: float = 1.0  # the paper's edges send their JPEGs as captured

    @property
    def serverless_bytes(self) -> float:
        """D_s = n m: each image straight to every receiver."""
        return self.receivers * self.source_bytes

    @property
    def fog_bytes(self) -> float:
        """D_f = (beta + alpha n) m: once up to the fog node, and its record down to every receiver."""
        return (self.beta + self.alpha * self.receivers) * self.source_bytes

    @property
    def gain(self) -> float:
        """D_s / D_f = n / (beta + alpha n)."""
        return self.receivers / (self.beta + self.alpha * self.receivers)

    @property
    def gain_as_captured(self) -> float:
        """n / (1 + alpha n), the paper's: what JPEGs as captured on the uplink would leave of it."""
        return replace(self, beta=1.0).gain


def communication_of(receivers: float, source_bytes: float, delivered_bytes: float, beta: float = 1.0) -> Communication:
    """The model of images of `source_bytes` whose records take `delivered_bytes`, shared state included."""
    return Communication(receivers, source_bytes, delivered_bytes / source_bytes, beta)


@dataclass(frozen=True)
class Place:
    """Training at the fog ships updates of W bytes to each receiver, at the edges alpha m bytes an image."""

    model_bytes: float  # W
    delivered_bytes: float  # alpha m
    images_per_update: float | None = None

    @property
    def break_even_images(self) -> float:
        """Images per update below which training at the edges takes fewer bytes: W / (alpha m)."""
        return self.model_bytes / self.delivered_bytes

    @property
    def cheaper(self) -> Literal["edges", "fog"] | None:
        """Where training takes fewer bytes; None without a number of images per update."""
        if self.images_per_update is None:
            return None
        return "edges" if self.images_per_update < self.break_even_images else "fog"
