"""Settings of the `siren` encoder."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from fogline.common.config import Config
from fogline.common.errors import ConfigError
from fogline.common.images.siren_payload import MAX_DEPTH, MAX_PARAMETERS, MAX_SIDE, MAX_WIDTH, Shape


class SirenParams(Config, frozen=True):
    """What `siren` takes as parameters. Unset ones depend on the profile."""

    profile: Annotated[
        Literal["fast", "reference"],
        Meta(description="`fast`: batched; `reference`: the published method, one network at a time, hours per image"),
    ] = "fast"
    seed: Annotated[
        int, Meta(ge=0, le=2**31 - 1, description="Seed of the pixel order; in `reference`, of initial weights")
    ] = 0
    steps: Annotated[int, Meta(ge=1, description="Steps of a background network")] | None = None
    slice: (
        Annotated[int, Meta(ge=1, description="Pixels per step and background network; unset: a fortieth")] | None
    ) = None
    object_steps: Annotated[int, Meta(ge=1, description="Steps of an object network")] | None = None
    objects: Annotated[
        Literal["quick", "fine"], Meta(description="`fine`: deeper networks for large objects, for 4000 steps or more")
    ] = "quick"
    depth: Annotated[int, Meta(ge=1, le=MAX_DEPTH, description="Sine layers of each background network")] | None = None
    width: Annotated[int, Meta(ge=1, le=MAX_WIDTH, description="Units of each of those layers")] | None = None
    columns: Annotated[int, Meta(ge=1, le=MAX_SIDE, description="Background networks across the frame")] | None = None
    rows: Annotated[int, Meta(ge=1, le=MAX_SIDE, description="Background networks down the frame")] | None = None
    target_db: Annotated[
        float, Meta(ge=10, le=50, description="Background PSNR that the fast profile sizes its networks for")
    ] = 27.0
    bits: Annotated[float, Meta(ge=2, le=8, description="Bits that a coded weight takes, about")] = 6.0

    def __post_init__(self) -> None:
        """The four numbers that fix the background's networks are one choice."""
        given = [name for name in ("depth", "width", "columns", "rows") if getattr(self, name) is not None]
        if 0 < len(given) < 4:
            raise ValueError(f"`{given[0]}` alone says too little; set depth, width, columns and rows, or none of them")
        if self.depth and self.width and self.columns and self.rows:
            parameters = Shape(self.depth, self.width).parameters * self.columns * self.rows
            if parameters > MAX_PARAMETERS:
                raise ValueError(f"the background would have {parameters} parameters; the most is {MAX_PARAMETERS}")


def siren_params(values: Mapping[str, Any]) -> SirenParams:
    """Check the parameters. Raises ConfigError that names the key."""
    unknown = sorted(set(values) - set(SirenParams.__struct_fields__))
    if unknown:
        known = ", ".join(SirenParams.__struct_fields__)
        raise ConfigError(f"codec siren: parameter `{unknown[0]}` is unknown; known: {known}")
    try:
        return msgspec.convert(dict(values), SirenParams)
    except msgspec.ValidationError as error:
        raise ConfigError(f"codec siren: {error}") from error
