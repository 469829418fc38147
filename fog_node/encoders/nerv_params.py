"""Settings of the `nerv` encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fogline.common.config import Config
from fogline.common.errors import ConfigError
from fogline.common.images.nerv_payload import MAX_FRAMES, MAX_GRID_CHANNELS, MAX_LATENT_CHANNELS, MAX_WIDTH


class NervParams(Config, frozen=True):
    """What `nerv` takes as parameters."""

    quality: Annotated[
        int,
        Meta(
            ge=1,
            le=100,
            description="Of backgrounds, at the same size of network: 10 more halve what a bit is worth in error",
        ),
    ] = 30
    object_quality: Annotated[int, Meta(ge=1, le=100, description="AVIF quality of objects")] = 60
    group: Annotated[
        int, Meta(ge=1, le=MAX_FRAMES, description="Frames of a camera that share a network; more wait for each other")
    ] = 128
    group_wait_s: Annotated[
        float, Meta(ge=0, le=3600, description="A group that is not full is encoded after this, in a fog node")
    ] = 30.0
    steps: Annotated[
        int, Meta(ge=1, le=10_000_000, description="Training steps of a network, one frame each; minutes on a CPU")
    ] = 6000
    channels: Annotated[
        int,
        Meta(ge=1, le=MAX_WIDTH, description="Channels of the network's last stage; its size grows with the square"),
    ] = 16
    latents: Annotated[int, Meta(ge=0, le=MAX_LATENT_CHANNELS, description="Channels of a frame's latents")] = 6
    grid: Annotated[
        int,
        Meta(ge=0, le=MAX_GRID_CHANNELS, description="Channels of the grid that frames share; for what stands still"),
    ] = 8
    bits: Annotated[float, Meta(ge=3, le=7, description="Bits that a coded weight takes, about")] = 5.0
    seed: Annotated[int, Meta(ge=0, le=2**31 - 1, description="Of initial weights and the order of frames")] = 0


def nerv_params(values: Mapping[str, Any]) -> NervParams:
    """Check the parameters. Raises ConfigError that names the key."""
    unknown = sorted(set(values) - set(NervParams.__struct_fields__))
    if unknown:
        known = ", ".join(NervParams.__struct_fields__)
        raise ConfigError(f"codec nerv: parameter `{unknown[0]}` is unknown; known: {known}")
    try:
        return msgspec.convert(dict(values), NervParams)
    except msgspec.ValidationError as error:
        raise ConfigError(f"codec nerv: {error}") from error
