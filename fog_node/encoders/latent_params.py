"""Settings of the `latent` encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from fogline.common.config import Config
from fogline.common.errors import ConfigError


class LatentParams(Config, frozen=True):
    """What `latent` takes as parameters."""

    background_quality: Annotated[
        int, Meta(ge=1, le=100, description="AVIF quality of reference pictures; the background's step follows it")
    ] = 30
    object_quality: Annotated[
        int, Meta(ge=1, le=100, description="AVIF quality of objects in references; the objects' step follows it")
    ] = 60
    max_frames: Annotated[
        int, Meta(ge=1, le=100_000, description="Frames that share a reference picture at most; 1: none do")
    ] = 1000


def latent_params(values: Mapping[str, Any]) -> LatentParams:
    """Check the parameters. Raises ConfigError that names the key."""
    unknown = sorted(set(values) - set(LatentParams.__struct_fields__))
    if unknown:
        known = ", ".join(LatentParams.__struct_fields__)
        raise ConfigError(f"codec latent: parameter `{unknown[0]}` is unknown; known: {known}")
    try:
        return msgspec.convert(dict(values), LatentParams)
    except msgspec.ValidationError as error:
        raise ConfigError(f"codec latent: {error}") from error
