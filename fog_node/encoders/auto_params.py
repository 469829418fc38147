"""Settings of the encoder `auto`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fogline.common.config import Config
from fogline.common.errors import ConfigError
from fogline.common.images.planning import Goal

_Rate = Annotated[float, Meta(gt=0, description="bit/s; unset: as measured, 16e6 until then")]


class AutoParams(Config, frozen=True):
    """What `auto` takes as parameters."""

    objective: Annotated[
        Literal["time", "bytes"],
        Meta(description="Least bytes to all receivers, or least time until the last can use an image"),
    ] = "bytes"
    background_db: Annotated[float, Meta(ge=10, le=60, description="Background PSNR to reach, dB")] = 28.0
    object_db: Annotated[float, Meta(ge=10, le=60, description="Object PSNR to reach, dB")] = 35.0
    candidates: (
        Annotated[tuple[str, ...], Meta(description="Codecs to weigh; unset: all that suit this host")] | None
    ) = None
    every: Annotated[int, Meta(ge=1, le=1_000_000, description="Images of a camera from one trial to the next")] = 256
    trial_after: Annotated[
        int, Meta(ge=1, le=1_000_000, description="Images of a camera before its first trial; until then a usual codec")
    ] = 8
    trial_share: Annotated[
        float,
        Meta(gt=0, le=1, description="Of its time that the encoder may spend on trials, after a minute to begin with"),
    ] = 0.2
    max_encode_s: Annotated[float, Meta(gt=0, le=3600, description="Seconds an image may take to encode")] = 1.0
    downlink_bit_s: _Rate | None = None
    uplink_bit_s: _Rate | None = None

    @property
    def goal(self) -> Goal:
        """The part that the planner needs."""
        return Goal(self.objective, self.background_db, self.object_db)


def auto_params(values: Mapping[str, Any]) -> AutoParams:
    """Check the parameters. Raises ConfigError that names the key."""
    unknown = sorted(set(values) - set(AutoParams.__struct_fields__))
    if unknown:
        known = ", ".join(AutoParams.__struct_fields__)
        raise ConfigError(f"codec auto: parameter `{unknown[0]}` is unknown; known: {known}")
    try:
        return msgspec.convert(dict(values), AutoParams)
    except msgspec.ValidationError as error:
        raise ConfigError(f"codec auto: {error}") from error
