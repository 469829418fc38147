"""How many images are encoded together, and how long the first waits for the others."""

from __future__ import annotations

from dataclasses import dataclass

from fogline.fog_node.config import EncoderConfig
from fogline.fog_node.encoders.nerv_params import nerv_params


@dataclass(frozen=True)
class Gathering:
    """What the encode queue is told."""

    batch: int  # images at most
    max_wait_s: float
    by_camera: bool = False  # a batch has images of one camera

    @classmethod
    def of(cls, config: EncoderConfig) -> Gathering:
        """What the configuration says; `nerv` has a group and a wait of its own, since each batch costs a network."""
        if config.codec != "nerv":
            return cls(config.batch, config.max_wait_s)
        params = nerv_params(config.params)
        return cls(params.group, max(config.max_wait_s, params.group_wait_s), by_camera=True)
